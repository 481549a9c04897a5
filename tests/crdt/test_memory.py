from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ipfsreg.crdt.interface import Delete, KeyChanged, Names, Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.testing.names_checks import check_names


@asynccontextmanager
async def open_memory_names() -> AsyncIterator[Names]:
    yield MemoryNames()


async def test_memory_names_keep_the_promises() -> None:
    await check_names(open_memory_names)


async def test_what_a_peer_wrote_is_news() -> None:
    names = MemoryNames()
    async with names.changes() as changes:
        names.receive([Put("/a", b"1"), Delete("/never")])
        assert await anext(changes) == KeyChanged("/a", None, b"1")
