"""What is asked of the tables: orders, changes that the database did not take, and attempts."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from flashsale.domain.sale import Change, Portion
from flashsale.orders.database import Database
from flashsale.orders.moving import write_row
from flashsale.orders.tables import attempt_recorders, attempts, attempts_dropped, dead_letters, orders

ORDER_COLUMNS = tuple(column.name for column in orders.c)
_PAGE_COUNT = 2_000


async def _pages(
    database: Database, query: sa.Select[Any], column: sa.Column[Any], first: Any
) -> AsyncIterator[dict[str, Any]]:
    """Yield rows by a column that is different in each, from behind a value; each page is a transaction of its own."""
    last = first
    while True:
        page_query = query.where(column > last).order_by(column).limit(_PAGE_COUNT)
        async with database.reading() as connection:
            page = (await connection.execute(page_query)).mappings().all()
        for row in page:
            yield dict(row)
        if len(page) < _PAGE_COUNT:
            return
        last = page[-1][column.name]


async def list_orders(
    database: Database, product_id: str | None = None, user_id: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Yield orders by their ids, which is by time; a row by the names of its columns, times in Unix ms."""
    query = sa.select(orders)
    if product_id is not None:
        query = query.where(orders.c.product_id == product_id)
    if user_id is not None:
        query = query.where(orders.c.user_id == user_id)
    async for row in _pages(database, query, orders.c.order_id, ""):
        yield row


async def list_dead_letters(database: Database) -> Sequence[dict[str, Any]]:
    """Return the changes that are in no row of their own, the oldest first."""
    query = sa.select(dead_letters).where(dead_letters.c.solved_at.is_(None)).order_by(dead_letters.c.id)
    async with database.reading() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


async def retry(database: Database, number: int, now_ms: int) -> bool:
    """Write the rows of a dead letter; return whether there is one of that number.

    Raises:
        DatabaseError: the database still does not take it.
    """
    async with database.writing() as connection:
        letter = await _take_letter(connection, number, now_ms)
        if letter is None:
            return False
        change = msgspec.json.decode(letter["entry"], type=Change)
        portion = Portion(letter["product_id"], letter["epoch"], [change])
        await write_row(connection, portion, msgspec.json.decode(letter["later"]))
    return True


async def _take_letter(connection: AsyncConnection, number: int, now_ms: int) -> Any:
    is_it = sa.and_(dead_letters.c.id == number, dead_letters.c.solved_at.is_(None))
    letter = (await connection.execute(sa.select(dead_letters).where(is_it).with_for_update())).mappings().first()
    if letter is not None:
        await connection.execute(sa.update(dead_letters).where(is_it).values(solved_at=now_ms))
    return letter


class AttemptsWanted(Struct, frozen=True, kw_only=True):
    """Which attempts; None means of any."""

    product_id: str
    user_id: str | None = None
    outcome: str | None = None

    def condition(self) -> sa.ColumnElement[bool]:
        """Return what holds of their rows."""
        is_it = attempts.c.product_id == self.product_id
        if self.user_id is not None:
            is_it &= attempts.c.user_id == self.user_id
        if self.outcome is not None:
            is_it &= attempts.c.outcome == self.outcome
        return is_it


async def list_attempts(database: Database, wanted: AttemptsWanted) -> AsyncIterator[dict[str, Any]]:
    """Yield attempts, the oldest first; a row by the names of its columns, times in Unix ms."""
    query = sa.select(attempts).where(wanted.condition())
    async for row in _pages(database, query, attempts.c.id, 0):
        yield row


async def count_attempts(database: Database, wanted: AttemptsWanted) -> dict[str, int]:
    """Return how many attempts had which outcome, the most frequent first."""
    count = sa.func.count()
    query = sa.select(attempts.c.outcome, count).where(wanted.condition()).group_by(attempts.c.outcome)
    async with database.reading() as connection:
        found = [(outcome, number) for outcome, number in await connection.execute(query)]
    return dict(sorted(found, key=lambda pair: (-pair[1], pair[0])))


async def count_dropped(database: Database) -> dict[str, int]:
    """Return how many attempts, of whatever products, were dropped for which reason."""
    count = sa.func.sum(attempts_dropped.c.attempt_count)
    query = sa.select(attempts_dropped.c.reason, count).group_by(attempts_dropped.c.reason)
    async with database.reading() as connection:
        return {reason: int(number) for reason, number in await connection.execute(query)}


async def has_recorded(database: Database) -> bool:
    """Return whether a server ever recorded attempts here."""
    async with database.reading() as connection:
        return (await connection.execute(sa.select(attempt_recorders.c.name).limit(1))).first() is not None
