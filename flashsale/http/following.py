"""Sales as server-sent events: each change of one product, or what is worth looking at of all."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing

import msgspec
from msgspec import Struct

from flashsale.domain.answers import Answer, Failed, ProductStatus, Subscribed
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.checks import check
from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.requests import GetStatus, Subscribe
from flashsale.domain.sale import Kind
from flashsale.feed import Feed
from flashsale.http.asks import RefusedError, header, parameters, segment
from flashsale.http.events import Event, Events
from flashsale.http.outcomes import problem_of, refusal_of
from flashsale.http.rates import check_rate
from flashsale.http.replies import Scope, problem
from flashsale.http.services import Services
from flashsale.wire import HEADER_SIZE, FrameReader, decode_feed_event

TICK_S = 0.1
"""Between two looks of one who wants the present alone."""
CHANGES_TOLD_COUNT = 6
"""Of the changes of a product in that time, the last ones are told."""
PRODUCTS_SHOWN_COUNT = 256
"""Products whose stock is told at the beginning to one who follows all."""

KEPT_SIZE_MAX = 512 * 1024
"""Bytes of changes that wait for one who wants the present alone, and takes nothing: beyond it the oldest go."""

_TICKET = 0


class Stock(Struct, frozen=True):
    """How a product stands: the first event about it, before anything changes."""

    event: str
    product_id: str
    remaining: int
    sold: int
    held: int
    state: str
    version: int


class Follower:
    """One who follows sales over HTTP: a subscriber of the feed (flashsale.subscriptions.Subscriber)."""

    def __init__(self, feed: Feed, *, keeps_up: bool) -> None:
        """Follow nothing yet.

        Args:
            feed: what serves it.
            keeps_up: take everything at once, and leave to `take` what of it is worth telling; otherwise nothing more
                is taken before all that came was told.
        """
        self.listening = False
        self.connected = True
        self._feed = feed
        self._keeps_up = keeps_up
        self._frames: deque[bytes] = deque()
        self._size = 0  # bytes
        self._came = asyncio.Event()
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._parting: Answer | None = None

    async def subscribe(self, request: Subscribe) -> Subscribed:
        """Begin.

        Raises:
            RefusedError: it cannot be followed; the answer says why.
        """
        self._feed.subscribe(request, self, _TICKET)
        answer = await self._answer
        if not isinstance(answer, Subscribed):
            raise RefusedError(problem_of(answer))
        self._feed.pump(self)
        return answer

    async def take(self) -> list[bytes]:
        """Return what has come, as slices of whole frames of one product each; nothing once it is over."""
        self._came.clear()
        if not self._keeps_up:
            self._feed.pump(self)
        if not self._frames and self._parting is None:
            await self._came.wait()
        frames = list(self._frames)
        self._frames.clear()
        self._size = 0
        return frames

    @property
    def parting(self) -> Answer | None:
        """Why nothing comes any more."""
        return self._parting

    def close(self) -> None:
        """End."""
        self.connected = False
        self._feed.forget(self)

    # Called by the feed

    @property
    def writable(self) -> bool:
        """Whether it takes more."""
        return self.connected and self._parting is None and (self._keeps_up or not self._frames)

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to its SUBSCRIBE."""
        if not self._answer.done():
            self._answer.set_result(answer)

    def has_answered(self, ticket: int) -> bool:
        """Whether that is there."""
        return self._answer.done()

    def flush(self) -> None:
        """Nothing to send."""

    def push(self, frames: bytes) -> None:
        """Take events."""
        self._frames.append(frames)
        self._size += len(frames)
        while self._keeps_up and self._size > KEPT_SIZE_MAX and len(self._frames) > 1:
            self._size -= len(self._frames.popleft())
        self._came.set()

    def dismiss(self, answer: Answer) -> None:
        """End, and say why."""
        self._parting = answer
        self._came.set()


