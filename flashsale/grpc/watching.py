"""Watch: the changes of a product as a stream of responses, each client at its own pace.

A watcher is a subscriber of the feed that holds one slice of events at most. gRPC says when it has taken a response;
not before the last one of a slice does the watcher take more, and until then what it has not heard waits in the ledger.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from msgspec import Struct

from flashsale.domain.answers import BUSY, Answer, Subscribed
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.checks import MISSING_FIELD, check
from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.requests import Subscribe
from flashsale.feed import Feed
from flashsale.grpc.defects import tell_defect
from flashsale.grpc.orders import as_bytes
from flashsale.grpc.orders_pb2 import SaleEvent, WatchRequest, WatchResponse
from flashsale.grpc.outcomes import (
    ENDING,
    TOO_SLOW,
    UNREADABLE,
    Metadata,
    Refusal,
    bad_request,
    refusal_of,
    refuse,
    refuse_with,
)
from flashsale.grpc.rates import Rates
from flashsale.grpc.receiving import receive
from flashsale.grpc.sending import send
from flashsale.wire import FrameReader, decode_feed_event

_EPOCH_LENGTH_MAX = 64
TOGETHER_COUNT_MAX = 128
"""Events in one response: some 16 KiB, and 0.3 ms to make it."""


class Watcher:
    """One stream: a subscriber of the feed (see flashsale.subscriptions.Subscriber)."""

    def __init__(self) -> None:
        self.listening = False
        self.ending: tuple[Refusal, Metadata] | None = None
        """Why it is parted from."""
        self.answered: Answer | None = None
        """To its request."""
        self.announced = False
        """The client was told so: events may follow."""
        self.frames = b""
        """What it shall hear next."""
        self.gone = False
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until there is something to do."""
        await self._changed.wait()
        self._changed.clear()

    def end(self, refusal: Refusal, metadata: Metadata) -> None:
        """Part from it, as soon as it has taken what it is being sent."""
        if self.ending is None:
            self.ending = refusal, metadata
        self._changed.set()

    # Called by the feed

    @property
    def connected(self) -> bool:
        """Whether the client is still there."""
        return not self.gone

    @property
    def writable(self) -> bool:
        """Whether it has taken everything so far, and this is not the end."""
        return not self.frames and self.ending is None and not self.gone

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to its request, the only one."""
        self.answered = answer
        self._changed.set()

    def flush(self) -> None:
        """Nothing to send: the stream's own task does it."""

    def has_answered(self, ticket: int) -> bool:
        """Whether the client was told."""
        return self.announced

    def push(self, frames: bytes) -> None:
        """Take the next slice."""
        self.frames = frames
        self._changed.set()

    def dismiss(self, answer: Answer) -> None:
        """Say why, and end."""
        self.end(*refusal_of(answer))


class _Slice(Struct, frozen=True, eq=False):
    """What was pushed to watchers, in whole or in part as responses."""

    frames: bytes
    payloads: list[bytes]
    responses: list[bytes]


