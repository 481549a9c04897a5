"""Delivering what waits for one endpoint: in order, again and again until it is taken.

Any 2xx is "taken". After `threshold` failures in a row the endpoint is left alone for `backoff_s`, twice as long each
further time up to `MAX_BACKOFF_S`. After a failure events go one by one, so that one an endpoint cannot digest does
not hide behind others. Delivery is at least once: an event may come again after a crash, with the same `id`.

The URL is the operator's, and nobody else can choose where we send to: redirects are not followed (the answer of an
endpoint must not make us ask something of another host, with our headers), and neither proxies nor credentials are
taken from the environment. An answer of `MAX_ANSWER_BYTES` or of unknown length is not read.
"""

from __future__ import annotations

import logging
import random
import ssl
from dataclasses import dataclass
from functools import partial

import httpx
import trio

from ipfsreg import __version__
from ipfsreg.errors import ConfigError, StoreError
from ipfsreg.notifications.events import MEDIA_TYPE, envelope
from ipfsreg.notifications.queue import Queue

logger = logging.getLogger(__name__)

MAX_BATCH = 100
MAX_ANSWER_BYTES = 16 * 1024
MAX_BACKOFF_S = 300.0
RETRY_S = 0.5
"""Between two attempts below the threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where events go."""

    name: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 5.0
    """For one delivery, its answer included."""
    threshold: int = 5
    backoff_s: float = 10.0
    ca: str | None = None
    """A file with the certificates of authorities to trust in place of the usual ones."""


@dataclass(slots=True)
class Delivered:
    """What became of it, since the start."""

    events: int = 0
    failures: int = 0
    """Attempts that were not answered 2xx in time."""


class Delivery:
    """The deliveries to one endpoint."""

    def __init__(
        self, endpoint: Endpoint, queue: Queue, rng: random.Random, trust: ssl.SSLContext | bool = False
    ) -> None:
        """*trust*: see `trust_of`."""
        self._trust = trust
        self.endpoint = endpoint
        self.counts = Delivered()
        self._queue = queue
        self._rng = rng
        self._failures = 0

    async def run(self) -> None:
        """Deliver for ever."""
        endpoint = self.endpoint
        async with httpx.AsyncClient(
            timeout=endpoint.timeout_s,
            follow_redirects=False,
            trust_env=False,
            verify=self._trust,
            headers={"User-Agent": f"ipfsreg/{__version__}", **dict(endpoint.headers), "Content-Type": MEDIA_TYPE},
        ) as client:
            while True:
                try:
                    batch = await self._queue.take(endpoint.name, 1 if self._failures else MAX_BATCH)
                    failure = await self._post(client, envelope(batch.events))
                    if not failure:
                        await self._queue.delivered(endpoint.name, batch)
                        self._succeeded(len(batch.events))
                        continue
                except StoreError as error:
                    failure = f"the queue cannot be read or written: {error}"
                await trio.sleep(self._failed(failure))

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> str:
        """Say *body* to the endpoint. Returns what went wrong; "" for nothing."""
        with trio.move_on_after(self.endpoint.timeout_s):
            try:
                async with client.stream("POST", self.endpoint.url, content=body) as response:
                    if int(response.headers.get("content-length", MAX_ANSWER_BYTES)) < MAX_ANSWER_BYTES:
                        # Read, and not decoded, so that the connection can be used again; else it is closed.
                        async for _ in response.aiter_raw():
                            pass
            except (httpx.HTTPError, OSError) as error:
                return str(error) or type(error).__name__
            if response.is_redirect:
                return f"answered {response.status_code}: redirects are not followed, configure the URL it leads to"
            return "" if response.is_success else f"answered {response.status_code}"
        return f"no answer within {self.endpoint.timeout_s:g} s"

    def _succeeded(self, count: int) -> None:
        self.counts.events += count
        if self._failures:
            logger.info("notifications to %s are taken again", self.endpoint.name)
        self._failures = 0

    def _failed(self, failure: str) -> float:
        """Count a failure; return how long to wait."""
        endpoint = self.endpoint
        self.counts.failures += 1
        self._failures += 1
        beyond = self._failures - endpoint.threshold
        if beyond < 0:
            pause_s = RETRY_S
        else:
            # min() in the exponent: two to the power of a million failures is a number too.
            pause_s = min(endpoint.backoff_s * 2 ** min(beyond, 16), max(MAX_BACKOFF_S, endpoint.backoff_s))
        if self._failures in (1, endpoint.threshold):
            logger.warning(
                "notifications to %s fail, the next attempt is in %.1f s: %s", endpoint.name, pause_s, failure
            )
        return pause_s * self._rng.uniform(0.8, 1.2)


async def trust_of(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """Whose certificates *endpoint* may have; False for one without TLS. Raises ConfigError."""
    if not endpoint.url.startswith("https:"):
        return False
    try:
        # Reading all certificates of the system takes tens of milliseconds.
        return await trio.to_thread.run_sync(partial(ssl.create_default_context, cafile=endpoint.ca))
    except OSError as error:
        right = f"a file with certificates of authorities in PEM: {error}"
        raise ConfigError(f"notifications.endpoints {endpoint.name}: ca", endpoint.ca, right) from None
