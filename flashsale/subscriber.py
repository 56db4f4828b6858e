"""The client's side of a subscription: events over a connection of its own, and again from there after it broke.

It reads no faster than its user iterates, so that a slow user holds up nobody but himself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from flashsale.domain.answers import NOT_FOUND, Answer, Busy, Subscribed, Unavailable
from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.requests import Subscribe
from flashsale.errors import ConnectionLostError, ProductNotFoundError, ProtocolError
from flashsale.wire import (
    PAYLOAD_SIZE_MAX,
    FrameReader,
    MessageType,
    decode_answer,
    decode_feed_event,
    encode_frame,
    encode_request,
)

RECONNECT_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_SILENCE_MAX_S = 15.0
"""After so long without a word the server is asked whether it lives."""
_READ_SIZE = 64 * 1024
_EVENT_FIELDS_SIZE_MAX = 4 * 1024  # beside the user id, which in an old ledger may be as long as a payload
_NOTHING = ("", 0)  # the epoch and the version of a product that was never heard of
_OTHER_EPOCH = "?"  # of none: the server will say that the product was opened anew


class _TryAgainError(Exception):
    """The link broke, or the server cannot serve now: neither is the end of a subscription."""


class Subscription:
    """The changes of a product, or of all, from the moment its iteration begins; see Client.subscribe."""

    def __init__(
        self,
        host: str,
        port: int,
        product_id: str | None,
        after_version: int | None,
        epoch: str | None,
        *,
        timeout_s: float,
        connect_timeout_s: float,
    ) -> None:
        self._host, self._port = host, port
        self._product_id = product_id or None
        self._after_version, self._epoch = after_version, epoch
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._begun = False  # it was answered once: from then on it goes on for ever
        self._goes_on = False  # it had begun when this link was made
        self._deleted = False  # the one product is gone, and that was told
        self._asked: deque[Subscribe] = deque()  # without an answer yet
        self._seen: dict[str, tuple[str, int]] = {}  # by product: epoch and version up to which everything was told
        self._resuming: set[str] = set()  # products whose events do not count before their SUBSCRIBE is answered

    def close(self) -> None:
        """End it: whoever iterates gets ConnectionLostError."""
        self._closed = True
        if self._writer is not None:
            self._writer.transport.abort()

    async def events(self) -> AsyncIterator[FeedEvent]:
        """Yield event after event."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout_s
        pause_s = RECONNECT_PAUSE_S
        while True:
            try:
                async for event in self._listen():
                    pause_s = RECONNECT_PAUSE_S
                    yield event
            except (_TryAgainError, OSError) as error:
                if self._closed:
                    raise ConnectionLostError("the client is closed") from error
                if not self._begun and loop.time() + pause_s >= deadline:
                    raise ConnectionLostError(f"cannot subscribe at {self._host}:{self._port}: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _listen(self) -> AsyncIterator[FeedEvent]:
        """Subscribe over a new connection and yield what comes, until it breaks."""
        async with asyncio.timeout(self._timeout_s):
            reader, self._writer = await asyncio.open_connection(self._host, self._port)
        if self._closed:
            self._writer.transport.abort()
        frames = FrameReader(PAYLOAD_SIZE_MAX + _EVENT_FIELDS_SIZE_MAX)
        self._goes_on = self._begun
        self._asked.clear()
        self._resuming.clear()
        try:
            for request in self._requests():
                self._ask(self._writer, request)
            while True:
                for message_type, payload in frames.feed(await self._hear(reader, self._writer)):
                    event = self._take(message_type, payload, self._writer)
                    if event is not None:
                        yield event
                    if self._deleted:
                        raise _TryAgainError("the product is deleted")
                if frames.oversized is not None:
                    raise ProtocolError("the server sent what is no event")
        finally:
            self._writer.transport.abort()
            with suppress(OSError):
                await self._writer.wait_closed()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Return the next bytes; after a long silence ask for some."""
        try:
            async with asyncio.timeout(_SILENCE_MAX_S if self._begun else self._timeout_s):
                data = await reader.read(_READ_SIZE)
        except TimeoutError:
            writer.write(encode_frame(MessageType.PING, b""))
            async with asyncio.timeout(self._timeout_s):
                data = await reader.read(_READ_SIZE)
        if not data:
            raise _TryAgainError("the connection broke")
        return data

    def _requests(self) -> list[Subscribe]:
        """Return what to ask for: at first what the user wants, after a broken link the rest of it."""
        rest = [Subscribe(name, version, epoch or None) for name, (epoch, version) in self._seen.items()]
        if self._product_id is None:
            return [Subscribe(), *rest]
        return rest or [Subscribe(self._product_id, self._after_version, self._epoch)]

    def _ask(self, writer: asyncio.StreamWriter, request: Subscribe) -> None:
        self._asked.append(request)
        if self._product_id is None and request.product_id is not None:
            self._resuming.add(request.product_id)
        writer.write(encode_request(request))

    def _take(self, message_type: int, payload: bytes, writer: asyncio.StreamWriter) -> FeedEvent | None:
        """Return the event that a frame means to the user, if any."""
        try:
            if message_type == MessageType.EVENT:
                return self._take_event(decode_feed_event(payload), writer)
            if message_type == MessageType.SUBSCRIBE and self._asked:
                return self._take_answer(decode_answer(payload), self._asked.popleft())
        except ValueError as error:
            raise ProtocolError(f"the server sent what is no event: {error}") from error
        if message_type == MessageType.NOTICE:
            raise _TryAgainError(f"the server closes the connection: {payload.decode(errors='replace')}")
        if message_type != MessageType.PING:
            raise ProtocolError("the server sent what was not asked for")
        return None

    def _take_event(self, event: FeedEvent, writer: asyncio.StreamWriter) -> FeedEvent | None:
        name = event.product_id
        if event.event == Mark.SUBSCRIBED:
            if name not in self._seen and self._goes_on:  # it came to be while the link was broken
                self._seen[name] = _NOTHING
                self._ask(writer, Subscribe(name, 0))
            self._seen.setdefault(name, (event.epoch, event.version))
            return None
        if name in self._resuming:
            return None  # it comes again
        if event.event == Mark.RESET:
            return event if self._reset(name, event.epoch) else None
        self._seen[name] = (event.epoch or self._seen.get(name, _NOTHING)[0], event.version)
        return event

    def _reset(self, name: str, epoch: str) -> bool:
        """Note that the sale which was told of is over; return whether anything was told since it last was."""
        known = self._seen.get(name, _NOTHING) != _NOTHING
        self._seen[name] = (epoch, 0)
        return known

    def _take_answer(self, answer: Answer, request: Subscribe) -> FeedEvent | None:
        name = request.product_id
        if isinstance(answer, Subscribed):
            self._begun, self._deleted = True, False
            if name is not None:
                self._resuming.discard(name)
                self._seen.setdefault(name, _first_seen(answer, request))
            return None
        if isinstance(answer, Unavailable | Busy):
            raise _TryAgainError(f"the server answers {answer}")
        if answer != NOT_FOUND or name is None:
            raise ProtocolError(f"the server answers {answer}")
        if not self._begun:
            raise ProductNotFoundError(name)
        self._resuming.discard(name)
        known = self._reset(name, "")
        if self._product_id is None:
            del self._seen[name]
        else:
            self._deleted = True  # wait until it is opened again, and miss nothing of that
        return FeedEvent(event=Mark.RESET, product_id=name) if known else None


def _first_seen(answer: Subscribed, request: Subscribe) -> tuple[str, int]:
    """Return the epoch and the version from which events follow."""
    if request.after_version is None:
        return answer.epoch, answer.version
    same_sale = request.after_version <= answer.version and request.epoch in {None, answer.epoch}
    return answer.epoch if same_sale else _OTHER_EPOCH, request.after_version
