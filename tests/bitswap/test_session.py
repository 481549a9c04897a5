import random

from ipfsreg.bitswap.session import ALONE_AFTER_BLOCKS, UNMEASURED_ASKS, WINDOW_BLOCKS, Goal, Session, salt_of
from ipfsreg.bitswap.settings import MIB
from ipfsreg.bitswap.source import Source
from ipfsreg.ipld.block import Block
from ipfsreg.testing.network import peer_of

BLOCKS = [Block.of(b"block %d" % number) for number in range(300)]


def goals(count: int, *, seed: int = 0) -> list[Goal]:
    dice = random.Random(seed)
    return [Goal(block.cid, dice.random()) for block in BLOCKS[:count]]


def session(name: str = "bob", *, spread: bool = True) -> Session:
    return Session(0, salt_of(peer_of(name)), None, spread=spread, block_bytes=MIB, now=0.0)


def source(name: str) -> Source:
    return Source(peer_of(name))


def ask_all(one: Session, whom: Source, count: int) -> list[Goal]:
    asked = []
    for _ in range(count):
        goal = one.pick(whom, 0.0)
        if goal is None:
            break
        goal.asked = whom
        one.note_asked(goal)
        asked.append(goal)
    return asked


def test_the_window_moves_along_the_callers_order() -> None:
    bob, wanted = session(), goals(300)
    assert bob.add(wanted) == wanted[:WINDOW_BLOCKS]
    for block in BLOCKS[:10]:
        bob.deliver(block, None)
    assert bob.refill() == wanted[WINDOW_BLOCKS : WINDOW_BLOCKS + 10]
    assert set(bob.window()) == set(wanted[10 : WINDOW_BLOCKS + 10])


def test_two_nodes_draw_different_orders_from_the_same_window() -> None:
    orders = []
    for seed in range(2):
        bob = session()
        bob.add(goals(50, seed=seed))
        alice = source("alice")
        bob.join(alice, full=True)
        orders.append([goal.cid for goal in ask_all(bob, alice, 50)])
    assert set(orders[0]) == set(orders[1])
    assert orders[0] != orders[1]


def test_a_session_that_does_not_spread_asks_in_order() -> None:
    bob, wanted = session(spread=False), goals(20)
    bob.add(wanted)
    alice = source("alice")
    bob.join(alice, full=True)
    assert ask_all(bob, alice, 20) == wanted


def test_who_stays_alone_asks_in_order_after_a_while() -> None:
    bob, wanted = session(), goals(100)
    bob.add(wanted)
    alice = source("alice")
    bob.join(alice, full=True)
    for goal in ask_all(bob, alice, ALONE_AFTER_BLOCKS):
        bob.deliver(next(block for block in BLOCKS if block.cid == goal.cid), alice)
    left = [goal for goal in wanted if goal.cid in bob.missing]
    assert ask_all(bob, alice, 10) == left[:10]
    bob.join(source("carol"), full=False)
    assert ask_all(bob, alice, 10) != left[10:20]


def test_the_rarest_is_asked_first() -> None:
    bob, wanted = session(), goals(3)
    bob.add(wanted)
    alice, carol, dave = source("alice"), source("carol"), source("dave")
    bob.join(alice, full=True)
    bob.join(carol, full=False)
    bob.join(dave, full=False)
    wanted[0].have = {carol, dave}
    wanted[2].have = {carol}
    assert ask_all(bob, alice, 3) == [wanted[1], wanted[2], wanted[0]]


def test_what_full_peers_have_makes_nothing_less_rare() -> None:
    bob, wanted = session(), goals(2)
    bob.add(wanted)
    alice, carol = source("alice"), source("carol")
    bob.join(alice, full=True)
    bob.join(carol, full=False)
    wanted[0].have = {alice}
    wanted[1].have = {carol}
    assert bob.copies(wanted[0]) == 0
    assert bob.copies(wanted[1]) == 1


def test_a_partial_peer_is_asked_only_for_what_it_has() -> None:
    bob, wanted = session(), goals(5)
    bob.add(wanted)
    carol = source("carol")
    bob.join(carol, full=False)
    wanted[3].have.add(carol)
    assert ask_all(bob, carol, 5) == [wanted[3]]


def test_a_full_peer_is_not_asked_again_for_what_it_lacks() -> None:
    bob, wanted = session(), goals(3)
    bob.add(wanted)
    alice = source("alice")
    bob.join(alice, full=True)
    wanted[1].lacks.add(alice)
    assert set(ask_all(bob, alice, 3)) == {wanted[0], wanted[2]}


def test_a_crowd_divides_a_blob_at_its_holder_without_a_word() -> None:
    names = [f"peer {number}" for number in range(8)]
    first_asked = []
    for name in names:
        one = session(name)
        one.add(goals(64, seed=hash(name)))
        alice = source("alice")
        one.join(alice, full=True)
        for other in names:
            if other != name:
                one.join(source(other), full=False)
        first_asked += [goal.cid for goal in ask_all(one, alice, 3) if one.rank(goal) == 0]
    assert len(first_asked) > 16, "most have three that are theirs first"
    assert len(set(first_asked)) == len(first_asked), "and no two ask for the same"


