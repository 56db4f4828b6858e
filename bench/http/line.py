"""One connection of the shop's visitors: one request under way, and whole answers."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

import msgspec

from bench.http.buyer import HEAD_END, Heads

_heads = Heads()


class Told(msgspec.Struct, frozen=True, gc=False):
    """What a body says, as far as it matters here."""

    message: str = ""
    detail: str = ""
    checkout_code: str = ""


class Answer(NamedTuple):
    """An answer; status 0 when there is none, as the connection broke."""

    status: int
    told: Told


LOST = Answer(0, Told("the connection broke"))
_UNREADABLE = Told("not JSON")
_decode = msgspec.json.Decoder(Told).decode


class Line(asyncio.Protocol):
    """A connection. `done` is called with it and each answer, also with LOST, after which it is of no use."""

    __slots__ = ("_done", "_kept", "_transport", "_waiting")

    def __init__(self, done: Callable[["Line", Answer], None]) -> None:
        self._done = done
        self._kept = b""
        self._waiting = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> bool:
        """Send a request; return False if there is no connection any more, of which `done` is not told."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._waiting = True
        self._transport.write(request)
        return True

    def data_received(self, data: bytes) -> None:
        """Hand on an answer once it is whole."""
        self._kept += data
        head_end = self._kept.find(HEAD_END)
        if head_end < 0 or not self._waiting:
            return
        head = _heads.find(self._kept[:head_end])
        body_at = head_end + len(HEAD_END)
        if len(self._kept) < body_at + head.body_size:
            return
        body, self._kept = self._kept[body_at:], b""  # one request, one answer
        self._waiting = False
        try:
            told = _decode(body)
        except ValueError:
            told = _UNREADABLE
        self._done(self, Answer(int(head.status), told))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._transport = None
        if self._waiting:
            self._waiting = False
            self._done(self, LOST)

    def close(self) -> None:
        """Close it, without a word to anybody."""
        self._waiting = False
        if self._transport is not None:
            self._transport.abort()
