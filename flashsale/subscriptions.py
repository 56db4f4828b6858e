"""Who follows which product and how far each has come: cursors, and what they are served from.

Without I/O: feed.py reads the ledgers and brings what it finds. Nothing is queued for anybody. A cursor is a version in
the ledger of a product; what lies behind it is pushed when the subscriber takes it, a slice at a time, so that neither
another subscriber nor a buyer waits for long.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from itertools import count, islice
from typing import Protocol

from msgspec import Struct

from flashsale.domain.answers import BUSY, NOT_EXECUTED, NOT_FOUND, Answer, Subscribed
from flashsale.domain.events import FeedEvent, Mark
from flashsale.domain.requests import Subscribe
from flashsale.domain.sale import Standing
from flashsale.window import Window
from flashsale.wire import encode_feed_event

_PAGE_COUNT_MAX = 32
_NO_GENERATION = -1


class Subscriber(Protocol):
    """Where events go: a door's connection."""

    listening: bool
    """It has subscriptions; set here."""

    @property
    def connected(self) -> bool:
        """Whether anybody is still there."""
        ...

    @property
    def writable(self) -> bool:
        """Whether it takes more now. Once it does again, it calls `Feed.pump`."""
        ...

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to the request that was submitted with this ticket."""
        ...

    def flush(self) -> None:
        """Send what was taken."""
        ...

    def has_answered(self, ticket: int) -> bool:
        """Whether that answer has had its turn. Once it has, it calls `Feed.pump`."""
        ...

    def push(self, frames: bytes) -> None:
        """Send whole frames."""
        ...

    def dismiss(self, answer: Answer) -> None:
        """Say why, and end."""
        ...


class FeedLimits(Struct, frozen=True, kw_only=True):
    """The bounds of subscriptions. One beyond them is answered BUSY."""

    named_count_max: int = 64
    """Products that one connection subscribes to by name, unless it subscribes to all."""
    cursor_count_max: int = 131_072
    """Products followed for somebody, in a worker: a subscription to all counts once for each."""
    asked_count_max: int = 16_384
    """SUBSCRIBEs of a worker that wait for the store."""
    product_count_max: int = 4_096
    """Products that a worker follows."""
    waited_count_max: int = 512
    """Of these, those that changed last, which are waited for; a change of another is noticed within a second."""
    kept_count_max: int = 4_096
    """Changes of a product that are kept in memory."""
    kept_size_max: int = 1024 * 1024
    """Bytes of their frames; less when there are many products."""
    kept_total_size_max: int = 64 * 1024 * 1024
    """The same for all products."""
    page_size_max: int = 4 * 1024 * 1024
    """Bytes of the frames made from one page, up to one batch more."""
    pages_size_max: int = 16 * 1024 * 1024
    """Bytes of the frames of pages that are kept for those who could not take all of it at once."""
    push_size_max: int = 64 * 1024
    """Bytes pushed to a subscriber before it is the next one's turn."""
    turn_size_max: int = 256 * 1024
    """Bytes pushed to all of them before it is the buyers' turn: about 0.2 ms."""
    turn_count_max: int = 128
    """Cursors served before it is the buyers' turn."""


class Tail:
    """What is known of a product that somebody follows: the last changes of its ledger."""

    _generations = count()

    def __init__(self, product_id: str, epoch: str, version: int) -> None:
        self.product_id = product_id
        self.generation = next(self._generations)
        """Another one when what was told of the product holds no longer."""
        self.renewed = False
        """Its subscribers have yet to hear of that."""
        self.window = Window(product_id, epoch, version)
        """Another object when it is read anew: what was read for an earlier one is out of date."""
        self.position = version
        """Read on behind this version."""
        self.cursors: set[Cursor] = set()
        self.lagging: set[Cursor] = set()
        """Those that wait for a page."""

    def renew(self, epoch: str) -> None:
        """Begin another ledger; empty for none. Its first one is no news to those who subscribed before it began."""
        if self.window.epoch or self.window.version:
            self.generation = next(self._generations)
            self.renewed = True
        self.window = Window(self.product_id, epoch, 0)
        self.position = 0


