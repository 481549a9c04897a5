"""`ipfsreg daemon`: a node until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator

import trio

from ipfsreg.config import Config
from ipfsreg.node import Node, open_node

logger = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Run a node; return after an orderly stop.

    Raises:
        IpfsregError: it could not start, or a part of it failed; alone or in an ExceptionGroup.
    """
    _set_up_log(config.node.log_level)
    _raise_descriptor_limit()
    trio.run(_run, config)
    logger.info("stopped")


async def _run(config: Config) -> None:
    # SIGHUP from the start on: its default would end a node that is not even up.
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        async with trio.open_nursery() as nursery:
            started, stopping = trio.Event(), trio.Event()
            nursery.start_soon(_watch, signals, started, stopping, nursery.cancel_scope)
            try:
                async with open_node(config) as node, trio.open_nursery() as beside:
                    started.set()
                    beside.start_soon(_reload, hangups, node)
                    await stopping.wait()
                    beside.cancel_scope.cancel()
            except Exception as error:  # told in one sentence or with its traceback, and raised
                # What keeps a node from starting, the command line says in one sentence. What ends a running one has
                # to be understood afterwards.
                if started.is_set():
                    for failure in _failures_in(error):
                        logger.critical("a part of the node failed, it ends", exc_info=failure)
                raise
            nursery.cancel_scope.cancel()


async def _reload(hangups: AsyncIterator[int], node: Node) -> None:
    async for _ in hangups:
        logger.info("SIGHUP")
        await node.reloads.reload()


def _failures_in(error: BaseException) -> Iterator[BaseException]:
    """What went wrong, without the nurseries around it: a trace of groups ends at the tenth level, above the cause."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _failures_in(inner)
    else:
        yield error


async def _watch(
    signals: AsyncIterator[int], started: trio.Event, stopping: trio.Event, scope: trio.CancelScope
) -> None:
    """The first signal asks for an orderly stop. During the start there is nothing to finish, and a second signal does
    not wait for it: then everything is cancelled, which loses nothing that was acknowledged."""
    async for number in signals:
        name = signal.Signals(number).name
        if stopping.is_set():
            logger.warning("%s again: not waiting", name)
        else:
            logger.info("%s", name)
        if stopping.is_set() or not started.is_set():
            scope.cancel()
            return
        stopping.set()


def _raise_descriptor_limit() -> None:
    """As many file descriptors as the system lets us have: 1,024, the usual soft limit, is for programs that use
    select(2), and a node has a descriptor for each client, peer and arriving blob."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS names a hard limit it does not grant
            logger.warning("cannot have more than %d file descriptors: %s", soft, error)


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def _set_up_log(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ipfsreg").setLevel(level.upper())
