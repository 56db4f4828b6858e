"""Products, orders, holds, dead letters."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from flashsale.orders.making import create_index, create_table
from flashsale.orders.tables import ANY_TEXT, MYSQL, Moment, Name

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables. The types are the present ones; the columns stand here for good."""
    create_table(
        "products",
        sa.Column("product_id", Name(256)),
        sa.Column("epoch", Name(8), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("initial", sa.BigInteger, nullable=False),
        sa.Column("restocked", sa.BigInteger, nullable=False),
        sa.Column("sold", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("state", Name(8), nullable=False),
        sa.Column("opened_at", Moment, nullable=False),
        sa.Column("changed_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("product_id", name="pk_products"),
        sa.CheckConstraint("sold >= 0 AND held >= 0", name="ck_products_not_negative"),
        sa.CheckConstraint("sold + held <= initial + restocked", name="ck_products_not_oversold"),
    )
    create_table(
        "orders",
        sa.Column("order_id", Name(320)),
        sa.Column("product_id", Name(256), nullable=False),
        sa.Column("epoch", Name(8), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("user_id", Name(256), nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("item_id", sa.BigInteger),
        sa.Column("request_id", Name(128)),
        sa.Column("hold_version", sa.BigInteger),
        sa.Column("status", Name(16), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("refunded_at", Moment),
        sa.PrimaryKeyConstraint("order_id", name="pk_orders"),
        sa.UniqueConstraint("product_id", "epoch", "version", name="uq_orders_product_id_epoch_version"),
        sa.UniqueConstraint("product_id", "epoch", "request_id", name="uq_orders_product_id_epoch_request_id"),
    )
    create_index("ix_orders_user_id", "orders", ["user_id"])
    create_table(
        "holds",
        sa.Column("product_id", Name(256)),
        sa.Column("epoch", Name(8)),
        sa.Column("version", sa.BigInteger, autoincrement=False),
        sa.Column("user_id", Name(256), nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("item_id", sa.BigInteger),
        sa.Column("request_id", Name(128)),
        sa.Column("status", Name(16), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        sa.Column("ended_at", Moment),
        sa.PrimaryKeyConstraint("product_id", "epoch", "version", name="pk_holds"),
    )
    create_index("ix_holds_user_id", "holds", ["user_id"])
    create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite")),
        sa.Column("product_id", Name(256), nullable=False),
        sa.Column("epoch", Name(8), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.Text().with_variant(mysql.LONGTEXT(), *MYSQL), nullable=False),
        sa.Column("later", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("solved_at", Moment),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        sa.UniqueConstraint("product_id", "epoch", "version", name="uq_dead_letters_product_id_epoch_version"),
        **ANY_TEXT,
    )