class Following:
    """The endpoints, as what opens their events."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @asynccontextmanager
    async def every_change(self, scope: Scope) -> AsyncIterator[Events]:
        """Give each change of the product in the path, from where the client was."""
        request = _subscribe(scope, segment(scope["path_params"]["product_id"]))
        check_rate(self._services, scope, request)
        with closing(Follower(self._services.feed, keeps_up=False)) as follower:
            async with aclosing(_changes(follower, await _begin(follower, request))) as events:
                yield events

    @asynccontextmanager
    async def the_present(self, scope: Scope) -> AsyncIterator[Events]:
        """Give how products stand, and what of their changes a person can follow."""
        request = Subscribe(parameters(scope).get("product_id"))
        check_rate(self._services, scope, request)
        with closing(Follower(self._services.feed, keeps_up=True)) as follower:
            async with aclosing(self._present(follower, await _begin(follower, request))) as events:
                yield events

    async def _present(self, follower: Follower, begun: Subscribed) -> AsyncGenerator[Event, None]:
        shown_count = 0
        if begun.product_id is not None:
            for event in await self._stock(begun.product_id):
                yield event
        while follower.parting is None:
            for change, payload in worth_telling(await follower.take()):
                if change.event != Mark.SUBSCRIBED:
                    yield Event(payload, name=change.event)
                elif shown_count < PRODUCTS_SHOWN_COUNT:
                    shown_count += 1
                    for stock in await self._stock(change.product_id):
                        yield stock
            await asyncio.sleep(TICK_S)
        yield _farewell(follower)

    async def _stock(self, product_id: str) -> list[Event]:
        found = await self._services.ask(GetStatus(product_id))
        if not isinstance(found, ProductStatus):
            return []
        stock = Stock("stock", product_id, found.remaining_stock, found.sold, found.held, found.state, found.version)
        return [Event(msgspec.json.encode(stock), name=stock.event)]


async def _begin(follower: Follower, request: Subscribe) -> Subscribed:
    wrong = check(request)
    if wrong:
        raise RefusedError(problem_of(Failed(wrong)))
    return await follower.subscribe(request)


async def _changes(follower: Follower, begun: Subscribed) -> AsyncGenerator[Event, None]:
    epoch, reader = begun.epoch, FrameReader()
    while follower.parting is None:
        for frames in await follower.take():
            for _, payload in reader.feed(frames):
                event = decode_feed_event(payload)
                if event.event in {Kind.OPENED, Mark.RESET}:
                    epoch = event.epoch
                yield Event(payload, name=event.event, id=f"{epoch}-{event.version}")
    yield _farewell(follower)


def worth_telling(slices: Sequence[bytes]) -> list[tuple[FeedEvent, bytes]]:
    """Return the last changes of each product, as events and their JSON, in their order.

    Args:
        slices: whole frames of one product each, as the feed pushes them.
    """
    chosen: deque[tuple[FeedEvent, bytes]] = deque()
    counts: dict[str, int] = {}
    for frames in reversed(slices):
        for payload in _last_payloads(frames):
            event = decode_feed_event(payload)
            count = counts[event.product_id] = counts.get(event.product_id, 0) + 1
            if count > CHANGES_TOLD_COUNT:
                break
            chosen.appendleft((event, payload))
    return list(chosen)


def _last_payloads(frames: bytes) -> Iterator[bytes]:
    """Yield what these frames carry, from the last one to the first."""
    starts, position = [], 0
    while position < len(frames):
        starts.append(position)
        position += HEADER_SIZE + int.from_bytes(frames[position + 1 : position + HEADER_SIZE], "big")
    for start in reversed(starts):
        yield frames[start + HEADER_SIZE : position]
        position = start


def _subscribe(scope: Scope, product_id: str) -> Subscribe:
    """Return what a client asks for that was perhaps here before.

    Raises:
        RefusedError: where it was cannot be read.
    """
    given = parameters(scope)
    epoch, version = given.get("epoch"), given.get("after_version")
    told = header(scope, b"last-event-id")
    if told:  # a browser that comes back: it knows more than the URL it began with
        epoch, _, version = told.rpartition("-")
    if version is None:
        return Subscribe(product_id)
    if not (version.isascii() and version.isdigit() and len(version) <= len(str(STOCK_MAX))):
        raise RefusedError(problem(400, "invalid-field", "invalid after_version", more={"field": "after_version"}))
    return Subscribe(product_id, int(version), epoch or None)


def _farewell(follower: Follower) -> Event:
    assert follower.parting is not None
    refusal = refusal_of(follower.parting)
    return Event(msgspec.json.encode({"event": "end", "detail": refusal.words}), name="end")
