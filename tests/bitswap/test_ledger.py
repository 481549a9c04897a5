from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.bitswap.ledger import INSTEAD_OF_HAVE_BYTES, LARGE_BYTES, MAX_PRESENCES, MAX_WANTS, Ledger, Ready, Want
from ipfsreg.bitswap.messages import Entry
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import peer_of

BOB = peer_of("bob")
LARGE, SMALL, TINY = 1 << 20, 5000, 100


def cid(number: int) -> Cid:
    return Cid.of(RAW, b"%d" % number)


def new_ledger() -> tuple[Ledger, dict[bytes, dict[PeerId, None]]]:
    waiting_for: dict[bytes, dict[PeerId, None]] = {}
    return Ledger(BOB, waiting_for), waiting_for


def ready(queue: Ready) -> list[Cid]:
    return [want.entry.cid for want in queue.in_order()]


def test_a_block_we_have_is_ready_by_its_size() -> None:
    ledger, _ = new_ledger()
    ledger.receive_want(Entry(cid(1)), LARGE_BYTES)
    ledger.receive_want(Entry(cid(2)), LARGE_BYTES - 1)
    assert ready(ledger.large) == [cid(1)]
    assert ready(ledger.small) == [cid(2)]


def test_a_question_is_answered_with_have_or_with_a_block_that_is_as_small() -> None:
    ledger, _ = new_ledger()
    ledger.receive_want(Entry(cid(1), want_have=True), INSTEAD_OF_HAVE_BYTES + 1)
    ledger.receive_want(Entry(cid(2), want_have=True), INSTEAD_OF_HAVE_BYTES)
    assert ledger.take_presences(10) == ([cid(1)], [])
    assert ready(ledger.small) == [cid(2)]


def test_what_we_lack_is_said_only_where_asked_and_always_remembered() -> None:
    ledger, waiting_for = new_ledger()
    ledger.receive_want(Entry(cid(1), send_dont_have=True), None)
    ledger.receive_want(Entry(cid(2)), None)
    assert ledger.take_presences(10) == ([], [cid(1)])
    assert waiting_for == {cid(1).multihash: {BOB: None}, cid(2).multihash: {BOB: None}}
    ledger.receive_arrival(cid(2).multihash, LARGE)
    assert ready(ledger.large) == [cid(2)]
    assert waiting_for == {cid(1).multihash: {BOB: None}}


def test_who_asked_whether_hears_have_when_the_block_arrives() -> None:
    ledger, _ = new_ledger()
    ledger.receive_want(Entry(cid(1), want_have=True, send_dont_have=True), None)
    ledger.receive_arrival(cid(1).multihash, LARGE)
    # DONT_HAVE was not said yet, and would be wrong now.
    assert ledger.take_presences(10) == ([cid(1)], [])


def test_a_cancel_takes_back_whatever_was_asked() -> None:
    for size in (LARGE, SMALL, None):
        for want_have in (False, True):
            ledger, waiting_for = new_ledger()
            ledger.receive_want(Entry(cid(1), want_have=want_have, send_dont_have=True), size)
            ledger.cancel(cid(1))
            assert not ledger.large
            assert not ledger.small
            assert not ledger.has_presences
            assert not waiting_for


def test_a_later_want_replaces_an_earlier_one() -> None:
    ledger, _ = new_ledger()
    ledger.receive_want(Entry(cid(1), 1), LARGE)
    ledger.receive_want(Entry(cid(2), 5), LARGE)
    ledger.receive_want(Entry(cid(1), 9), LARGE)
    assert ready(ledger.large) == [cid(1), cid(2)]
    ledger.receive_want(Entry(cid(1), want_have=True), LARGE)
    assert ready(ledger.large) == [cid(2)]
    assert ledger.take_presences(10) == ([cid(1)], [])


def test_what_is_being_sent_is_not_queued_again_and_a_cancel_is_noticed() -> None:
    ledger, _ = new_ledger()
    ledger.receive_want(Entry(cid(1)), LARGE)
    want = ledger.large.best(lambda cid: 0)
    assert want is not None
    ledger.begin(want)
    ledger.receive_want(Entry(cid(1)), LARGE)
    assert not ledger.large
    assert ledger.under_way == {cid(1): True}
    ledger.cancel(cid(1))
    assert ledger.under_way == {cid(1): False}
    ledger.finish(want, missing=False)
    assert not ledger.under_way


