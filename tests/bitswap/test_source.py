import pytest

from ipfsreg.bitswap.messages import Entry
from ipfsreg.bitswap.settings import MIB
from ipfsreg.bitswap.source import MAX_LISTED, Kind, Source
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.testing.network import peer_of


def cid(name: object) -> Cid:
    return Cid.of(RAW, str(name).encode())


@pytest.fixture
def alice() -> Source:
    return Source(peer_of("alice"))


def test_the_last_word_about_a_block_counts(alice: Source) -> None:
    alice.tell(cid(1), Kind.WANT_HAVE)
    alice.tell(cid(1), Kind.WANT_BLOCK, 7)
    alice.tell(cid(2), Kind.WANT_BLOCK)
    alice.tell(cid(2), Kind.CANCEL)
    assert alice.take_news(0.0) == ([Entry(cid(1), 7, send_dont_have=True)], False)
    assert not alice.has_news


def test_cancels_are_told_first(alice: Source) -> None:
    alice.tell(cid(1), Kind.WANT_HAVE)
    alice.take_news(0.0)
    alice.tell(cid(2), Kind.WANT_BLOCK)
    alice.tell(cid(1), Kind.CANCEL)
    entries, _ = alice.take_news(1.0)
    assert [(entry.cid, entry.cancel) for entry in entries] == [(cid(1), True), (cid(2), False)]
    assert not alice.knows(cid(1))
    assert alice.knows(cid(2))


def test_after_a_broken_stream_the_whole_list_is_told_again(alice: Source) -> None:
    alice.tell(cid(1), Kind.WANT_BLOCK)
    alice.tell(cid(2), Kind.WANT_HAVE)
    alice.take_news(0.0)
    alice.tell(cid(2), Kind.CANCEL)
    alice.tell_all_again()
    entries, full = alice.take_news(1.0)
    assert full
    assert [entry.cid for entry in entries if not entry.cancel] == [cid(1)]
    assert alice.take_news(2.0) == ([], False)


def test_a_long_list_is_told_in_several_messages(alice: Source) -> None:
    for number in range(MAX_LISTED):
        alice.tell(cid(number), Kind.WANT_BLOCK)
    assert alice.list_room == 0
    lengths = []
    while alice.has_news:
        lengths.append(len(alice.take_news(0.0)[0]))
    assert sum(lengths) == MAX_LISTED
    assert max(lengths) <= 512
    assert alice.list_room == 0
    alice.struck(cid(0))
    assert alice.list_room == 1