def test_what_a_reader_waits_for_goes_first_in_its_order() -> None:
    bob, wanted = session(), goals(300)
    bob.add(wanted)
    alice = source("alice")
    bob.join(alice, full=True)
    urgent = [wanted[250], wanted[7], wanted[200]]
    entered = bob.urge([goal.cid for goal in urgent])
    assert entered == [wanted[250], wanted[200]], "also from beyond the window"
    assert bob.is_urgent
    assert ask_all(bob, alice, 3) == urgent
    assert not bob.is_urgent


def test_who_is_urged_for_replaces_who_was() -> None:
    bob, wanted = session(), goals(10)
    bob.add(wanted)
    bob.urge([wanted[5].cid])
    bob.urge([wanted[6].cid])
    assert list(bob.urgent) == [wanted[6].cid]


def test_urgent_blocks_are_left_to_peers_that_are_much_quicker() -> None:
    bob, wanted = session(), goals(10)
    bob.add(wanted)
    slow, fast = source("slow"), source("fast")
    slow.rate, fast.rate = 0.1 * MIB, 10.0 * MIB
    bob.join(slow, full=True)
    bob.join(fast, full=True)
    bob.urge([goal.cid for goal in wanted[:2]])
    picked = bob.pick(slow, 0.0)
    assert picked is not None
    assert picked not in wanted[:2]
    assert bob.pick(fast, 0.0) is wanted[0]


def test_an_idle_peer_takes_over_what_is_late_elsewhere() -> None:
    bob, wanted = session(), goals(4)
    bob.add(wanted)
    slow, fast = source("slow"), source("fast")
    slow.rate, fast.rate = 0.1 * MIB, 10.0 * MIB
    bob.join(slow, full=True)
    bob.join(fast, full=True)
    for goal in wanted:
        goal.asked = slow
        bob.note_asked(goal)
        slow.ask(goal.cid, MIB, 1, 0.0)
    assert bob.pick_late(fast, 0.0) is wanted[3], "the one that would come last"
    assert bob.pick_late(slow, 0.0) is None


def test_what_is_on_its_way_is_not_taken_over_for_a_small_gain() -> None:
    bob, wanted = session(), goals(1)
    bob.add(wanted)
    carol, dave = source("carol"), source("dave")
    carol.rate, dave.rate = 1.0 * MIB, 1.5 * MIB
    bob.join(carol, full=True)
    bob.join(dave, full=True)
    wanted[0].asked = carol
    bob.note_asked(wanted[0])
    carol.ask(wanted[0].cid, MIB, 1, 0.0)
    carol.receive_bytes(MIB // 10, 0.5)
    assert bob.pick_late(dave, 0.6) is None


def test_orphans_are_what_nobody_can_be_asked_for() -> None:
    bob, wanted = session(), goals(4)
    bob.add(wanted)
    assert bob.orphans(10) == wanted
    alice, carol = source("alice"), source("carol")
    bob.join(alice, full=True)
    bob.join(carol, full=False)
    wanted[0].lacks.add(alice)
    wanted[1].lacks.add(alice)
    wanted[1].have.add(carol)
    assert bob.orphans(10) == [wanted[0]]
    alice.stalled = True
    assert bob.orphans(10) == [wanted[0], wanted[2], wanted[3]]
    # A stalled peer is still asked for them, one at a time: there is nobody else.
    assert bob.pick(alice, 0.0) in wanted[2:]


def test_what_is_asked_of_a_stalled_peer_is_an_orphan_too() -> None:
    bob, wanted = session(), goals(1)
    bob.add(wanted)
    alice = source("alice")
    bob.join(alice, full=True)
    ask_all(bob, alice, 1)
    assert bob.orphans(10) == []
    alice.stalled = True
    assert bob.orphans(10) == wanted


def test_the_size_of_blocks_is_learnt() -> None:
    bob = session()
    bob.add(goals(100))
    assert bob.max_asks == UNMEASURED_ASKS
    alice = source("alice")
    bob.join(alice, full=True)
    for _ in range(2):
        ask_all(bob, alice, UNMEASURED_ASKS)
    assert bob.is_guessing_too_much
    bob.deliver(BLOCKS[0], alice)
    assert bob.block_bytes == 256, "no smaller than what a question costs"
    assert bob.max_asks > UNMEASURED_ASKS
    assert not bob.is_guessing_too_much


def test_what_came_is_counted_for_its_giver() -> None:
    bob = session()
    bob.add(goals(3))
    alice = source("alice")
    bob.deliver(BLOCKS[0], alice)
    bob.deliver(BLOCKS[1], None)
    assert bob.stats.by_peer == {alice.peer: len(BLOCKS[0].data)}
    assert bob.stats.blocks == 1
    assert bob.held == len(BLOCKS[0].data) + len(BLOCKS[1].data)
    assert list(bob.missing) == [BLOCKS[2].cid]
