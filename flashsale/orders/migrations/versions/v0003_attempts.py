"""Attempts."""

import sqlalchemy as sa

from flashsale.orders.making import create_index, create_table
from flashsale.orders.tables import ANY_TEXT, Moment, Name

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables of the attempts. The types are the present ones; the columns stand here for good."""
    create_table(
        "attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("at", Moment, nullable=False),
        sa.Column("product_id", Name(256), nullable=False),
        sa.Column("user_id", Name(256)),
        sa.Column("kind", Name(8), nullable=False),
        sa.Column("quantity", sa.BigInteger),
        sa.Column("item_id", sa.BigInteger),
        sa.Column("request_id", Name(128)),
        sa.Column("outcome", Name(16), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("version", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        **ANY_TEXT,
    )
    create_index("ix_attempts_product_id_id", "attempts", ["product_id", "id"])
    create_table(
        "attempts_dropped",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("at", Moment, nullable=False),
        sa.Column("attempt_count", sa.BigInteger, nullable=False),
        sa.Column("reason", Name(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts_dropped"),
    )
    create_table(
        "attempt_recorders",
        sa.Column("name", Name(16)),
        sa.Column("settled", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_attempt_recorders"),
    )
