"""A store that went backwards must not sell: it would give away again what the database knows to be sold.

That is a store that was set back to a copy of before, a replica that was promoted and was behind, or an empty one in
the place of one that was lost. Each product of which the database knows more is frozen, until an operator has it
rebuilt.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import sqlalchemy as sa

from flashsale.domain.sale import Standing
from flashsale.orders.database import Database
from flashsale.orders.moving import positions
from flashsale.orders.tables import past_sales, stores

_TIMEOUT_S = 1.0

_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class Sales(Protocol):
    """The sales in a store; see flashsale.store.outbox. Its calls raise StoreUnavailableError."""

    async def store_name(self, *, give: bool = False) -> str:
        """Return the name of the store, which is given one if need be."""
        ...

    async def standings(self, product_ids: Sequence[str]) -> list[Standing]:
        """Return how far these products have come here."""
        ...

    async def freeze(self, product_id: str, found_epoch: str, epoch: str, version: int) -> bool:
        """Stop the sale of a product."""
        ...


class Fence:
    """Compares a store with a database."""

    def __init__(self, sales: Sales, database: Database, *, writes: bool = False) -> None:
        """Compare these.

        Args:
            sales: the store.
            database: the tables; nothing is compared before they are made.
            writes: whether to write down there which store its rows come from.
        """
        self._writes = writes
        self._sales = sales
        self._database = database
        self._has_tables = False
        self._checking: asyncio.Task[list[str]] | None = None

    async def check(self) -> list[str]:
        """Freeze what must not be sold; return those products.

        Raises:
            DatabaseError: it cannot be compared with the database.
            StoreUnavailableError: the store cannot be reached.
        """
        if not self._has_tables:
            self._has_tables = await self._database.has_table(stores.name)
        if not self._has_tables:
            return []
        store = await self._sales.store_name(give=self._writes)
        # as of one instant: what it says of earlier sales must not be newer than what it says of the last one
        async with self._database.reading(one_instant=True) as connection:
            known = await positions(connection)
            names = set(await connection.scalars(sa.select(stores.c.store_id)))
            standings = dict(zip(known, await self._sales.standings(list(known)), strict=True))
            is_lost = bool(names) and store not in names
            others = [name for name, at in standings.items() if at.epoch and at.epoch != known[name][0]]
            query = sa.select(past_sales).where(past_sales.c.product_id.in_(others))
            past = {tuple(row) for row in await connection.execute(query)} if others else set()
        behind = [
            name
            for name, at in standings.items()
            if (name, at.epoch) in past
            or (at.epoch == known[name][0] and at.version < known[name][1])
            # else it was reset; a stock that was set by hand is a new sale
            or (is_lost and not at.epoch and not at.exists)
        ]
        frozen = [
            product_id
            for product_id in behind
            if await self._sales.freeze(product_id, standings[product_id].epoch, *known[product_id])
        ]
        for product_id in frozen:
            _log.error(
                "product %r is frozen: the store has come to version %d, the database knows version %d;"
                " rebuild it with flashsale recover",
                product_id,
                standings[product_id].version,
                known[product_id][1],
            )
        if self._writes and store and store not in names:
            async with self._database.writing() as connection:
                await connection.execute(sa.insert(stores).values(store_id=store))
        return frozen

    async def check_soon(self) -> None:
        """Check before anything is sold, but do not keep buyers waiting for a database that does not answer.

        Whoever goes on checking will find out later then; that is what the log says.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self.check())
        await self.settle()
        error: BaseException | None = TimeoutError("it does not answer")
        if self._checking.done():
            error = self._checking.exception()
        if error is not None:
            _log.warning("selling before the store could be compared with the database: %s", error)

    async def settle(self) -> None:
        """Wait for a check that is on its way; it is not cancelled, in the middle of a transaction."""
        if self._checking is not None:
            await asyncio.wait({self._checking}, timeout=_TIMEOUT_S)
