"""What it takes to know a sale again, and to rebuild it."""

import sqlalchemy as sa

from flashsale.orders.making import add_column, create_table
from flashsale.orders.tables import Name

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add to the first tables."""
    add_column("products", sa.Column("early", sa.BigInteger, nullable=False, server_default="0"))
    add_column("products", sa.Column("terms", sa.Text))
    add_column("orders", sa.Column("refund_version", sa.BigInteger))
    add_column("orders", sa.Column("remaining", sa.BigInteger))
    create_table(
        "stores",
        sa.Column("store_id", Name(32)),
        sa.PrimaryKeyConstraint("store_id", name="pk_stores"),
    )
    create_table(
        "past_sales",
        sa.Column("product_id", Name(256)),
        sa.Column("epoch", Name(8)),
        sa.PrimaryKeyConstraint("product_id", "epoch", name="pk_past_sales"),
    )