def test_a_block_that_turned_out_missing_is_denied_and_waited_for() -> None:
    ledger, waiting_for = new_ledger()
    want = Want(Entry(cid(1), send_dont_have=True), LARGE)
    ledger.begin(want)
    ledger.finish(want, missing=True)
    assert ledger.take_presences(10) == ([], [cid(1)])
    assert cid(1).multihash in waiting_for


def test_the_most_urgent_comes_first_then_the_rarest_then_the_oldest() -> None:
    queue = Ready()
    for number, priority in enumerate([1, 5, 5, 5, 1]):
        queue.add(Want(Entry(cid(number), priority), LARGE))
    ranks = {cid(1): 2, cid(2): 1, cid(3): 1}
    order = []
    while (want := queue.best(lambda cid: ranks.get(cid, 0))) is not None:
        order.append(want.entry.cid)
        queue.discard(want.entry.cid)
    assert order == [cid(2), cid(3), cid(1), cid(0), cid(4)]


def test_a_full_wantlist_forgets_what_was_before() -> None:
    ledger, waiting_for = new_ledger()
    for number, size in enumerate([LARGE, SMALL, None]):
        ledger.receive_want(Entry(cid(number), send_dont_have=True), size)
    ledger.clear()
    assert not ledger.large
    assert not ledger.small
    assert not ledger.has_presences
    assert not waiting_for


def test_however_many_are_wanted_a_thousand_are_remembered() -> None:
    ledger, waiting_for = new_ledger()
    for number in range(5 * MAX_WANTS):
        ledger.receive_want(Entry(cid(number), send_dont_have=True), None)
    assert ledger.waiting == len(waiting_for) == MAX_WANTS
    assert cid(5 * MAX_WANTS - 1).multihash in waiting_for, "the latest stay: what we have must not be kept out"
    assert len(ledger.dont_haves) == MAX_PRESENCES
    for number in range(5 * MAX_WANTS):
        ledger.receive_want(Entry(cid(number)), LARGE if number % 2 else SMALL)
    assert len(ledger.large) + len(ledger.small) == MAX_WANTS
    assert ledger.refused == 4 * MAX_WANTS


def test_wants_for_what_we_lack_do_not_keep_out_what_we_have() -> None:
    ledger, _ = new_ledger()
    for number in range(2 * MAX_WANTS):
        ledger.receive_want(Entry(cid(number)), None)
    ledger.receive_want(Entry(cid(-1)), LARGE)
    assert ready(ledger.large) == [cid(-1)]


actions = st.tuples(
    st.sampled_from(["want", "cancel", "arrive", "give", "finish", "tell", "clear"]),
    st.integers(0, 5),
    st.sampled_from([LARGE, SMALL, TINY, None]),
    st.booleans(),
)


@given(st.lists(actions, max_size=60))
def test_every_cid_is_in_one_place_at_most_and_the_index_is_right(
    steps: list[tuple[str, int, int | None, bool]],
) -> None:
    ledger, waiting_for = new_ledger()
    sending: list[Want] = []
    for action, number, size, flag in steps:
        one = Cid(1, RAW if flag else DAG_PB, cid(number).multihash)
        match action:
            case "want":
                ledger.receive_want(Entry(one, number, want_have=flag, send_dont_have=not flag), size)
            case "cancel":
                ledger.cancel(one)
            case "arrive":
                ledger.receive_arrival(one.multihash, size or TINY)
            case "give":
                want = (ledger.large if flag else ledger.small).best(lambda cid: 0)
                if want is not None:
                    ledger.begin(want)
                    sending.append(want)
            case "finish":
                if sending:
                    ledger.finish(sending.pop(), missing=flag)
            case "tell":
                ledger.take_presences(number)
            case "clear":
                ledger.clear()
        places = [set(ready(ledger.large)), set(ready(ledger.small)), set(ledger.haves), set(ledger.under_way)]
        for index, place in enumerate(places):
            for other in places[index + 1 :]:
                assert not place & other
        assert len(waiting_for) == ledger.waiting
        assert not set(ledger.haves) & set(ledger.dont_haves)
    ledger.clear()
    assert not waiting_for
