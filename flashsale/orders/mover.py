"""Moves what happens in the ledgers into the database, for as long as it runs.

Any number may run: the row of a product is the lock, and says what is new. A change that the database will not take
goes to the dead letters after some tries, and blocks nobody.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from flashsale.crash import crash_point
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Kind, Portion
from flashsale.errors import DatabaseError, LedgerGapError, OutcomeUnknownError, StoreUnavailableError
from flashsale.orders.carrier import Carrier, Outbox
from flashsale.orders.database import Database
from flashsale.orders.fence import Fence
from flashsale.orders.moving import bury, move, positions

TRIES_MAX = 5
"""Of a change that the database does not take, before it goes to the dead letters."""

_log = logging.getLogger(__name__)


class Mover(Carrier):
    """One mover; `run` it once.

    To cancel it is for when its end takes too long: a connection cancelled in a transaction may keep its locks, and
    SQLite's its thread.
    """

    def __init__(
        self,
        outbox: Outbox,
        database: Database,
        *,
        fence: Fence | None = None,
        reject: Callable[[str], Awaitable[None]] | None = None,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Move from there to there.

        Args:
            outbox: the ledgers.
            database: its tables are made first, if they are not there.
            fence: what keeps a store from selling that went backwards.
            reject: called with the id of an order that the database does not take, before it becomes a dead letter.
            revive: called when the store cannot be reached: it may start it again.
        """
        super().__init__(outbox, revive)
        self._database = database
        self._fence = fence
        self._reject = reject
        self._tries: Counter[tuple[str, int]] = Counter()

    async def _prepare(self) -> None:
        await self._database.upgrade()

    async def _known(self, epochs: Mapping[str, str]) -> dict[str, tuple[str, int]]:
        async with self._database.reading() as connection:
            return await positions(connection, epochs)

    async def tend(self) -> None:
        """Freeze what must not be sold, and trim ledgers."""
        if self._fence is not None:
            await self._fence.check()
        await super().tend()

    async def _carry(self, portions: Sequence[Portion]) -> int:
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
                return sum([await self._carry([portion]) for portion in portions])
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
            count += await self._carry([Portion(portion.product_id, portion.epoch, half)])
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
        if self._reject is not None and change.kind in {Kind.SOLD, Kind.CONFIRMED}:
            ref = OrderRef(portion.product_id, portion.epoch, change.version, change.at_ms)
            try:
                await self._reject(make_order_id(ref))
            except (StoreUnavailableError, OutcomeUnknownError) as error:
                self._put_off(portion.product_id, str(error))
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
