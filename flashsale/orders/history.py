"""What the tables know of a sale: enough to refund an order, to audit the sale, and to rebuild it."""

import msgspec
import sqlalchemy as sa

from flashsale.domain.counters import Counters
from flashsale.domain.sale import Terms
from flashsale.orders.database import Database
from flashsale.orders.tables import holds, orders, products
from flashsale.store.records import HoldRecord
from flashsale.store.replay import Base, PastOrder

_decode_terms = msgspec.json.Decoder(Terms).decode


async def read_base(database: Database, product_id: str) -> Base | None:
    """Return the present sale of a product, all of it as of one instant; None when it is not in the tables."""
    async with database.reading(one_instant=True) as connection:
        query = sa.select(products).where(products.c.product_id == product_id)
        product = (await connection.execute(query)).mappings().first()
        if product is None:
            return None
        of_orders = sa.and_(orders.c.product_id == product_id, orders.c.epoch == product["epoch"])
        found = await connection.execute(sa.select(orders).where(of_orders).order_by(orders.c.version))
        past = [_order(row) for row in found.mappings()]
        of_holds = sa.and_(
            holds.c.product_id == product_id, holds.c.epoch == product["epoch"], holds.c.status == "held"
        )
        found = await connection.execute(sa.select(holds).where(of_holds).order_by(holds.c.version))
        standing = [_hold(row) for row in found.mappings()]
    return Base(
        epoch=product["epoch"],
        counters=Counters(*(product[name] for name in ("version", "initial", "restocked", "sold", "held", "state"))),
        early_count=product["early"],
        terms=_decode_terms(product["terms"]) if product["terms"] else None,
        orders=past,
        holds=standing,
    )


async def find_order(database: Database, order_id: str) -> PastOrder | None:
    """Return an order; None when it is not in the tables."""
    async with database.reading() as connection:
        query = sa.select(orders).where(orders.c.order_id == order_id)
        row = (await connection.execute(query)).mappings().first()
    return None if row is None else _order(row)


def _order(row: sa.RowMapping) -> PastOrder:
    return PastOrder(
        version=row["version"],
        at_ms=row["created_at"],
        user_id=row["user_id"],
        quantity=row["quantity"],
        item_id=row["item_id"] or 0,
        request_id=(row["request_id"] or "") if row["hold_version"] is None else "",
        remaining=row["remaining"],
        refund_version=row["refund_version"] or 0,
    )


def _hold(row: sa.RowMapping) -> tuple[HoldRecord, int]:
    record = HoldRecord(
        row["user_id"],
        row["quantity"],
        row["item_id"] or 0,
        row["request_id"] or "",
        row["version"],
        -(-row["created_at"] // 1000),
    )
    return record, row["expires_at"] // 1000
