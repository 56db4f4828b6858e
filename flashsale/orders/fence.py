"""A store that went backwards must not sell: it would give away again what the database knows to be sold.

That is a store that was set back to a copy of before, a replica that was promoted and was behind, or an empty one in
the place of one that was lost. Each product of which the database knows more is frozen, until an operator has it
rebuilt.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from flashsale.domain.sale import Standing
from flashsale.errors import DatabaseError
from flashsale.orders.database import Database
from flashsale.orders.tables import RESET, pages, past_sales, products, stores

_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class Sales(Protocol):
    """The sales in a store; see flashsale.store.outbox. Its calls raise StoreUnavailableError."""

    async def store_name(self, *, give: bool = False) -> str:
        """Return the name of the store, which is given one if need be."""
        ...

    async def listed(self) -> list[str]:
        """Return the products that have a ledger here."""
        ...

    async def standings(self, product_ids: Sequence[str]) -> list[Standing]:
        """Return how far these products have come here."""
        ...

    async def run_name(self) -> str:
        """Return what is another one each time that the store is started."""
        ...

    async def moments(self, versions: Mapping[str, int]) -> dict[str, int]:
        """Return when changes of these versions happened, in Unix ms."""
        ...

    async def freeze(self, product_id: str, found: Standing, epoch: str, version: int) -> bool:
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
        self._run = ""  # of the store
        self._compared: set[str] = set()  # products whose changes were compared in that run, and which were there since
        self._checking: asyncio.Task[list[str]] | None = None
        self._asking: asyncio.Task[list[str]] | None = None

    async def check(self) -> list[str]:
        """Freeze what must not be sold; return those products.

        Raises:
            DatabaseError: it cannot be compared with the database.
            StoreUnavailableError: the store cannot be reached.
        """
        if not await self._find_tables():
            return []
        store = await self._sales.store_name(give=self._writes)
        # as of one instant: what it says of earlier sales must not be newer than what it says of the last one
        run, listed = await self._sales.run_name(), await self._sales.listed()
        async with self._database.reading(one_instant=True) as connection:
            rows = await _read_rows(connection, listed)
            known = {name: (row.epoch, row.version) for name, row in rows.items()}
            names = set(await connection.scalars(sa.select(stores.c.store_id)))
            standings = dict(zip(known, await self._sales.standings(list(known)), strict=True))
            is_lost = bool(names) and store not in names
            others = [name for name, at in standings.items() if at.epoch and at.epoch != known[name][0]]
            past = await _read_past(connection, others)
        same = {name for name, at in standings.items() if at.epoch == known[name][0] and at.version >= known[name][1]}
        # a store that was set back, or has lost a sale, may have come farther again with other orders
        unsure = same - self._compared if run == self._run else same
        moments = await self._sales.moments({name: known[name][1] for name in unsure}) if unsure else {}
        absent = {name for name, at in standings.items() if not at.epoch and not at.exists}
        behind = [
            name
            for name, at in standings.items()
            if (name, at.epoch) in past
            or (at.epoch == known[name][0] and name not in same)
            or moments.get(name, rows[name].changed_at) != rows[name].changed_at
            # else it was reset; a stock that was set by hand is a new sale
            or (is_lost and name in absent and rows[name].state != RESET)
        ]
        frozen = [name for name in behind if await self._freeze(name, standings[name], *known[name])]
        if self._writes:
            states = dict.fromkeys([] if is_lost else absent, RESET)
            # opened once more as the same sale, after the store was set back to before it
            states |= {name: "open" for name, at in standings.items() if at.epoch == known[name][0]}
            await self._write(store if store not in names else "", states, rows)
        self._run, self._compared = run, same.difference(behind)
        return frozen

    async def _find_tables(self) -> bool:
        if not self._has_tables:
            self._has_tables = await self._database.has_table(stores.name)
        return self._has_tables

    async def _freeze(self, product_id: str, found: Standing, epoch: str, version: int) -> bool:
        """Freeze a product, and tell the log; see Sales.freeze."""
        if not await self._sales.freeze(product_id, found, epoch, version):
            return False
        _log.error(
            "product %r is frozen: the store has come to version %d, the database knows version %d;"
            " rebuild it with flashsale recover",
            product_id,
            found.version,
            version,
        )
        return True

    async def _write(self, store: str, states: Mapping[str, str], rows: Mapping[str, Any]) -> None:
        """Write down what store this is, if that is new, and which products were reset, or are there again."""
        news = {name: state for name, state in states.items() if (state == RESET) != (rows[name].state == RESET)}
        if not store and not news:
            return
        async with self._database.writing() as connection:
            if store:
                await connection.execute(sa.insert(stores).values(store_id=store))
            for name, state in news.items():
                is_it = sa.and_(
                    products.c.product_id == name,
                    products.c.epoch == rows[name].epoch,
                    products.c.version == rows[name].version,
                )
                await connection.execute(sa.update(products).where(is_it).values(state=state))

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

    async def check_due(self, product_ids: Sequence[str]) -> list[str]:
        """Freeze those of these sales that the database knows already, before they are opened; return them.

        The store has lost such a sale. Opened once more it might have come farther than the database before anybody
        compared the two, and then it could be told from the first one by its moments alone.

        Raises:
            DatabaseError: it cannot be asked, or does not answer soon: buyers should not be kept waiting for that.
            StoreUnavailableError: the store cannot be reached.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._freeze_known(product_ids))
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())  # whoever waits or not
            await asyncio.wait({self._asking}, timeout=_TIMEOUT_S)
            if self._asking.done():
                return self._asking.result()
        raise DatabaseError(f"the database at {self._database} does not answer")

    async def _freeze_known(self, product_ids: Sequence[str]) -> list[str]:
        if not await self._find_tables():
            return []
        query = sa.select(products.c.product_id, products.c.epoch, products.c.version)
        async with self._database.reading() as connection:
            rows = list(await connection.execute(query.where(products.c.product_id.in_(product_ids))))
        standings = await self._sales.standings([row.product_id for row in rows]) if rows else []
        return [
            row.product_id
            for row, at in zip(rows, standings, strict=True)
            if not at.exists and not at.epoch and await self._freeze(row.product_id, at, row.epoch, row.version)
        ]

    async def settle(self) -> None:
        """Wait for what is on its way; it is not cancelled, in the middle of a transaction."""
        under_way = {task for task in (self._checking, self._asking) if task is not None}
        if under_way:
            await asyncio.wait(under_way, timeout=_TIMEOUT_S)


async def _read_past(connection: AsyncConnection, product_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return the earlier sales of products that are known, by their ids and epochs."""
    found: set[tuple[str, str]] = set()
    for some in pages(product_ids):
        query = sa.select(past_sales).where(past_sales.c.product_id.in_(some))
        found.update((row.product_id, row.epoch) for row in await connection.execute(query))
    return found


async def _read_rows(connection: AsyncConnection, listed: Sequence[str]) -> dict[str, Any]:
    """Return what is known of products, by their ids.

    Of those that were reset, whose number grows for ever, only what the store lists again: the others are not there.
    """
    query = sa.select(*(products.c[name] for name in ("product_id", "epoch", "version", "changed_at", "state")))
    found = list(await connection.execute(query.where(products.c.state != RESET)))
    for some in pages(listed):
        found += await connection.execute(query.where(products.c.state == RESET, products.c.product_id.in_(some)))
    return {row.product_id: row for row in found}