class Watching:
    """All streams of a worker."""

    def __init__(
        self,
        feed: Feed,
        rates: Rates | None = None,
        *,
        watcher_count_max: int,
        frame_timeout_s: float,
        write_timeout_s: float,
    ) -> None:
        """Serve nobody yet.

        Args:
            feed: what the events come from.
            rates: refuses who comes too often.
            watcher_count_max: streams at once; one beyond them is told that the server is busy.
            frame_timeout_s: for a request to come.
            write_timeout_s: a client that does not take a response for so long is parted from.
        """
        self._feed = feed
        self._rates = rates
        self._watcher_count_max = watcher_count_max
        self._frame_timeout_s = frame_timeout_s
        self._write_timeout_s = write_timeout_s
        self._watchers: set[Watcher] = set()
        self._draining = False
        self._last: _Slice | None = None

    def drain(self) -> None:
        """Part from everybody, and from whoever comes."""
        self._draining = True
        for watcher in self._watchers:
            watcher.end(ENDING, ENDING.as_metadata())

    async def watch(self, stream: Any, context: Any) -> None:
        """Serve a stream; those of requests are left alone."""
        raw = await receive(context, self._frame_timeout_s)
        request = raw if isinstance(raw, Refusal) else _read(raw)
        if isinstance(request, Refusal):
            refuse(context, request)
            return
        if self._draining:
            refuse(context, ENDING)
            return
        busy = self._rates.refuse(request, context) if self._rates is not None else None
        if busy is not None or len(self._watchers) >= self._watcher_count_max:
            refuse_with(context, busy or BUSY)
            return
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            await self._serve(request, watcher, context)
            if watcher.ending is not None:
                refuse(context, *watcher.ending)
        except grpc.aio.BaseError:
            raise  # the client has gone: gRPC knows what to do
        except Exception:  # noqa: BLE001 - a bug, which is logged there
            tell_defect(context, "Watch")
        finally:
            self._leave(watcher)

    def _leave(self, watcher: Watcher) -> None:
        watcher.gone = True
        self._watchers.discard(watcher)
        self._feed.forget(watcher)

    async def _serve(self, request: Subscribe, watcher: Watcher, context: Any) -> None:
        """Serve until it is parted from."""
        self._feed.subscribe(request, watcher, 0)
        while watcher.answered is None and watcher.ending is None:
            await watcher.changed()
        answer = watcher.answered
        if answer is None or watcher.ending is not None:
            return
        if not isinstance(answer, Subscribed):
            watcher.dismiss(answer)
            return
        await self._write(watcher, context, _announcement(answer))
        if watcher.ending is not None:
            return
        watcher.announced = True
        self._feed.pump(watcher)
        while watcher.ending is None:
            await watcher.changed()
            while watcher.frames:
                for response in self._responses(watcher.frames):
                    await self._write(watcher, context, response)
                    if watcher.ending is not None:
                        return
                watcher.frames = b""
                self._feed.pump(watcher)

    async def _write(self, watcher: Watcher, context: Any, response: bytes) -> None:
        """Send a response; part from the watcher when it does not take it, which it is told once it has."""

        def part() -> None:
            watcher.end(TOO_SLOW, TOO_SLOW.as_metadata())
            self._leave(watcher)

        await send(context, response, self._write_timeout_s, part)

    def _responses(self, frames: bytes) -> Iterator[bytes]:
        """Give the responses that tell of these events, each made when it is asked for.

        Most watchers of a product get the same slice: what is made for one is kept for the others.
        """
        if self._last is None or self._last.frames is not frames:
            self._last = _Slice(frames, [payload for _, payload in FrameReader().feed(frames)], [])
        payloads, responses = self._last.payloads, self._last.responses
        for number, start in enumerate(range(0, len(payloads), TOGETHER_COUNT_MAX)):
            if number == len(responses):
                events = [decode_feed_event(payload) for payload in payloads[start : start + TOGETHER_COUNT_MAX]]
                responses.append(_encode(events))
            yield responses[number]


def _read(raw: bytes) -> Subscribe | Refusal:
    """Return what is asked for, or what it is told when that cannot be."""
    try:
        asked = WatchRequest.FromString(raw)
    except DecodeError:
        return UNREADABLE
    after_version = asked.after_version if asked.HasField("after_version") else None
    request = Subscribe(asked.product_id or None, after_version, asked.epoch or None)
    if request.product_id is None:
        return bad_request(MISSING_FIELD)
    if after_version is not None and not 0 <= after_version <= STOCK_MAX:
        return bad_request("invalid after_version")
    if len(asked.epoch) > _EPOCH_LENGTH_MAX:
        return bad_request("invalid epoch")
    wrong = check(request)
    return bad_request(wrong) if wrong else request


def _announcement(answer: Subscribed) -> bytes:
    event = FeedEvent(
        event=Mark.SUBSCRIBED, product_id=answer.product_id or "", version=answer.version, epoch=answer.epoch
    )
    return _encode([event])


def _encode(events: list[FeedEvent]) -> bytes:
    """Return the response that tells of these events."""
    told = [
        SaleEvent(
            event=event.event,
            product_id=event.product_id,
            version=event.version,
            timestamp=event.timestamp,
            remaining=event.remaining,
            buyer=event.buyer,
            quantity=event.quantity,
            item_number=event.item_id,
            order_id=event.order_id,
            after_version=event.after_version,
            epoch=event.epoch,
        )
        for event in events
    ]
    return as_bytes(WatchResponse(events=told))
