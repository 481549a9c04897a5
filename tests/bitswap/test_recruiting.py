import random

from ipfsreg.bitswap.recruiting import MAX_OFFENCES, MAX_SOURCES, NEAR_S, SHUNNED_S, FindProviders, Recruiting, TryPeers
from ipfsreg.bitswap.session import Session, salt_of
from ipfsreg.bitswap.settings import MIB, BitswapSettings
from ipfsreg.bitswap.source import MAX_LISTED, Source
from ipfsreg.bitswap.wanted import Wanted
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import peer_of

ROOT = Cid.of(DAG_PB, b"root")
CIDS = [Cid.of(RAW, b"%d" % number) for number in range(200)]


class Club:
    def __init__(self) -> None:
        self.wanted = Wanted(random.Random(0).random)
        self.recruiting = Recruiting(self.wanted, BitswapSettings(patience_s=1.0, search_again_s=10.0))

    def session(self, root: Cid | None = ROOT, *, spread: bool = True, wants: int = 3) -> Session:
        number = len(self.wanted.sessions)
        session = Session(number, salt_of(peer_of("bob")), root, spread=spread, block_bytes=MIB, now=0.0)
        self.wanted.sessions[number] = session
        if root is not None:
            self.wanted.roots.setdefault(root, {})[session] = None
        session.add([self.wanted.goal(session, cid) for cid in CIDS[:wants]])
        return session

    def meet(self, name: str) -> Source:
        source = self.wanted.sources[peer_of(name)] = Source(peer_of(name))
        self.recruiting.welcome(source, 0.0)
        return source


def questions(source: Source) -> set[Cid]:
    asked = set()
    while source.has_news:
        entries, _ = source.take_news(0.0)
        assert all(entry.want_have or entry.cancel for entry in entries)
        asked |= {entry.cid for entry in entries}
    return asked


def test_everybody_is_asked_about_the_root_of_a_session_that_spreads() -> None:
    club = Club()
    alice = club.meet("alice")
    session = club.session()
    club.recruiting.announce(session, 0.0)
    carol = club.meet("carol")
    assert questions(alice) == questions(carol) == {ROOT}


def test_nobody_is_bothered_by_a_session_that_does_not() -> None:
    club = Club()
    alice = club.meet("alice")
    session = club.session(None, spread=False)
    club.recruiting.announce(session, 0.0)
    carol = club.meet("carol")
    assert not alice.has_news
    assert not carol.has_news


def test_a_hinted_peer_joins_as_full_when_it_comes() -> None:
    club = Club()
    session = club.session()
    session.hints.add(peer_of("alice"))
    alice = club.meet("alice")
    assert session.sources == {alice: True}


def test_a_session_has_a_bounded_number_of_peers() -> None:
    club = Club()
    session = club.session()
    for number in range(2 * MAX_SOURCES):
        club.recruiting.join(session, club.meet(f"peer {number}"), full=False, now=0.0)
    assert len(session.sources) == MAX_SOURCES


def test_a_peer_is_never_told_more_than_it_need_remember() -> None:
    club = Club()
    alice = club.meet("alice")
    for _ in range(20):
        session = club.session(wants=100)
        club.recruiting.join(session, alice, full=False, now=0.0)
    assert alice.list_room >= 0
    assert len(questions(alice)) <= MAX_LISTED


def test_a_search_begins_with_the_connected_and_goes_on_with_content_routing() -> None:
    club = Club()
    alice = club.meet("alice")
    session = club.session(None, spread=False)
    assert club.recruiting.consider_search(session, 5.0) is None
    assert questions(alice) == set(CIDS[:3])
    assert club.recruiting.consider_search(session, 5.9) is None
    assert club.recruiting.consider_search(session, 6.0) == FindProviders(session.number, CIDS[0])
    assert questions(alice) == set(CIDS[:3]), "and they are asked again: they may have forgotten"
    assert club.recruiting.consider_search(session, 7.9) is None
    assert club.recruiting.consider_search(session, 8.0) is not None


def test_a_search_ends_when_somebody_can_be_asked() -> None:
    club = Club()
    session = club.session()
    club.recruiting.consider_search(session, 0.0)
    assert session.starving_since is not None
    club.recruiting.join(session, club.meet("alice"), full=True, now=0.5)
    assert club.recruiting.consider_search(session, 9.0) is None
    assert session.starving_since is None
    assert session.next_search is None


def test_who_is_shunned_takes_part_in_nothing_for_a_while() -> None:
    club = Club()
    session = club.session()
    alice = club.meet("alice")
    questions(alice)
    club.recruiting.shun(alice.peer, 0.0)
    club.recruiting.join(session, alice, full=True, now=1.0)
    club.recruiting.announce(session, 1.0)
    assert not session.sources
    assert not alice.has_news
    club.recruiting.join(session, alice, full=True, now=SHUNNED_S + 1)
    assert session.sources == {alice: True}


def test_the_shunned_are_remembered_in_bounded_number() -> None:
    club = Club()
    peers = [PeerId(b"\x00\x04" + number.to_bytes(4, "big")) for number in range(3000)]
    for peer in peers:
        club.recruiting.shun(peer, 0.0)
    assert sum(club.recruiting.is_shunned(peer, 1.0) for peer in peers) == 1024
    assert club.recruiting.is_shunned(peers[-1], 1.0)


def test_a_late_peer_is_no_liar_before_it_has_had_time() -> None:
    club = Club()
    alice = club.meet("alice")
    for second in range(20):
        alice.break_promise(float(second))
    assert not club.recruiting.judge(alice, 19.0)
    assert club.recruiting.judge(alice, 21.0)
    alice.deliver()
    assert not club.recruiting.judge(alice, 30.0)
    assert MAX_OFFENCES > 1, "one wrong block may be a disk that rots"


def test_who_had_it_once_is_dialled_when_nobody_near_has_it_and_before_content_routing_is_asked() -> None:
    club = Club()
    session = club.session()
    session.hopes = (peer_of("carol"),)
    assert club.recruiting.consider_search(session, 5.0) is None
    assert club.recruiting.consider_search(session, 5.0 + NEAR_S) == TryPeers((peer_of("carol"),))
    assert club.recruiting.consider_search(session, 5.9) is None
    assert club.recruiting.consider_search(session, 6.0) == FindProviders(session.number, ROOT)
    assert club.recruiting.consider_search(session, 8.0) == FindProviders(session.number, ROOT), "dialled once"


def test_who_had_it_once_is_left_alone_where_somebody_near_has_it() -> None:
    club = Club()
    session = club.session()
    session.hopes = (peer_of("carol"),)
    club.recruiting.consider_search(session, 5.0)
    club.recruiting.join(session, club.meet("alice"), full=True, now=5.05)
    assert club.recruiting.consider_search(session, 9.0) is None
    assert session.next_search is None
