"""What it takes to rebuild a sale: its terms, what was left after each order, which store it was in."""

import sqlalchemy as sa
from alembic import op

from flashsale.orders.tables import Name

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add to the first tables."""
    op.add_column("products", sa.Column("early", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("products", sa.Column("terms", sa.Text))
    op.add_column("orders", sa.Column("refund_version", sa.BigInteger))
    op.add_column("orders", sa.Column("remaining", sa.BigInteger))
    op.create_table(
        "stores",
        sa.Column("store_id", Name(32)),
        sa.PrimaryKeyConstraint("store_id", name="pk_stores"),
    )
