import pytest

from ipfsreg.errors import BlockCorrupt
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid


def test_a_block_of_ours_is_named_by_its_hash() -> None:
    block = Block.of(b"abc")
    assert block.cid == Cid.of(RAW, b"abc")
    assert Block.of(b"abc", DAG_PB).cid == Cid.of(DAG_PB, b"abc")
    assert Block.verified(block.cid, memoryview(b"abc")) == block


def test_bytes_that_do_not_hash_to_their_cid_never_become_a_block() -> None:
    with pytest.raises(BlockCorrupt):
        Block.verified(Cid.of(RAW, b"abc"), b"abd")
    with pytest.raises(BlockCorrupt):
        Block.verified(Cid.of(RAW, b"abc"), b"")