class Cursor:
    """How far one subscriber has come with one product."""

    __slots__ = ("announced", "generation", "implicit", "listener", "tail", "version")

    def __init__(self, listener: "Listener", tail: Tail, version: int, *, implicit: bool) -> None:
        self.listener = listener
        self.tail = tail
        self.version = version
        self.generation = tail.generation
        self.implicit = implicit  # part of a subscription to all products
        self.announced = True


class Listener:
    """One subscriber and its cursors."""

    __slots__ = ("cursors", "due", "everything", "subscriber", "ticket")

    def __init__(self, subscriber: Subscriber, ticket: int) -> None:
        self.subscriber = subscriber
        self.ticket = ticket  # of the last SUBSCRIBE; nothing is pushed before this is answered
        self.cursors: dict[str, Cursor] = {}
        self.due: dict[Cursor, None] = {}  # served in the subscriber's turns, those first who waited longest
        self.everything = False  # it follows all products

    @property
    def takes_more(self) -> bool:
        """Whether anything may be pushed."""
        return self.subscriber.writable and self.subscriber.has_answered(self.ticket)


class Subscriptions:
    """All subscriptions of a worker."""

    def __init__(self, limits: FeedLimits) -> None:
        self._limits = limits
        self._listeners: dict[Subscriber, Listener] = {}
        self._pages: deque[tuple[int, Window]] = deque()  # by generation, the newest first
        self._pages_used = False
        self.cursor_count = 0
        """Products followed for somebody."""
        self.tails: OrderedDict[str, Tail] = OrderedDict()
        """By product, those that changed last at the end."""
        self.everything: set[Listener] = set()
        """Those that subscribed to all products."""
        self.behind: dict[Tail, None] = {}
        """Tails for which a page should be read."""
        self.ready: dict[Listener, None] = {}
        """Those that take more again, in the order of their turns."""

    # Beginning and ending

    @property
    def listener_count(self) -> int:
        """How many subscribers there are."""
        return len(self._listeners)

    def enter(
        self, request: Subscribe, product_id: str, standing: Standing | None, subscriber: Subscriber, ticket: int
    ) -> Answer:
        """Begin a subscription to one product, in place of an earlier one; return the answer.

        Args:
            request: what was asked for.
            product_id: the product.
            standing: of its ledger; None when it cannot be read.
            subscriber: who asked.
            ticket: of the request.
        """
        if standing is None:
            return NOT_EXECUTED
        if not standing.exists and not standing.epoch:
            return NOT_FOUND
        listener = self._listeners.get(subscriber) or Listener(subscriber, ticket)
        before = listener.cursors.get(product_id)
        if before is None and not self._has_room(listener, product_id):
            return BUSY
        if before is not None:
            self._remove(before)
        version = standing.version if request.after_version is None else request.after_version
        cursor = self._add(listener, self._tail(product_id, standing), version, implicit=False)
        listener.ticket = ticket
        other_epoch = request.epoch is not None and request.epoch != standing.epoch
        if request.after_version is not None and (version > standing.version or other_epoch):
            cursor.generation = _NO_GENERATION  # what it was told holds no longer
        return Subscribed(product_id=product_id, version=standing.version, epoch=standing.epoch)

    def _has_room(self, listener: Listener, product_id: str) -> bool:
        limits = self._limits
        if not listener.everything and len(listener.cursors) >= limits.named_count_max:
            return False
        if product_id not in self.tails and len(self.tails) >= limits.product_count_max:
            return False
        return self.cursor_count < limits.cursor_count_max

    def enter_everything(self, standings: Mapping[str, Standing | None], subscriber: Subscriber, ticket: int) -> Answer:
        """Begin a subscription to all products; return the answer. Subscriptions to some of them stay what they are."""
        listener = self._listeners.get(subscriber) or Listener(subscriber, ticket)
        if listener.everything:
            return Subscribed(version=0)  # it goes on
        if self.cursor_count + len(standings) - len(listener.cursors) > self._limits.cursor_count_max:
            return BUSY  # most are told so here, before thousands of names are compared
        new = standings.keys() - listener.cursors.keys()
        if self.cursor_count + len(new) > self._limits.cursor_count_max:
            return BUSY
        if len(self.tails.keys() | new) > self._limits.product_count_max:
            return BUSY
        listener.everything, listener.ticket = True, ticket
        self.everything.add(listener)
        self._listeners[subscriber] = listener
        subscriber.listening = True
        for name in new:
            standing = standings[name]
            if standing is not None:  # else it is new once it can be read
                cursor = self._add(listener, self._tail(name, standing), standing.version, implicit=True)
                cursor.announced = False
        return Subscribed(version=0)

    def follow_new(self, product_ids: set[str]) -> None:
        """Follow, from their beginning, products that have come to be for those who subscribed to all."""
        for listener in list(self.everything):
            for name in product_ids - listener.cursors.keys():
                if not self._has_room(listener, name):
                    self._dismiss(listener)
                    break
                self._add(listener, self._tail(name, Standing(exists=True)), 0, implicit=True)
                self.ready[listener] = None

    def dismiss_everything(self) -> None:
        """Part from those who subscribed to all products: there are more than anybody can follow."""
        for listener in list(self.everything):
            self._dismiss(listener)

    def _dismiss(self, listener: Listener) -> None:
        """Part from one that would miss something."""
        self.forget(listener.subscriber)
        listener.subscriber.dismiss(BUSY)

    def forget_deleted(self, tail: Tail) -> None:
        """Let those who subscribed to all go of a product that is gone, once they know; it may come to be again."""
        for cursor in list(tail.cursors):
            if cursor.implicit and _is_level(cursor):
                self._remove(cursor)

    def forget(self, subscriber: Subscriber) -> None:
        """Let go of a subscriber that is gone."""
        listener = self._listeners.pop(subscriber, None)
        if listener is not None:
            self.everything.discard(listener)
            for cursor in list(listener.cursors.values()):
                self._remove(cursor)

    def _tail(self, product_id: str, standing: Standing) -> Tail:
        tail = self.tails.get(product_id)
        if tail is None:
            tail = self.tails[product_id] = Tail(product_id, standing.epoch, standing.version)
        return tail

    def _add(self, listener: Listener, tail: Tail, version: int, *, implicit: bool) -> Cursor:
        cursor = Cursor(listener, tail, version, implicit=implicit)
        listener.cursors[tail.product_id] = cursor
        listener.due[cursor] = None
        tail.cursors.add(cursor)
        self.cursor_count += 1
        self._listeners[listener.subscriber] = listener
        listener.subscriber.listening = True
        return cursor

    def _remove(self, cursor: Cursor) -> None:
        """End a subscription; a product that nobody follows any more is forgotten."""
        tail, listener = cursor.tail, cursor.listener
        del listener.cursors[tail.product_id]
        listener.due.pop(cursor, None)
        tail.cursors.discard(cursor)
        tail.lagging.discard(cursor)
        self.cursor_count -= 1
        if not tail.cursors:
            self.tails.pop(tail.product_id, None)
            self.behind.pop(tail, None)

    # Serving

    def pump(self, subscriber: Subscriber) -> None:
        """Give a turn to a subscriber that takes more again, or that has had an answer."""
        listener = self._listeners.get(subscriber)
        if listener is not None and listener.due and listener.takes_more:
            self.ready[listener] = None

    def serve_ready(self) -> None:
        """Serve those whose turn it is, until it is the buyers' turn."""
        size = number = 0
        while self.ready and size < self._limits.turn_size_max and number < self._limits.turn_count_max:
            listener = next(iter(self.ready))
            del self.ready[listener]
            pushed_size = 0
            for cursor in list(islice(listener.due, self._limits.turn_count_max)):
                pushed_size += self.serve(cursor)
                number += 1
                if pushed_size >= self._limits.push_size_max or not listener.takes_more:
                    break
            size += pushed_size
            if listener.due and listener.takes_more:
                self.ready[listener] = None

    def serve_some(self, cursors: deque[Cursor]) -> None:
        """Serve these in turn, until it is the buyers' turn; those are left that take more."""
        size = number = 0
        while cursors and size < self._limits.turn_size_max and number < self._limits.turn_count_max:
            cursor = cursors.popleft()
            pushed_size = self.serve(cursor)
            if pushed_size and cursor in cursor.listener.due:
                cursors.append(cursor)
            size += pushed_size
            number += 1

    def serve(self, cursor: Cursor) -> int:
        """Push a slice of what is in memory, if the subscriber takes it; return its size in bytes.

        If that was not everything the cursor is due, or waits for a page.
        """
        tail, listener = cursor.tail, cursor.listener
        listener.due.pop(cursor, None)
        if cursor in tail.lagging or cursor not in tail.cursors or _is_level(cursor):
            return 0
        if not listener.takes_more:
            listener.due[cursor] = None
            return 0
        frames = self._next_slice(cursor)
        if frames:
            listener.subscriber.push(frames)
            if not _is_level(cursor):
                listener.due[cursor] = None
        return len(frames)

    def _next_slice(self, cursor: Cursor) -> bytes:
        """Return what comes next and move the cursor behind it; nothing when a page has to be read."""
        tail = cursor.tail
        renewed = cursor.generation != tail.generation
        if renewed:
            cursor.generation, cursor.version = tail.generation, 0
        if not cursor.announced:
            cursor.announced = True
            return _mark(Mark.SUBSCRIBED, tail, cursor.version)
        if renewed:
            return _mark(Mark.RESET, tail)
        window = self._find_window(tail, cursor.version)
        if window is None:
            tail.lagging.add(cursor)
            self.behind[tail] = None
            return b""
        if 0 < cursor.version < window.opened:  # it knows an earlier sale
            cursor.version = 0
            return _mark(Mark.RESET, tail)
        frames, cursor.version = window.after(cursor.version, self._limits.push_size_max)
        return frames

    def find_current(self, tail: Tail) -> list[Cursor]:
        """Return those that wait for nothing but news."""
        return [cursor for cursor in tail.cursors if cursor not in cursor.listener.due and cursor not in tail.lagging]

    def take_lagging(self, tail: Tail) -> set[Cursor]:
        """Take out and return those that wait for a page."""
        lagging, tail.lagging = tail.lagging, set()
        return lagging

    def _find_window(self, tail: Tail, version: int) -> Window | None:
        """Return what is in memory behind a version: the last changes, or a page that was read for somebody."""
        if tail.window.base <= version:
            return tail.window
        for generation, page in self._pages:
            if generation == tail.generation and page.base <= version < page.version:
                self._pages_used = True
                return page
        return None

    def keep_page(self, tail: Tail, page: Window) -> None:
        """Keep a page for a moment: who cannot take all of it at once comes back for the rest."""
        self._pages.appendleft((tail.generation, page))
        size = sum(window.size for _, window in self._pages)
        while len(self._pages) > _PAGE_COUNT_MAX or (size > self._limits.pages_size_max and len(self._pages) > 1):
            size -= self._pages.pop()[1].size
        self._pages_used = True

    def drop_idle_pages(self) -> None:
        """Let go of the pages if nobody was served from one since this was last called."""
        if not self._pages_used:
            self._pages.clear()
        self._pages_used = False

    def trim(self, tail: Tail) -> None:
        """Let go of the oldest changes of a product that are kept beyond the limits."""
        limits = self._limits
        share = limits.kept_total_size_max // max(1, len(self.tails))
        tail.window.trim(limits.kept_count_max, min(limits.kept_size_max, share))


def _is_level(cursor: Cursor) -> bool:
    """Whether there is nothing to push."""
    tail = cursor.tail
    return cursor.generation == tail.generation and cursor.version >= tail.window.version and cursor.announced


def _mark(mark: Mark, tail: Tail, version: int = 0) -> bytes:
    event = FeedEvent(event=mark, product_id=tail.product_id, version=version, epoch=tail.window.epoch)
    return encode_feed_event(event)
