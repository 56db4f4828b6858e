"""Subscriptions, kept served: whoever asked for the changes of a product gets each once, in order, at his own pace.

Two tasks read the ledgers, each with a connection of its own. `_follow` waits for what is new; the last changes of each
product are kept in memory, already encoded, and most subscribers are served from there. `_read` asks where a ledger
stands for those who subscribe, and reads pages for those who are further behind: for the last of them, so that each
page serves everyone it reaches. A third one, `_push`, serves those who could not take everything at once. Each of the
three pushes so many bytes and then lets the buyers have a turn.

A worker without subscribers asks the store nothing.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import Any, Protocol

from msgspec import Struct

from flashsale.domain.answers import BUSY, NOT_EXECUTED
from flashsale.domain.requests import Subscribe
from flashsale.domain.sale import Page, Standing
from flashsale.errors import StoreUnavailableError
from flashsale.subscriptions import Cursor, FeedLimits, Subscriber, Subscriptions, Tail
from flashsale.window import Window

_log = logging.getLogger(__name__)

_WAIT_S = 0.25
"""For so long at most a product that is new to this worker is not yet waited for."""
_CHECK_S = 1.0
"""How often products are looked for that are new, deleted or opened anew."""
_RETRY_PAUSE_S = 0.2
_SERVED_TOGETHER_COUNT = 512
"""Changes after which subscribers are served before more are made into frames."""
_ENCODED_TOGETHER_COUNT = 128
"""Changes of a page made into frames before the buyers of this worker have a turn: about 0.3 ms."""
_ADMITTED_TOGETHER_COUNT = 256
"""SUBSCRIBEs for which the store is asked in one go."""


class Ledger(Protocol):
    """Reads the ledgers of products; one call at a time. Every method raises StoreUnavailableError."""

    async def standings(self, product_ids: Sequence[str]) -> list[Standing | None]:
        """Return how far each ledger has come; None for one that cannot be read."""
        ...

    async def products(self, count_max: int) -> set[str] | None:
        """Return the ids of the products that have a ledger; None when there are more than so many."""
        ...

    async def page(self, product_id: str, after_version: int) -> Page | None:
        """Return what the ledger holds behind a version, or the first part of it; None when it cannot be read."""
        ...

    async def wait(self, positions: Mapping[str, int], timeout_s: float) -> list[Page]:
        """Wait until one of these ledgers grows beyond its position; return what came, nothing after the time-out."""
        ...

    async def close(self) -> None:
        """Give up the connection."""
        ...


class _Asked(Struct, frozen=True):
    request: Subscribe
    subscriber: Subscriber
    ticket: int


class Feed:
    """Takes subscriptions and serves them. Belongs to one event loop."""

    def __init__(self, reading: Ledger, following: Ledger, limits: FeedLimits | None = None) -> None:
        """Serve nobody yet.

        Args:
            reading: for what subscribers ask for.
            following: for waiting.
            limits: the bounds.
        """
        self._reading, self._following = reading, following
        self._limits = limits or FeedLimits()
        self._loop = asyncio.get_running_loop()
        self._subscriptions = Subscriptions(self._limits)
        self._tails = self._subscriptions.tails
        self._behind = self._subscriptions.behind
        self._ready = self._subscriptions.ready
        self._asked: list[_Asked] = []
        self._to_read = asyncio.Event()
        self._to_follow = asyncio.Event()
        self._to_push = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: str | None = None

    # Called by the door

    def subscribe(self, request: Subscribe, subscriber: Subscriber, ticket: int) -> None:
        """Take a SUBSCRIBE; its answer comes when the store has told where the ledger stands."""
        if len(self._asked) >= self._limits.asked_count_max:
            subscriber.answer(ticket, BUSY)
            return
        if not self._tasks:
            context = Context()  # of their own: they outlive whoever subscribes first
            works = (self._read(), self._follow(), self._push())
            self._tasks = [self._loop.create_task(work, context=context) for work in works]
        self._asked.append(_Asked(request, subscriber, ticket))
        self._to_read.set()

    def pump(self, subscriber: Subscriber) -> None:
        """Serve a subscriber that takes more again, or that has had an answer."""
        self._subscriptions.pump(subscriber)
        self._wake_pusher()

    def forget(self, subscriber: Subscriber) -> None:
        """Let go of a subscriber that is gone."""
        self._subscriptions.forget(subscriber)

    @property
    def subscriber_count(self) -> int:
        """How many follow something."""
        return self._subscriptions.listener_count

    async def close(self) -> None:
        """Stop; SUBSCRIBEs without an answer are refused."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._refuse(self._asked)
        self._asked = []
        await self._reading.close()
        await self._following.close()

    # Reading what subscribers ask for

    async def _read(self) -> None:
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            await self._survive(self._read_all())
            if self._asked or self._behind:  # it ended early
                self._to_read.set()

    async def _read_all(self) -> None:
        while self._asked or self._behind:
            if self._asked:
                await self._admit()
            if self._behind:
                await self._catch_up(next(iter(self._behind)))

    async def _admit(self) -> None:
        """Ask where the ledgers stand that somebody wants to follow, and begin."""
        asked = deque(self._asked[:_ADMITTED_TOGETHER_COUNT])
        del self._asked[:_ADMITTED_TOGETHER_COUNT]
        everything: set[str] | None = None
        try:
            if not all(item.request.product_id for item in asked):
                everything = await self._reading.products(self._limits.product_count_max)
            named = {item.request.product_id for item in asked if item.request.product_id}
            names = sorted(named | (everything or set()))
            known = self._known(names)
            standings = dict(zip(names, await self._reading.standings(names), strict=True))
            if not self._outdated(known, names):
                await self._begin(asked, standings, everything)
        except BaseException:
            self._refuse([*asked, *self._asked])  # the others would only wait as long for the same
            self._asked.clear()
            raise
        self._asked[:0] = asked  # what was read for them may be of before
        self._to_follow.set()

    async def _begin(
        self, asked: deque[_Asked], standings: Mapping[str, Standing | None], everything: set[str] | None
    ) -> None:
        """Begin these subscriptions; those are left for which the store has to be asked again.

        Args:
            asked: each is answered when it is taken out.
            standings: of their products, and of everything.
            everything: all products; None when there are more than anybody can follow.
        """
        for name, standing in standings.items():
            tail = self._tails.get(name)
            if tail is not None and standing is not None and tail.window.epoch != standing.epoch:
                tail.renew(standing.epoch)
        found = {name: standings[name] for name in everything or ()}
        while asked:
            item = asked.popleft()
            request, subscriber, ticket = item.request, item.subscriber, item.ticket
            if not subscriber.connected:
                continue
            product_id, count = request.product_id, self._subscriptions.cursor_count
            if product_id:
                answer = self._subscriptions.enter(request, product_id, standings[product_id], subscriber, ticket)
            elif everything is None:
                answer = BUSY
            else:
                answer = self._subscriptions.enter_everything(found, subscriber, ticket)
            subscriber.answer(ticket, answer)
            subscriber.flush()  # and it is served what is there, if the answer has had its turn
            if self._subscriptions.cursor_count > count + 1:  # it may be thousands
                known = self._known(standings)
                await asyncio.sleep(0)
                if self._outdated(known, standings):
                    return

    def _known(self, product_ids: Iterable[str]) -> dict[str, Window]:
        return {name: self._tails[name].window for name in product_ids if name in self._tails}

    def _outdated(self, known: Mapping[str, Window], product_ids: Iterable[str]) -> bool:
        """Whether one of these products has begun another ledger since that was known."""
        return any(known.get(name) is not window for name, window in self._known(product_ids).items())

    @staticmethod
    def _refuse(asked: Iterable[_Asked]) -> None:
        for item in asked:
            item.subscriber.answer(item.ticket, NOT_EXECUTED)
            item.subscriber.flush()

    async def _catch_up(self, tail: Tail) -> None:
        """Read a page for the subscriber that is furthest behind, and serve all whom it reaches."""
        self._behind.pop(tail, None)
        for cursor in [cursor for cursor in tail.lagging if not cursor.listener.subscriber.writable]:
            tail.lagging.discard(cursor)
            cursor.listener.due[cursor] = None
        if not tail.lagging:
            return
        known, base = tail.window, min(cursor.version for cursor in tail.lagging)
        try:
            page = await self._reading.page(tail.product_id, base)
            window = Window(tail.product_id, known.epoch, base) if page is None else await self._encode(page, base)
        except BaseException:
            self._rest(tail, _RETRY_PAUSE_S)
            raise
        if tail.window is known:
            if window.epoch != known.epoch:
                tail.renew(window.epoch)
            elif window.version == base:  # it cannot be read, or is shorter than it was: the check finds out
                self._rest(tail, _CHECK_S)
                return
            else:
                self._subscriptions.keep_page(tail, window)
        cursors = deque(self._subscriptions.take_lagging(tail))
        while cursors:
            await self._serve_some(cursors)
            if self._asked:
                await self._survive(self._admit())

    async def _encode(self, page: Page, base: int) -> Window:
        """Return a page as frames, or the first part of it."""
        window = Window(page.product_id, page.epoch, base)
        for changes in page.batches:
            if window.size >= self._limits.page_size_max:
                return window
            for first in range(0, len(changes), _ENCODED_TOGETHER_COUNT):
                window.extend(changes[first : first + _ENCODED_TOGETHER_COUNT], page.order_times)
                await asyncio.sleep(0)
        if page.complete and window.version < page.version:
            window.skip_to(page.version)
        return window

    def _rest(self, tail: Tail, pause_s: float) -> None:
        """Read for a product again after a while."""

        def again() -> None:
            if tail.lagging:
                self._behind[tail] = None
                self._wake_reader()

        self._loop.call_later(pause_s, again)

    def _wake_reader(self) -> None:
        if self._behind:
            self._to_read.set()

    # Following

    async def _follow(self) -> None:
        checked_at = -math.inf
        while True:
            if not self._tails and not self._subscriptions.everything:
                self._to_follow.clear()
                await self._to_follow.wait()
            if self._loop.time() - checked_at >= _CHECK_S and await self._survive(self._check()):
                checked_at = self._loop.time()
            if not await self._survive(self._await_changes()):
                checked_at = -math.inf

    async def _await_changes(self) -> None:
        waited = list(islice(reversed(self._tails.values()), self._limits.waited_count_max))
        known = {tail.product_id: tail.window for tail in waited}
        for page in await self._following.wait({tail.product_id: tail.position for tail in waited}, _WAIT_S):
            await self._take(page, known[page.product_id])

    async def _check(self) -> None:
        """Look for products that are new, deleted or opened anew, and for changes that are not waited for."""
        self._subscriptions.drop_idle_pages()
        if self._subscriptions.everything:
            product_ids = await self._following.products(self._limits.product_count_max)
            if product_ids is None:
                self._subscriptions.dismiss_everything()
            else:
                self._subscriptions.follow_new(product_ids)
                self._wake_pusher()
        tails = list(self._tails.values())
        known = [(tail.window, tail.window.version) for tail in tails]
        standings = await self._following.standings([tail.product_id for tail in tails])
        for tail, (window, version), standing in zip(tails, known, standings, strict=True):
            if standing is None or tail.window is not window:
                continue
            if standing.epoch != window.epoch or standing.version < version:
                tail.renew(standing.epoch)
            if standing.version > tail.window.version:
                known_now = tail.window
                page = await self._following.page(tail.product_id, known_now.version)
                if page is not None:
                    await self._take(page, known_now)
            if tail.renewed:
                tail.renewed = False
                await self._serve_all(tail)
            if not standing.epoch:
                self._subscriptions.forget_deleted(tail)

    async def _take(self, page: Page, known: Window) -> None:
        """Add to a product's last changes what was read when they were `known`, and serve its subscribers."""
        tail = self._tails.get(page.product_id)
        if tail is None or tail.window is not known:
            return
        if page.epoch != known.epoch:
            tail.renew(page.epoch)  # what was read may be of either; it is read again
            return
        self._tails.move_to_end(page.product_id)
        served = known.version
        for changes in page.batches:
            known.extend(changes, page.order_times)
            if known.version - served >= _SERVED_TOGETHER_COUNT:
                served = known.version
                await self._serve_all(tail)
                if tail.window is not known:
                    return
                self._subscriptions.trim(tail)
        if page.complete and known.version < page.version:
            known.skip_to(page.version)
        tail.position = max(page.position, known.version)
        await self._serve_all(tail)
        self._subscriptions.trim(tail)

    async def _serve_all(self, tail: Tail) -> None:
        """Serve all who have come as far as they could; the others have turns of their own."""
        cursors = deque(self._subscriptions.find_current(tail))
        await self._serve_some(cursors)
        while cursors:
            await self._serve_some(cursors)

    async def _serve_some(self, cursors: deque[Cursor]) -> None:
        self._subscriptions.serve_some(cursors)
        self._wake_reader()
        await asyncio.sleep(0)

    # Going on with those who take more again

    def _wake_pusher(self) -> None:
        if self._ready:
            self._to_push.set()

    async def _push(self) -> None:
        while True:
            await self._survive(self._serve_ready())

    async def _serve_ready(self) -> None:
        """Serve whoever takes more again, for ever."""
        while True:
            await self._to_push.wait()
            self._to_push.clear()
            while self._ready:
                self._subscriptions.serve_ready()
                self._wake_reader()
                await asyncio.sleep(0)

    async def _survive(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it; return whether it went well. Pause when it did not: subscribers wait until it does."""
        try:
            await work
        except StoreUnavailableError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.warning("subscribers wait: %s", error)
            await asyncio.sleep(_RETRY_PAUSE_S)
            return False
        except Exception:  # noqa: BLE001 - a bug, which must not end all subscriptions
            _log.exception("subscribers wait")
            await asyncio.sleep(_CHECK_S)
            return False
        self._trouble = None
        return True
