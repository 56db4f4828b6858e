"""What the tables know of a sale: enough to refund an order, to audit the sale, and to rebuild it.

A dead letter belongs to it as the rows do: what it tells of did happen, and is counted.
"""

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from flashsale.domain.counters import Counters
from flashsale.domain.ids import parse_order_id
from flashsale.domain.sale import Change, Portion, Terms
from flashsale.orders.database import Database
from flashsale.orders.moving import Rows, work_out
from flashsale.orders.tables import RESET, dead_letters, holds, orders, products
from flashsale.store.records import HoldRecord
from flashsale.store.replay import Base, PastOrder

_SUMS = ("version", "initial", "restocked", "sold", "held")
_decode_terms = msgspec.json.Decoder(Terms).decode


async def read_base(database: Database, product_id: str) -> Base | None:
    """Return the present sale of a product, all of it as of one instant; None when it is not in the tables."""
    async with database.reading(one_instant=True) as connection:
        query = sa.select(products).where(products.c.product_id == product_id)
        product = (await connection.execute(query)).mappings().first()
        if product is None:
            return None
        of_orders = sa.and_(orders.c.product_id == product_id, orders.c.epoch == product["epoch"])
        found = await connection.execute(sa.select(orders).where(of_orders))
        past = {row["version"]: dict(row) for row in found.mappings()}
        of_holds = sa.and_(
            holds.c.product_id == product_id, holds.c.epoch == product["epoch"], holds.c.status == "held"
        )
        found = await connection.execute(sa.select(holds).where(of_holds))
        held = {row["version"]: dict(row) for row in found.mappings()}
        for rows in await _read_letters(connection, product_id, product["epoch"]):
            _add(rows.orders, rows.refunds, past)
            _add(rows.holds, rows.hold_changes, held)
    # what is noted as reset is asked for when it was not: the store had lost it, and now it is to be there again
    state = "open" if product["state"] == RESET else product["state"]
    return Base(
        epoch=product["epoch"],
        counters=Counters(state=state, **{name: product[name] for name in _SUMS}),
        early_count=product["early"],
        terms=_decode_terms(product["terms"]) if product["terms"] else None,
        orders=[_order(past[version]) for version in sorted(past)],
        holds=[_hold(held[version]) for version in sorted(held) if held[version]["status"] == "held"],
    )


async def find_order(database: Database, order_id: str) -> PastOrder | None:
    """Return an order; None when it is not in the tables."""
    async with database.reading() as connection:
        query = sa.select(orders).where(orders.c.order_id == order_id)
        row = (await connection.execute(query)).mappings().first()
        ref = parse_order_id(order_id)
        if row is not None or ref is None:
            return None if row is None else _order(dict(row))
        letters = await _read_letters(connection, ref.product_id, ref.epoch, ref.version)
    found = [row for rows in letters for row in rows.orders.values() if row["order_id"] == order_id]
    return _order(found[0]) if found else None


async def _read_letters(
    connection: AsyncConnection, product_id: str, epoch: str, version: int | None = None
) -> list[Rows]:
    """Return what the dead letters of a sale do to the tables, by version; of one version alone if it is given."""
    query = sa.select(dead_letters.c.entry, dead_letters.c.later).where(
        dead_letters.c.product_id == product_id, dead_letters.c.epoch == epoch, dead_letters.c.solved_at.is_(None)
    )
    if version is not None:
        query = query.where(dead_letters.c.version == version)
    letters = []
    for entry, later in await connection.execute(query.order_by(dead_letters.c.version)):
        rows = work_out(Portion(product_id, epoch, [msgspec.json.decode(entry, type=Change)]))
        for row in (*rows.orders.values(), *rows.holds.values()):
            row.update(msgspec.json.decode(later))
        letters.append(rows)
    return letters


def _add(new: dict[int, dict[str, Any]], changed: dict[int, dict[str, Any]], rows: dict[int, dict[str, Any]]) -> None:
    """Add new rows to those of a table, and what has become of others."""
    rows.update(new)
    for version in changed.keys() & rows.keys():
        rows[version].update(changed[version])


def _order(row: dict[str, Any]) -> PastOrder:
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


def _hold(row: dict[str, Any]) -> tuple[HoldRecord, int]:
    record = HoldRecord(
        row["user_id"],
        row["quantity"],
        row["item_id"] or 0,
        row["request_id"] or "",
        row["version"],
        -(-row["created_at"] // 1000),
    )
    return record, row["expires_at"] // 1000
