"""Answers that may be given again, by the exact bytes of the request's head.

Most of what a registry is asked it was asked a moment ago, in the same words: by every machine of a cluster that pulls
one image, by whoever looks after a tag every few seconds. Then nothing has to be parsed, routed and looked up again.

Remembered is what was asked before: a request that does not come again would pay for it, and push out what does.

When may an answer be given again? Where its handler said what it rests on (`Response.stands`), and that is asked before
each time. What a handler reads of a request is its head, the same to the last byte; who it comes from is told to
`stands`. A head with an `Authorization` is known by a keyed hash, for neither passwords nor tokens stay in memory
(docs/decisions/0083). Nothing is given for longer than `MAX_AGE_S`, whatever it says of itself: what a handler notes
beside its answer (which blobs clients were told of, what was asked for lately) is noted that often.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

from ipfsreg.http.request import Request
from ipfsreg.http.responses import Stands
from ipfsreg.registry.interface import Registry

MAX_AGE_S = 5.0

MAX_BYTES = 8 * 1024 * 1024
"""Of all answers, with their heads and what else belongs to them."""

MAX_HEAD_BYTES = 4096
"""Of a request that is remembered. Longer ones, with tokens of some issuers, are rare."""

MAX_ASKED = 16_384
"""Heads that were asked lately and are not remembered yet: half a mebibyte."""

_BESIDE_BYTES = 2048
"""What an entry takes beside its bytes: the request with its headers, as the access log wants it."""

_SECRET = b"uthorization:"
"""In the heads that hold one, however their first letter is written. In others it costs them the hash and no more."""

_DATE = b"\r\nDate: "
_DATE_BYTES = 29


def while_unchanged(registry: Registry, version: int | None) -> Stands | None:
    """What an answer rests on that was read from *registry*, whose version was *version* before that."""
    return None if version is None else lambda peer: registry.version == version


class Answer:
    """One of them."""

    __slots__ = ("_data", "_date", "_date_at", "request", "stands", "status", "until")

    def __init__(self, request: Request, status: int, message: bytes, stands: Stands, until: float) -> None:
        """*message*: head and body, whose first header is `Date`."""
        self._data = bytearray(message)
        self._date_at = message.index(_DATE) + len(_DATE)
        self._date = message[self._date_at : self._date_at + _DATE_BYTES]
        self.request = request
        """For the access log. Its body is spent, and its peer was who asked first."""
        self.status = status
        self.stands = stands
        self.until = until

    def dated(self, date: bytes) -> bytearray:
        """The bytes to send at *date*. The next call changes them."""
        if date != self._date:
            self._date = date
            self._data[self._date_at : self._date_at + _DATE_BYTES] = date
        return self._data

    def __len__(self) -> int:
        return len(self._data)


class Answers:
    """As many as fit, the latest."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._answers: dict[bytes, Answer] = {}
        self._asked: set[int] = set()
        self._key = secrets.token_bytes(32)
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, head: bytes, peer: str, now: float) -> Answer | None:
        """What to answer to *head*, from the address *peer*; None: ask the handler."""
        name = head if _SECRET not in head else self._mark(head)
        answer = self._answers.get(name)
        if answer is None:
            return None
        if now < answer.until and answer.stands(peer):
            return answer
        self._drop(name)  # The handler makes another one.
        return None

    def asked_before(self, head: bytes) -> bool:
        """Whether *head* was asked lately, so that its answer is worth remembering."""
        mark = hash(head)  # with a key of this process: nobody chooses two that are equal, and it would do no harm
        if mark in self._asked:
            return True
        if len(self._asked) >= MAX_ASKED:
            self._asked.clear()
        self._asked.add(mark)
        return False

    def put(self, head: bytes, answer: Answer, *, secret: bool = False) -> None:
        """Remember *answer*; those that were made first give way. One may take a quarter of the room.

        *secret*: *head* has an `Authorization`.
        """
        size = len(head) + len(answer) + _BESIDE_BYTES
        if len(head) > MAX_HEAD_BYTES or size > self._max_bytes // 4:
            return
        name = head if _SECRET not in head else self._mark(head)
        if secret and name is head:
            return  # No client is known that spells it so, and no secret is to be kept for one.
        if name in self._answers:
            self._drop(name)
        self._answers[name] = answer
        self.bytes_held += len(name) + len(answer) + _BESIDE_BYTES
        while self.bytes_held > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def _mark(self, head: bytes) -> bytes:
        return blake2b(head, digest_size=32, key=self._key).digest()

    def _drop(self, name: bytes) -> None:
        self.bytes_held -= len(name) + len(self._answers.pop(name)) + _BESIDE_BYTES
