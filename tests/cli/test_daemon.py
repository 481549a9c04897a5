"""`ipfsreg daemon`: signals, and what becomes of a part that fails."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from ipfsreg.cli import daemon
from ipfsreg.config import Config, load_config
from ipfsreg.errors import AlreadyRunning, StoreError

OpenNode = Callable[[Config], AbstractAsyncContextManager[object]]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    values = {"NODE_DATASTORE_PATH": str(tmp_path / "data"), "P2P_PROTECTOR_KEY": "ab" * 32}
    return load_config(None, {f"IPFSREG_{name}": value for name, value in values.items()})


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[OpenNode], None]:
    """Runs the daemon with another node in it."""
    monkeypatch.setattr(daemon, "_set_up_log", lambda level: None)

    def run(open_node: OpenNode) -> None:
        monkeypatch.setattr(daemon, "open_node", open_node)
        daemon.run(config)

    return run


def signal_ourselves(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_running_node_in_order(run: Callable[[OpenNode], None], number: int) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        signal_ourselves(number)
        yield
        await trio.lowlevel.checkpoint()
        told.append("finished what was in flight")

    run(open_node)
    assert told == ["finished what was in flight"]


def test_a_signal_during_the_start_does_not_wait_for_its_end(run: Callable[[OpenNode], None]) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        try:
            signal_ourselves(signal.SIGTERM)
            await trio.sleep_forever()
            yield
        finally:
            closed.append("what was open")

    run(open_node)
    assert closed == ["what was open"]


def test_a_second_signal_does_not_wait_for_what_is_in_flight(run: Callable[[OpenNode], None]) -> None:
    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        signal_ourselves(signal.SIGTERM)
        yield
        signal_ourselves(signal.SIGTERM)
        await trio.sleep_forever()

    run(open_node)


def test_sighup_reads_again_and_ends_nothing(run: Callable[[OpenNode], None]) -> None:
    told: list[str] = []

    class Reloads:
        async def reload(self) -> None:
            told.append("reloaded")
            signal_ourselves(signal.SIGTERM)

    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[object]:
        signal_ourselves(signal.SIGHUP)
        yield SimpleNamespace(reloads=Reloads())
        told.append("stopped in order")

    run(open_node)
    assert told == ["reloaded", "stopped in order"]


def test_what_ends_a_running_node_is_logged_with_its_trace(
    run: Callable[[OpenNode], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise StoreError("the disk is gone")

    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for _ in range(15):
                nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(fail)
            yield

    with pytest.raises(ExceptionGroup):
        run(open_node)
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.exc_info is not None
    assert "the disk is gone" in caplog.text


def test_what_keeps_a_node_from_starting_is_only_raised(
    run: Callable[[OpenNode], None], caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        raise AlreadyRunning("another one")
        yield

    with pytest.raises(ExceptionGroup):
        run(open_node)
    assert not [record for record in caplog.records if record.levelno >= logging.CRITICAL]


def test_a_node_has_all_file_descriptors_it_may_have(run: Callable[[OpenNode], None]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen: list[tuple[int, int]] = []

    @asynccontextmanager
    async def open_node(config: Config) -> AsyncIterator[None]:
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE))
        signal_ourselves(signal.SIGTERM)
        yield

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    try:
        run(open_node)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen == [(limits[1], limits[1])]
