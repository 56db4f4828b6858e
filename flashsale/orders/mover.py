"""Moves what happens in the ledgers into the database, for as long as it runs.

Any number may run: the row of a product is the lock, and says what is new. Whatever fails is tried again, in order, so
that no change overtakes another of its product; a change that the database will not take goes to the dead letters after
some tries, and blocks nobody.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from flashsale.crash import crash_point
from flashsale.errors import DatabaseError, LedgerGapError, StoreUnavailableError
from flashsale.orders.database import Database
from flashsale.orders.fence import Fence
from flashsale.orders.moving import Portion, bury, move, positions
from flashsale.store.outbox import Delivery

TRIES_MAX = 5
"""Of a change that the database does not take, before it goes to the dead letters."""
_WAIT_S = 0.5
"""For changes, between two looks at which products there are."""
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0
"""After a failure of the store or the database, growing."""
_PUT_OFF_S = 0.5
"""Until a product is tried again whose next change was not taken."""

_TRIMMED_TOGETHER_COUNT = 64
"""Products whose ledgers are trimmed after a look."""

_log = logging.getLogger(__name__)


class Outbox(Protocol):
    """The ledgers of all products; see flashsale.store.outbox. Its calls raise StoreUnavailableError."""

    async def epochs(self) -> dict[str, str]:
        """Return the sale that each product has at present."""
        ...

    async def read(self, positions: dict[str, int], wait_s: float) -> list[Delivery]:
        """Return what follows these versions, or a part of it."""
        ...

    async def note(self, product_id: str, epoch: str, version: int) -> None:
        """Note up to where a sale is in the database."""
        ...

    async def trim(self, product_ids: Iterable[str]) -> None:
        """Forget what need not be kept of these ledgers."""
        ...


class Mover:
    """One mover; `run` it once."""

    def __init__(
        self,
        outbox: Outbox,
        database: Database,
        *,
        fence: Fence | None = None,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Move from there to there.

        Args:
            outbox: the ledgers.
            database: its tables are made first, if they are not there.
            fence: what keeps a store from selling that went backwards.
            revive: called when the store cannot be reached: it may start it again.
        """
        self._fence = fence
        self._outbox = outbox
        self._database = database
        self._revive = revive
        self._positions: dict[str, tuple[str, int]] = {}  # as far as is known; another mover may be ahead
        self._tries: Counter[tuple[str, int]] = Counter()
        self._troubles: dict[str, str] = {}  # products whose next change cannot be moved, and why
        self._again_at: dict[str, float] = {}  # when they are tried again
        self._trimmed_last = ""  # the product with which the last trimming ended, in the order of names
        self._ending = asyncio.Event()
        self.moved_count = 0
        """Changes moved."""

    def end(self) -> None:
        """Have `run` return once what it is moving is in the tables.

        To cancel it is for when that takes too long: a connection cancelled in a transaction may keep its locks,
        and SQLite's its thread.
        """
        self._ending.set()

    async def run(self) -> None:
        """Move until told to end; troubles are waited out."""
        pause_s, trouble, looked_at, upgraded = _PAUSE_S, "", float("-inf"), False
        myself = asyncio.current_task()
        while not self._ending.is_set():
            if myself is not None and myself.cancelling():
                raise asyncio.CancelledError  # once more: a driver that is rolling back may keep it to itself
            try:
                if not upgraded:
                    await self._database.upgrade()
                    upgraded = True
                now = asyncio.get_running_loop().time()
                if now - looked_at >= _WAIT_S:
                    if self._fence is not None:
                        await self._fence.check()
                    await self.look()
                    await self.trim()
                    looked_at = now
                await self.step(_WAIT_S)
                if trouble:
                    _log.info("orders are moved again")
                pause_s, trouble = _PAUSE_S, ""
            except (DatabaseError, StoreUnavailableError) as error:
                if str(error) != trouble:
                    _log.warning("orders are not moved: %s", error)
                pause_s, trouble, looked_at = min(2 * pause_s, _PAUSE_MAX_S), str(error), float("-inf")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), pause_s)
                if isinstance(error, StoreUnavailableError) and self._revive is not None and not self._ending.is_set():
                    with suppress(StoreUnavailableError):
                        await self._revive()

    async def look(self) -> None:
        """Learn which products there are, and how far each is."""
        epochs = await self._outbox.epochs()
        async with self._database.reading() as connection:
            known = await positions(connection)
        self._positions = {
            name: known[name] if known.get(name, ("", 0))[0] == epoch else (epoch, 0) for name, epoch in epochs.items()
        }
        for told in (self._troubles, self._again_at):
            for name in told.keys() - epochs.keys():
                del told[name]

    async def trim(self) -> None:
        """Trim the ledgers of some products, by turns."""
        names = sorted(self._positions)
        behind = bisect_right(names, self._trimmed_last)
        some = (names[behind:] + names[:behind])[:_TRIMMED_TOGETHER_COUNT]
        if some:
            await self._outbox.trim(some)
            self._trimmed_last = some[-1]

    async def step(self, wait_s: float) -> int:
        """Move what there is, or what comes within so many seconds; return how many changes that were."""
        now = asyncio.get_running_loop().time()
        wanted = {
            name: version for name, (_, version) in self._positions.items() if self._again_at.get(name, now) <= now
        }
        if not wanted:
            await asyncio.sleep(wait_s)
            return 0
        deliveries = await self._outbox.read(wanted, wait_s)
        for found in deliveries:
            if not found.changes:
                self._put_off(found.product_id, found.fault)
        if deliveries:
            crash_point("after-fetch")
        return await self._move(
            [Portion(found.product_id, found.epoch, found.changes) for found in deliveries if found.changes]
        )

    async def _move(self, portions: Sequence[Portion]) -> int:
        """Move portions in one transaction, or each by itself if one of them is not taken."""
        if not portions:
            return 0
        try:
            async with self._database.writing() as connection:
                count = await move(connection, portions)
                crash_point("before-commit")
            crash_point("after-commit")
        except (DatabaseError, LedgerGapError) as error:
            if isinstance(error, DatabaseError) and not error.is_final:
                raise
            if len(portions) > 1:
                return sum([await self._move([portion]) for portion in portions])
            return await self._divide(portions[0], error)
        for portion in portions:
            await self._advance(portion)
        crash_point("after-note")
        self.moved_count += count
        return count

    async def _divide(self, portion: Portion, error: DatabaseError | LedgerGapError) -> int:
        """Find the change that is not taken; what stands before it is moved, what stands behind it must wait."""
        if isinstance(error, LedgerGapError):
            self._put_off(portion.product_id, str(error))
            return 0
        changes = portion.changes
        if len(changes) == 1:
            return await self._bury(portion, str(error))
        middle, count = len(changes) // 2, 0
        for half in (changes[:middle], changes[middle:]):
            count += await self._move([Portion(portion.product_id, portion.epoch, half)])
            if self._positions[portion.product_id] != (portion.epoch, half[-1].version):
                break
        return count

    async def _bury(self, portion: Portion, reason: str) -> int:
        """Put a change that the database does not take to the dead letters, if it was tried often enough."""
        [change] = portion.changes
        tried = (portion.product_id, change.version)
        self._tries[tried] += 1
        if self._tries[tried] < TRIES_MAX:
            self._put_off(portion.product_id, reason)
            return 0
        try:
            async with self._database.writing() as connection:
                await bury(connection, portion, reason)
        except DatabaseError as error:
            if not error.is_final:
                raise
            self._put_off(portion.product_id, str(error))  # it cannot even be counted: one unit too many
            return 0
        del self._tries[tried]
        _log.error("version %d of product '%s' is a dead letter: %s", change.version, portion.product_id, reason)
        await self._advance(portion)
        return 1

    async def _advance(self, portion: Portion) -> None:
        version = portion.changes[-1].version
        self._positions[portion.product_id] = portion.epoch, version
        self._troubles.pop(portion.product_id, None)
        with suppress(StoreUnavailableError):  # it may be full, or read-only: what is there is moved all the same
            await self._outbox.note(portion.product_id, portion.epoch, version)

    def _put_off(self, product_id: str, why: str) -> None:
        """Leave a product alone for a while."""
        if self._troubles.get(product_id) != why:
            _log.warning("orders of product '%s' are not moved: %s", product_id, why)
        self._troubles[product_id] = why
        self._again_at[product_id] = asyncio.get_running_loop().time() + _PUT_OFF_S
