"""What the migrations are made of: in MySQL, each step is done unless it was done before.

MySQL ends its transaction with every table that is made, so whoever dies in the middle of a migration leaves a part of
it, and the next begins with the same one. The others take all back.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from flashsale.errors import DatabaseError
from flashsale.orders.tables import MYSQL


def create_table(name: str, *columns: sa.Column[Any] | sa.Constraint, **options: Any) -> None:
    """Make a table; raise DatabaseError when somebody else has one of that name."""
    found = _made()
    if found is None or not found.has_table(name):
        op.create_table(name, *columns, **options)
        return
    if {column["name"] for column in found.get_columns(name)} != {
        column.name for column in columns if isinstance(column, sa.Column)
    }:
        raise DatabaseError(f"there is a table '{name}' of somebody else: give flashsale a database of its own")


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column to a table."""
    found = _made()
    if found is None or column.name not in {known["name"] for known in found.get_columns(table)}:
        op.add_column(table, column)


def create_index(name: str, table: str, columns: list[str]) -> None:
    """Make an index."""
    found = _made()
    if found is None or name not in {known["name"] for known in found.get_indexes(table)}:
        op.create_index(name, table, columns)


def _made() -> sa.Inspector | None:
    """Return what tells what there is; None where nothing is left of a migration that was not finished."""
    connection = op.get_bind()
    return sa.inspect(connection) if connection.dialect.name in MYSQL else None