def test_the_rate_is_measured_while_something_is_owed_and_not_in_between(alice: Source) -> None:
    now = 0.0
    for number in range(10):
        alice.ask(cid(number), MIB, 1, now)
        for _ in range(4):
            now += 0.05
            alice.receive_bytes(MIB // 4, now)
        alice.settle(cid(number), now)
        now += 10.0
    assert alice.rate == pytest.approx(5 * MIB, rel=0.1)


def test_what_is_owed_is_less_what_has_come_of_it(alice: Source) -> None:
    alice.ask(cid(1), MIB, 1, 0.0)
    alice.ask(cid(2), MIB, 1, 0.0)
    alice.receive_bytes(MIB // 2, 0.1)
    assert alice.due == 3 * MIB // 2
    assert alice.is_sending(cid(1))
    assert not alice.is_sending(cid(2))
    alice.receive_bytes(MIB // 2, 0.2)
    alice.settle(cid(1), 0.2)
    alice.end_block()
    assert alice.due == MIB
    assert not alice.is_sending(cid(2))


def test_an_unmeasured_peer_is_silent_for_a_second_before_it_counts_as_stalled(alice: Source) -> None:
    alice.ask(cid(1), MIB, 1, 5.0)
    assert not alice.check_stall(5.9)
    assert alice.check_stall(6.1)
    assert not alice.check_stall(6.2), "it is noticed once"


def test_patience_follows_the_pauses_a_peer_has_made(alice: Source) -> None:
    now = 0.0
    for number in range(5):
        alice.ask(cid(number), MIB, 1, now)
        now += 3.0
        alice.receive_bytes(MIB, now)
        alice.settle(cid(number), now)
        alice.deliver()
    alice.ask(cid(99), MIB, 1, now)
    assert not alice.check_stall(now + 2.0), "it has often been silent for three seconds"
    assert alice.check_stall(now + 7.0)


def test_the_farther_a_peer_the_longer_it_may_take(alice: Source) -> None:
    alice.tell(cid(0), Kind.WANT_HAVE)
    alice.take_news(0.0)
    alice.receive_answer(cid(0), 0.6)
    assert alice.latency == pytest.approx(0.6)
    alice.ask(cid(1), MIB, 1, 1.0)
    assert not alice.check_stall(1.0 + 3.0)
    assert alice.check_stall(1.0 + 3.5)


def test_an_answer_that_was_remembered_says_nothing_about_latency(alice: Source) -> None:
    for number, answered in enumerate([0.1, 60.0]):
        alice.tell(cid(number), Kind.WANT_HAVE)
        alice.take_news(0.0)
        alice.receive_answer(cid(number), answered)
    assert alice.latency == pytest.approx(0.1)


def test_a_have_that_follows_dont_have_says_nothing_about_latency(alice: Source) -> None:
    for number in range(20):
        alice.tell(cid(number), Kind.WANT_HAVE)
    alice.take_news(0.0)
    for number in range(20):
        alice.receive_answer(cid(number), 0.1)
    for number in range(20):
        alice.receive_answer(cid(number), 0.5 + 0.1 * number)
    assert alice.latency == pytest.approx(0.1), "the block came to it then"


def test_a_stalled_peer_is_tried_again_later_each_time_and_with_little(alice: Source) -> None:
    pauses = []
    now = 0.0
    for _ in range(3):
        alice.ask(cid(1), MIB, 1, now)
        now += 100.0
        assert alice.check_stall(now)
        alice.settle(cid(1), now)
        stalled_at = now
        while not alice.check_recovery(now):
            now += 0.1
        pauses.append(round(now - stalled_at))
        assert alice.window(4 * MIB) == 1
    assert pauses == [2, 4, 8]
    alice.deliver()
    assert alice.window(4 * MIB) > 1


def test_the_window_grows_with_rate_and_latency(alice: Source) -> None:
    assert alice.window(4 * MIB) == 4 * MIB
    alice.rate, alice.latency = 100.0 * MIB, 0.05
    assert alice.window(4 * MIB) == pytest.approx(30 * MIB)
    alice.rate = 0.1 * MIB
    assert alice.window(4 * MIB) < MIB


def test_what_was_asked_first_comes_first(alice: Source) -> None:
    alice.rate, alice.latency = 1.0 * MIB, 0.0
    alice.ask(cid(1), MIB, 1, 0.0)
    alice.ask(cid(2), MIB, 1, 0.0)
    assert alice.remaining(cid(1), 0.0) == pytest.approx(1.0)
    assert alice.remaining(cid(2), 0.0) == pytest.approx(2.0)
    assert alice.eta(MIB, 0.0) == pytest.approx(3.0)


def test_a_block_under_way_is_judged_by_its_own_pace(alice: Source) -> None:
    alice.rate, alice.latency = 0.05 * MIB, 0.0
    alice.ask(cid(1), MIB, 1, 0.0)
    alice.receive_bytes(1024, 4.0)
    assert alice.remaining(cid(1), 4.1) < 1.0, "it has just begun: nothing is known"
    alice.receive_bytes(MIB // 2, 5.0)
    assert alice.remaining(cid(1), 5.0) == pytest.approx(1.0, rel=0.05)


def test_a_trickle_is_recognised(alice: Source) -> None:
    alice.rate = 10.0 * MIB
    alice.ask(cid(1), MIB, 1, 0.0)
    for second in range(1, 20):
        alice.receive_bytes(1, float(second))
    assert alice.rate < 100_000
    assert alice.remaining(cid(1), 20.0) > 60


def test_a_peer_that_sends_nothing_loses_credit_with_time(alice: Source) -> None:
    alice.rate = 10.0 * MIB
    alice.ask(cid(1), MIB, 1, 0.0)
    assert alice.speed(0.1) > alice.speed(1.0) > alice.speed(10.0)


def test_what_came_of_a_block_whose_stream_broke_counts_no_more(alice: Source) -> None:
    alice.ask(cid(1), MIB, 1, 0.0)
    alice.receive_bytes(MIB // 2, 0.1)
    alice.end_block()
    assert alice.due == MIB
    assert not alice.is_sending(cid(1))
