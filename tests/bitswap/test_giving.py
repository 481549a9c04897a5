from ipfsreg.bitswap.giving import BATCH_BYTES, MAX_GIVES_PER_PEER, Give, Giving
from ipfsreg.bitswap.messages import Entry
from ipfsreg.bitswap.settings import MIB, BitswapSettings
from ipfsreg.bitswap.uplink import Uplink
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.testing.network import peer_of

BOB, CAROL = peer_of("bob"), peer_of("carol")


def cid(name: object) -> Cid:
    return Cid.of(RAW, str(name).encode())


class Shop:
    """A giving side over a store of given sizes."""

    def __init__(self, sizes: dict[Cid, int], **settings: int) -> None:
        self.sizes = sizes
        self.giving = Giving(self.sizes.get, BitswapSettings(**settings))

    def have_carried(self, rate: int) -> None:
        """Let the first second have passed, in which the link carried *rate* bytes."""
        for quarter in range(4):
            self.giving._uplink.record(rate // 4, quarter / 4)

    def want(self, who: str, *names: object, now: float = 0.0, priority: int = 1) -> None:
        entries = [Entry(cid(name), priority) for name in names]
        self.giving.receive_wants(peer_of(who), entries, False, now)

    def grants(self, now: float = 0.0) -> list[tuple[str, list[Cid]]]:
        return [(give.peer.short, give.cids) for give in self.gives(now)]

    def gives(self, now: float = 0.0) -> list[Give]:
        return self.giving.grants(now)


def large(*names: object) -> dict[Cid, int]:
    return {cid(name): MIB for name in names}


def test_small_blocks_travel_together() -> None:
    shop = Shop({cid(number): 1000 for number in range(1000)})
    shop.want("bob", *range(1000))
    sizes = []
    while gives := shop.gives():
        assert len(gives) == 1
        assert not gives[0].large
        sizes.append(len(gives[0].wants))
        shop.giving.given(gives[0], 0.0)
    assert sizes == [263, 263, 263, 211]
    assert BATCH_BYTES <= 263 * 1000


def test_small_blocks_need_no_upload_slot() -> None:
    shop = Shop({**large(*range(10)), cid("small"): 100}, upload_slots=1)
    for number in range(10):
        shop.want(f"peer {number}", number)
    assert len(shop.gives()) == 1
    shop.want("bob", "small")
    assert shop.grants() == [(BOB.short, [cid("small")])]


def test_a_peer_gets_a_few_large_blocks_at_a_time() -> None:
    shop = Shop(large(*range(10)))
    shop.have_carried(100 * MIB)
    shop.want("bob", *range(10), now=1.0)
    gives = shop.gives(1.0)
    assert [give.cids for give in gives] == [[cid(number)] for number in range(MAX_GIVES_PER_PEER)]
    assert shop.gives(1.0) == []
    shop.giving.given(gives[0], 1.1)
    assert [give.cids for give in shop.gives(1.1)] == [[cid(MAX_GIVES_PER_PEER)]]


def test_slots_go_round_before_anybody_has_two() -> None:
    shop = Shop(large(*"abcdefgh"), upload_slots=4)
    shop.have_carried(100 * MIB)
    for who, names in {"bob": "abcd", "carol": "efgh", "dave": "abcd", "erin": "efgh"}.items():
        shop.want(who, *names, now=1.0)
    # The first to ask finds everything free; all others wait for nobody.
    peers = {give.peer for give in shop.gives(1.0)}
    assert peers == {peer_of(name) for name in ("bob", "carol", "dave", "erin")}


def test_what_was_given_least_goes_first() -> None:
    shop = Shop(large(*"abc"), upload_slots=1)
    shop.want("bob", "a")
    (first,) = shop.gives()
    shop.want("carol", "a")
    shop.want("dave", "b")
    shop.giving.given(first, 0.1)
    (second,) = shop.gives(0.1)
    assert (second.peer, second.cids) == (peer_of("dave"), [cid("b")]), "carol can have it from bob soon"
    shop.giving.given(second, 0.2)
    assert shop.grants(0.2) == [(CAROL.short, [cid("a")])]


def test_a_peer_that_wants_what_many_have_is_not_passed_over_for_ever() -> None:
    shop = Shop(large("popular", *range(100)), upload_slots=1)
    for number in range(5):
        shop.want(f"early {number}", "popular")
    for number in range(5):
        (give,) = shop.gives(number / 10)
        shop.giving.given(give, number / 10)
    shop.want("bob", "popular", now=1.0)
    served = None
    for turn in range(100):
        now = 1.0 + turn
        shop.want(f"other {turn}", turn, now=now)
        (give,) = shop.gives(now)
        shop.giving.given(give, now + 0.5)
        if give.peer == BOB:
            served = now
            break
    assert served is not None
    assert served < 30


def test_urgent_wants_of_a_peer_come_first() -> None:
    shop = Shop(large("a", "b", "c"), upload_slots=1)
    shop.want("zoe", "a")
    shop.gives()
    shop.want("bob", "b", priority=1)
    shop.want("bob", "c", priority=100)
    shop.giving.lost(peer_of("zoe"))
    assert [give.cids for give in shop.gives(1.0)][:1] == [[cid("c")]]


def test_a_cancel_is_in_time_until_the_block_is_sent() -> None:
    shop = Shop(large("a"))
    shop.want("bob", "a")
    (give,) = shop.gives()
    assert shop.giving.is_wanted(give, cid("a"))
    shop.giving.receive_wants(BOB, [Entry(cid("a"), cancel=True)], False, 0.0)
    assert not shop.giving.is_wanted(give, cid("a"))


def test_who_waits_for_a_block_gets_it_when_it_arrives() -> None:
    shop = Shop({})
    shop.want("bob", "a")
    shop.want("carol", "b")
    assert shop.gives() == []
    shop.sizes[cid("a")] = MIB
    assert shop.giving.receive_arrivals([cid("a").multihash], 1.0) == [BOB]
    assert shop.grants(1.0) == [(BOB.short, [cid("a")])]


def test_peers_that_take_nothing_do_not_hold_slots() -> None:
    shop = Shop(large(*range(20)), upload_slots=4)
    for number in range(8):
        shop.want(f"stuck {number}", number)
    assert len(shop.gives()) >= 2
    shop.want("bob", 10, 11, now=0.5)
    granted: list[Give] = []
    for turn in range(40):
        granted += shop.gives(0.5 + turn / 10)
    assert BOB in {give.peer for give in granted}


def test_a_full_link_is_not_divided_further() -> None:
    shop = Shop(large(*range(200)), upload_slots=4)
    for number in range(15):
        shop.want(f"peer {number}", *range(number * 10, number * 10 + 10))
    under_way: dict[Give, int] = {}
    most = 0
    now = 0.0
    # The link takes 64 KiB every 10 ms, shared by all that are under way.
    for _ in range(1000):
        now += 0.01
        under_way.update(dict.fromkeys(shop.gives(now), 0))
        most = max(most, len(under_way))
        for give in list(under_way):
            part = 65536 // len(under_way)
            under_way[give] += part
            shop.giving.took(give, part, now)
            if under_way[give] >= give.size:
                del under_way[give]
                shop.giving.given(give, now)
    assert most <= 8, "of fifteen that wait"


def test_many_thin_peers_fill_a_wide_link() -> None:
    shop = Shop(large(*range(400)), upload_slots=4)
    for number in range(20):
        shop.want(f"peer {number}", *range(number * 20, number * 20 + 20))
    under_way: dict[Give, int] = {}
    now = 0.0
    # Each of them takes 5 KiB every 10 ms whatever the others do.
    for _ in range(6000):
        now += 0.01
        under_way.update(dict.fromkeys(shop.gives(now), 0))
        busy = set()
        for give in list(under_way):
            if give.peer in busy:
                continue
            busy.add(give.peer)
            under_way[give] += 5120
            shop.giving.took(give, 5120, now)
            if under_way[give] >= give.size:
                del under_way[give]
                shop.giving.given(give, now)
        if sum(shop.giving._times_given(cid(number)) for number in range(400)) == 400:
            break
    assert now < 60, "four at a time would take 200 seconds, all twenty at a time 40"


def test_a_limit_on_uploads_is_kept() -> None:
    shop = Shop(large(*range(100)), upload_bytes_per_s=2 * MIB)
    shop.want("bob", *range(100))
    sent = 0
    for turn in range(101):
        now = turn / 10
        for give in shop.gives(now):
            sent += give.size
            shop.giving.given(give, now)
    assert 18 * MIB <= sent <= 23 * MIB


def test_when_more_may_be_granted_without_news_there_is_a_deadline() -> None:
    shop = Shop(large("a", "b"), upload_slots=1)
    assert shop.giving.next_deadline(1.0) is None
    shop.want("bob", "a")
    shop.want("carol", "b")
    (give,) = shop.gives()
    deadline = shop.giving.next_deadline(1.0)
    assert deadline is not None
    assert 1.0 < deadline < 1.5
    shop.giving.given(give, 1.0)
    assert len(shop.gives(1.0)) == 1
    assert shop.giving.next_deadline(1.0) is None


def test_a_peer_that_leaves_in_the_middle_leaves_nothing_behind() -> None:
    shop = Shop(large(*range(4)), total_in_flight_bytes=2 * MIB)
    shop.want("bob", 0, 1)
    gives = shop.gives()
    assert len(gives) == 2
    shop.giving.lost(BOB)
    shop.want("bob", 2, 3)
    assert shop.gives() == [], "what was under way still counts"
    for give in gives:
        shop.giving.given(give, 0.0)
    assert [give.cids for give in shop.gives()] == [[cid(2)], [cid(3)]]


def test_what_all_peers_are_sent_at_a_time_is_bounded() -> None:
    shop = Shop({cid(number): 30_000 for number in range(1000)}, total_in_flight_bytes=MIB)
    for number in range(100):
        shop.want(f"peer {number}", *range(number * 10, number * 10 + 10))
    assert sum(give.size for give in shop.gives()) <= MIB + BATCH_BYTES + 30_000


def test_the_uplink_knows_what_it_carries_and_what_it_has_carried() -> None:
    link = Uplink()
    for turn in range(200):
        link.record(1000, turn / 100)
    link.pass_to(2.0)
    assert abs(link.rate - 100_000) < 5000
    assert abs(link.capacity - 100_000) < 5000
    link.pass_to(10.0)
    assert link.rate == 0
    assert link.capacity > 50_000
    link.pass_to(1000.0)
    assert link.rate == 0
