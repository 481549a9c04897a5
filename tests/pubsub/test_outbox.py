"""What is sent first, what gives way, and what never does."""

from __future__ import annotations

from ipfsreg.ipld.varint import decode_varint
from ipfsreg.pubsub.events import Urgency
from ipfsreg.pubsub.messages import Rpc, Subscription, decode_rpc, encode_rpc
from ipfsreg.pubsub.outbox import MAX_JOINED_BYTES, Frame, Outbox, OutboxSettings, pack
from ipfsreg.testing.gossip import numbered_peer, unsigned_message

CONTROL, OWN, FORWARD, GOSSIP = Urgency.CONTROL, Urgency.OWN, Urgency.FORWARD, Urgency.GOSSIP

SMALL = OutboxSettings(
    forward_frames=2,
    forward_bytes=100,
    gossip_frames=1,
    gossip_bytes=100,
    kept_soft_frames=4,
    kept_soft_bytes=400,
    kept_hard_frames=8,
    kept_hard_bytes=800,
)


def frame(urgency: Urgency, number: int = 0, size: int = 10) -> Frame:
    return Frame(bytes((number,)) * size, urgency)


def test_control_leaves_before_own_messages_and_these_before_those_of_others() -> None:
    outbox = Outbox(OutboxSettings())
    assert not outbox
    for urgency in (GOSSIP, FORWARD, OWN, CONTROL):
        assert outbox.put(frame(urgency, 1))
        assert outbox.put(frame(urgency, 2))
    assert outbox
    taken = outbox.take(1000)
    assert [each.urgency for each in taken] == [CONTROL, CONTROL, OWN, OWN, FORWARD, FORWARD, GOSSIP, GOSSIP]
    assert [each.data[0] for each in taken] == [1, 2] * 4
    assert not outbox


def test_a_batch_stays_below_its_size_but_a_large_frame_leaves_alone() -> None:
    outbox = Outbox(OutboxSettings())
    for size in (5000, 600, 300, 200):
        outbox.put(frame(OWN, size=size))
    assert [[len(each.data) for each in outbox.take(1000)] for _ in range(4)] == [[5000], [600, 300], [200], []]


def test_only_what_others_said_finds_no_room() -> None:
    outbox = Outbox(SMALL)
    assert [outbox.put(frame(FORWARD)) for _ in range(3)] == [True, True, False]
    assert [outbox.put(frame(GOSSIP)) for _ in range(2)] == [True, False]
    assert all(outbox.put(frame(urgency)) for urgency in (OWN, CONTROL) for _ in range(20))
    outbox.take(10_000)
    assert [outbox.put(frame(FORWARD, size=100)) for _ in range(2)] == [True, False]


def test_too_much_that_must_not_be_dropped_makes_it_crowded_and_then_stuck() -> None:
    for urgency in (OWN, CONTROL):
        outbox = Outbox(SMALL)
        states = []
        for _ in range(8):
            outbox.put(frame(urgency))
            states.append((outbox.is_crowded, outbox.is_stuck))
        assert states == [(False, False)] * 3 + [(True, False)] * 4 + [(True, True)]
    outbox.put(frame(OWN, size=900))
    assert outbox.is_stuck


def test_after_a_broken_stream_our_own_messages_are_sent_again_in_order() -> None:
    outbox = Outbox(SMALL)
    for number, urgency in enumerate((CONTROL, OWN, FORWARD, OWN)):
        outbox.put(frame(urgency, number))
    unsent = outbox.take(20)
    assert [each.urgency for each in unsent] == [CONTROL, OWN]
    outbox.restart(unsent)
    assert [(each.urgency, each.data[0]) for each in outbox.take(1000)] == [(OWN, 1), (OWN, 3)]


def test_what_the_peer_turns_out_to_have_is_not_forwarded() -> None:
    outbox = Outbox(SMALL)
    first, second = (unsigned_message(numbered_peer(1), number, "t", b"") for number in (1, 2))
    for message in (first, second):
        assert outbox.put(Frame(b"x" * 10, FORWARD, message))
    outbox.put(Frame(b"x" * 10, OWN, first))
    outbox.cancel(first.id)
    outbox.cancel(b"unknown")
    assert outbox.put(Frame(b"y" * 10, FORWARD, second))
    assert [(each.urgency, each.message) for each in outbox.take(1000)] == [(OWN, first), (FORWARD, second)]


def test_a_stuck_outbox_does_not_begin_stuck_again_and_keeps_the_newest() -> None:
    outbox = Outbox(SMALL)
    for number in range(20):
        outbox.put(frame(OWN, number))
    outbox.restart([])
    assert not outbox.is_stuck
    kept = [each.data[0] for each in outbox.take(1000)]
    assert kept
    assert kept == list(range(20))[-len(kept) :]


def unpack(data: bytes) -> list[Rpc]:
    found, position = [], 0
    while position < len(data):
        length, start = decode_varint(data, position)
        position = start + length
        found.append(decode_rpc(data[start:position]))
    return found


def test_messages_side_by_side_travel_as_one_rpc_and_nothing_else_is_joined() -> None:
    first, second, third = (unsigned_message(numbered_peer(1), number, "t", b"said") for number in (1, 2, 3))
    hello = Rpc(subscriptions=(Subscription(True, "t"),))
    frames = [
        Frame(encode_rpc(hello), CONTROL),
        Frame(encode_rpc(Rpc(messages=(first,))), OWN, first),
        Frame(encode_rpc(Rpc(messages=(second,))), FORWARD, second),
        Frame(encode_rpc(hello), GOSSIP),
        Frame(encode_rpc(hello), GOSSIP),
        Frame(encode_rpc(Rpc(messages=(third,))), FORWARD, third),
    ]
    together = Rpc(messages=(first, second))
    assert unpack(pack(frames)) == [hello, together, hello, hello, Rpc(messages=(third,))]
    assert pack([]) == b""


def test_joined_messages_stay_small_and_a_large_one_travels_alone() -> None:
    sizes = (MAX_JOINED_BYTES // 2, MAX_JOINED_BYTES // 4, MAX_JOINED_BYTES // 2, 3 * MAX_JOINED_BYTES, 1)
    messages = [unsigned_message(numbered_peer(1), size, "t", bytes(size)) for size in sizes]
    frames = [Frame(encode_rpc(Rpc(messages=(message,))), FORWARD, message) for message in messages]
    assert [len(rpc.messages) for rpc in unpack(pack(frames))] == [2, 1, 1, 1]
    assert [message for rpc in unpack(pack(frames)) for message in rpc.messages] == messages
