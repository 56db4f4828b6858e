"""What the tables must hold, worked out change by change in the plainest way; and what they do hold."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Change, Kind
from flashsale.orders.database import Database
from flashsale.orders.tables import attempts, attempts_dropped, dead_letters, holds, metadata, orders, products

Rows = dict[str, list[dict[str, Any]]]

STATES = {Kind.PAUSED: "paused", Kind.RESUMED: "open", Kind.CLOSED: "closed"}


def fold(product_id: str, epoch: str, ledger: Iterable[Change]) -> Rows:
    """Return the rows of one sale, whose ledger this is from its beginning."""
    product: dict[str, Any] = {}
    sold: dict[int, dict[str, Any]] = {}
    held: dict[int, dict[str, Any]] = {}
    for change in ledger:
        named = {
            "product_id": product_id,
            "epoch": epoch,
            "version": change.version,
            "user_id": change.user_id,
            "quantity": change.quantity,
            "item_id": change.item_id or None,
            "request_id": change.request_id or None,
            "created_at": change.at_ms,
        }
        if change.kind == Kind.OPENED:
            product = {"product_id": product_id, "epoch": epoch, "initial": change.quantity, "restocked": 0}
            product |= {"sold": change.ref, "held": 0, "state": "open", "opened_at": change.at_ms}
            terms = None if change.terms is None else msgspec.json.encode(change.terms).decode()
            product |= {"early": change.ref, "terms": terms}
        if change.kind in {Kind.CONFIRMED, Kind.CANCELLED, Kind.EXPIRED}:
            product["held"] -= change.quantity
            held[change.ref] |= {"status": str(change.kind), "ended_at": change.at_ms}
        if change.kind in {Kind.SOLD, Kind.CONFIRMED}:
            product["sold"] += change.quantity
            ref = OrderRef(product_id, epoch, change.version, change.at_ms)
            confirmed = {"order_id": make_order_id(ref), "status": "confirmed", "refunded_at": None}
            confirmed |= {"remaining": change.remaining, "refund_version": None}
            sold[change.version] = named | confirmed | {"hold_version": change.ref or None}
        if change.kind == Kind.HELD:
            product["held"] += change.quantity
            held[change.version] = named | {"status": "held", "expires_at": change.expires_at * 1000, "ended_at": None}
        if change.kind == Kind.EXTENDED:
            held[change.ref]["expires_at"] = change.expires_at * 1000
        if change.kind == Kind.REFUNDED:
            product["sold"] -= change.quantity
            refunded = {"refunded_at": change.at_ms, "refund_version": change.version}
            sold[change.ref] |= {"status": "refunded"} | refunded
        if change.kind == Kind.RESTOCKED:
            product["restocked"] += change.quantity
        product["state"] = STATES.get(change.kind, product["state"])
        product |= {"version": change.version, "changed_at": change.at_ms}
    return {"products": [product] if product else [], "orders": list(sold.values()), "holds": list(held.values())}


def together(*sales: Rows) -> Rows:
    """Return the rows of several sales; of one product only those of the last stand in `products`."""
    present = {row["product_id"]: row for rows in sales for row in rows["products"]}
    return {
        "products": [present[name] for name in sorted(present)],
        **{
            name: sorted(
                (row for rows in sales for row in rows[name]),
                key=lambda row: (row["product_id"], row["epoch"], row["version"]),
            )
            for name in ("orders", "holds")
        },
    }


async def read(database: Database, *product_ids: str) -> Rows:
    """Return the rows of the tables, of these products alone if any are named."""
    found: Rows = {}
    async with database.reading() as connection:
        for table in (products, orders, holds):
            query = sa.select(table)
            if product_ids:
                query = query.where(table.c.product_id.in_(product_ids))
            rows = [dict(row) for row in (await connection.execute(query)).mappings()]
            found[table.name] = sorted(rows, key=lambda row: (row["product_id"], row["epoch"], row["version"]))
    return found


async def read_letters(database: Database) -> list[dict[str, Any]]:
    """Return the dead letters, the solved ones too."""
    async with database.reading() as connection:
        query = sa.select(dead_letters).order_by(dead_letters.c.id)
        return [dict(row) for row in (await connection.execute(query)).mappings()]


async def clear(database: Database) -> None:
    """Empty the tables."""
    async with database.writing() as connection:
        for table in metadata.sorted_tables:
            await connection.execute(sa.delete(table))


async def read_attempts(database: Database) -> list[dict[str, Any]]:
    """Return the attempts in the order in which they were written, without when."""
    async with database.reading() as connection:
        found = (await connection.execute(sa.select(attempts).order_by(attempts.c.id))).mappings()
        return [{name: row[name] for name in row if name not in {"id", "at"}} for row in found]


async def read_dropped(database: Database) -> dict[str, int]:
    """Return how many attempts were dropped, by reason."""
    counts: Counter[str] = Counter()
    async with database.reading() as connection:
        for row in (await connection.execute(sa.select(attempts_dropped))).mappings():
            assert row["attempt_count"] > 0
            counts[row["reason"]] += row["attempt_count"]
    return dict(counts)
