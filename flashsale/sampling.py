"""Looks at all workers of a server once a second, for whoever wants to see them.

It writes down what is so at the moment in its own worker, and keeps what the workers had counted in the last seconds.
Those who look share one sampler, so that a hundred of them cost the sale what one does.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from flashsale.live import ProductView, Snapshot, summarize
from flashsale.metrics import Board, Reading, Slot
from flashsale.store.links import raise_if_cancelled

BEAT_S = 1.0
_FRESH_S = 0.5
"""Whoever looks within so long sees what the one before saw."""
_ELAPSED_MIN_S = 0.001
"""A server that has just begun has been there so long at least: nothing is divided by 0."""

_log = logging.getLogger(__name__)


class Sampler:
    """One worker's. Belongs to one event loop."""

    def __init__(
        self,
        board: Board,
        slot: Slot,
        products: Callable[[], Awaitable[list[ProductView] | None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet.

        Args:
            board: of all workers.
            slot: of this one, which has begun.
            products: returns those worth showing; None when the store is away.
            now: the clock that the workers were told when they began.
        """
        self._board = board
        self._words = slot.words
        self._sources: list[tuple[int, float, Callable[[], float]]] = []  # where, from which number on, what
        self._products = products
        self._now = now
        self._past = deque([(now(), board.read())], maxlen=2)  # of the last beats
        self._latest: tuple[float, Snapshot] | None = None
        self._looking = asyncio.Lock()
        self._beat = asyncio.Event()  # the next one
        self._waiting_count = 0  # for it

    def watch(self, sources: Mapping[int, Callable[[], float]]) -> None:
        """Write down with each beat, by places in the slot, what is so then.

        That is what a gauge is, or how far a counter has come since this worker was started.
        """
        self._sources += [(place, self._words[place], source) for place, source in sources.items()]

    async def run(self) -> None:
        """Look once a second until cancelled."""
        due_at = self._now()
        while True:
            try:
                self._past.append((self._now(), self.read()))
                if self._waiting_count:
                    await self._look()
            except Exception:  # noqa: BLE001 - a bug, which must not leave those who look waiting for ever
                _log.exception("the sampler failed")
            self._beat.set()
            self._beat = asyncio.Event()
            due_at = max(due_at + BEAT_S, self._now())
            raise_if_cancelled()
            await asyncio.sleep(due_at - self._now())

    def read(self) -> list[Reading]:
        """Return what each worker has counted; its gauges are a second old at most, and this worker's are new."""
        for place, base, source in self._sources:
            self._words[place] = base + source()
        return self._board.read()

    async def products(self) -> list[ProductView] | None:
        """Return the products worth showing; None when the store is away."""
        return await self._products()

    async def look(self) -> Snapshot:
        """Return how things are, and what has happened in a second or two before that."""
        async with self._looking:
            if self._latest is not None and self._now() - self._latest[0] < _FRESH_S:
                return self._latest[1]
            return await self._look()

    async def next(self) -> Snapshot:
        """Return how things are with the next beat; whoever is late for one gets the one after it."""
        self._waiting_count += 1
        try:
            await self._beat.wait()
        finally:
            self._waiting_count -= 1
        return await self.look()

    async def _look(self) -> Snapshot:
        products = await self._products()
        then, before = self._past[0]
        now, after = self._now(), self.read()
        snapshot = summarize(
            before,
            after,
            elapsed_s=max(now - then, _ELAPSED_MIN_S),
            now_s=now,
            at=time.clock_gettime(time.CLOCK_REALTIME),
            products=products,
        )
        self._latest = now, snapshot
        return snapshot
