"""What the migrations are made of: each step is done unless it was done before.

MySQL ends its transaction with every table that is made, so whoever dies in the middle of a migration leaves a part of
it, and the next begins with the same one.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op


def create_table(name: str, *columns: sa.Column[Any] | sa.Constraint, **options: Any) -> None:
    """Make a table, unless it is there."""
    op.create_table(name, *columns, if_not_exists=True, **options)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column to a table, unless it has it."""
    if column.name not in {known["name"] for known in sa.inspect(op.get_bind()).get_columns(table)}:
        op.add_column(table, column)


def create_index(name: str, table: str, columns: list[str]) -> None:
    """Make an index, unless it is there."""
    if name not in {known["name"] for known in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, columns)
