from dataclasses import asdict

from trio.testing import MockClock

from ipfsreg.bitswap.engine import Engine
from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.blockstore.memory import MemoryBlockstore
from ipfsreg.ipld.block import Block
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.network import MemorySwarm, peer_of

BLOCKS = [Block.of(bytes([number]) * 1000) for number in range(5)]


async def test_what_was_moved_is_counted_at_both_ends(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    alices, bobs = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with open_bitswap(alices, MemoryBlockstore(BLOCKS)) as alice, open_bitswap(bobs, MemoryBlockstore()) as bob:
        await bobs.connect(PeerInfo(alices.peer_id))
        fetched = [block async for block in bob.fetch([block.cid for block in BLOCKS], first=[peer_of("alice")])]
        assert len(fetched) == 5
        assert bob.status() == {
            "sessions": 0,
            "wants": 0,
            "blocks_received": 5,
            "bytes_received": 5000,
            "duplicate_blocks": 0,
            "duplicate_bytes": 0,
            "blocks_sent": 0,
            "bytes_sent": 0,
        }
        assert (alice.status()["blocks_sent"], alice.status()["bytes_sent"]) == (5, 5000)


def test_a_block_that_comes_twice_counts_once_for_two_sessions_and_then_as_a_duplicate() -> None:
    alice, block = peer_of("alice"), BLOCKS[0]
    engine = Engine(peer_of("bob"), lambda cid: None, lambda: 0.5, BitswapSettings())
    engine.connected(alice, 0.0)
    for _ in range(2):
        session, _ = engine.open_session(None, [alice], spread=True, block_bytes=1000, now=0.0)
        engine.want(session, [block.cid], 0.0)
    for moment in (1.0, 2.0):
        engine.receive_block(alice, block, moment)
    counted = asdict(engine.counters)
    assert (counted["blocks_received"], counted["bytes_received"]) == (1, 1000)
    assert (counted["duplicate_blocks"], counted["duplicate_bytes"]) == (1, 1000)
