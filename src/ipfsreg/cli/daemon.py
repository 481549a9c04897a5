"""`ipfsreg daemon`: a node until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import time

import trio

from ipfsreg.config import Config
from ipfsreg.node import open_node

logger = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Run a node; return after an orderly stop."""
    _set_up_log(config.node.log_level)
    trio.run(_run, config)
    logger.info("stopped")


async def _run(config: Config) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            stopping = trio.Event()
            nursery.start_soon(_watch, signals, stopping, nursery.cancel_scope)
            async with open_node(config):
                await stopping.wait()
            nursery.cancel_scope.cancel()


async def _watch(signals: object, stopping: trio.Event, scope: trio.CancelScope) -> None:
    """The first signal asks for an orderly stop, a second one does not wait for it, nor for the start to be over."""
    async for number in signals:  # type: ignore[attr-defined]
        if stopping.is_set():
            logger.warning("%s again: not waiting", signal.Signals(number).name)
            scope.cancel()
            return
        logger.info("%s", signal.Signals(number).name)
        stopping.set()


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
