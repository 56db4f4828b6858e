"""Inserts many rows at once, in the way that each database takes fastest.

What a row costs is mostly what is done to it before it goes out: here that is done by the column.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

_ROW_COUNT_MAX = 2_000
"""In one statement."""


async def insert(connection: AsyncConnection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, which have the same columns."""
    if not rows:
        return
    names = list(rows[0])
    if connection.dialect.name == "postgresql":
        # one statement and an array for each column: less than half the time of a statement for each row
        arrays = [sa.func.unnest(sa.bindparam(name, type_=ARRAY(table.c[name].type))) for name in names]
        unnested = sa.insert(table).from_select(names, sa.select(*arrays))
        for first in range(0, len(rows), _ROW_COUNT_MAX):
            some = rows[first : first + _ROW_COUNT_MAX]
            await connection.execute(unnested, {name: [row[name] for row in some] for name in names})
        return
    statement = (
        sa.insert(table).values({name: sa.bindparam(name) for name in names}).compile(dialect=connection.dialect)
    )
    columns = [_as_driver_takes(table.c[name], [row[name] for row in rows], connection.dialect) for name in names]
    by_name = dict(zip(names, columns, strict=True))
    order = statement.positiontup or names
    await connection.exec_driver_sql(str(statement), list(zip(*(by_name[name] for name in order), strict=True)))


def _as_driver_takes(column: sa.Column[Any], values: list[Any], dialect: sa.Dialect) -> list[Any]:
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    if process is None:
        return values
    try:
        processed = {value: process(value) for value in set(values)}  # the rows of a batch have few times
    except ValueError as error:
        raise StatementError(str(error), None, None, error) from error
    return [processed[value] for value in values]
