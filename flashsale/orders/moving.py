"""How changes of a ledger become rows: worked out in memory, then written in one transaction.

What makes it exactly once: the row of a product says up to which version its changes are in the tables, and moves on in
the transaction that writes them. A change that comes again is below it, one that comes too early leaves a gap. Of a
sale whose product was opened anew nothing is taken any more: it may be told again by whoever was late.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection

from flashsale.domain.counters import Counters
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Change, Kind, Portion
from flashsale.errors import LedgerGapError
from flashsale.orders.inserting import insert
from flashsale.orders.tables import dead_letters, holds, orders, pages, past_sales, products


class Rows:
    """What a portion does to the tables, followed change by change."""

    def __init__(self, portion: Portion) -> None:
        self._of_sale = {"product_id": portion.product_id, "epoch": portion.epoch}
        self.orders: dict[int, dict[str, Any]] = {}
        self.holds: dict[int, dict[str, Any]] = {}
        # of rows that were written before, by their versions
        self.refunds: dict[int, dict[str, Any]] = {}
        self.hold_changes: dict[int, dict[str, Any]] = {}
        self.counters = Counters()

    def feed(self, change: Change) -> None:
        """Follow the next change."""
        self.counters.follow(change)
        match change.kind:
            case Kind.SOLD:
                self._sell(change)
            case Kind.HELD:
                ends = {"status": "held", "expires_at": change.expires_at * 1000, "ended_at": None}
                self.holds[change.version] = self._named(change) | ends
            case Kind.EXTENDED:
                self._change_hold(change.ref, {"expires_at": change.expires_at * 1000})
            case Kind.CONFIRMED:
                self._end(change)
                self._sell(change)
            case Kind.CANCELLED | Kind.EXPIRED:
                self._end(change)
            case Kind.REFUNDED:
                rows = self.orders if change.ref in self.orders else self.refunds
                refunded = {"status": "refunded", "refunded_at": change.at_ms, "refund_version": change.version}
                rows.setdefault(change.ref, {}).update(refunded)
            case Kind.OPENED | Kind.RESTOCKED | Kind.PAUSED | Kind.RESUMED | Kind.CLOSED:
                pass

    def _named(self, change: Change) -> dict[str, Any]:
        return self._of_sale | {
            "version": change.version,
            "user_id": change.user_id,
            "quantity": change.quantity,
            "item_id": change.item_id or None,
            "request_id": change.request_id or None,
            "created_at": change.at_ms,
        }

    def _sell(self, change: Change) -> None:
        order = self._named(change)
        order["order_id"] = make_order_id(OrderRef(version=change.version, at_ms=change.at_ms, **self._of_sale))
        order["hold_version"] = change.ref or None
        order["status"] = "confirmed"
        order["remaining"] = change.remaining
        order["refunded_at"] = order["refund_version"] = None
        self.orders[change.version] = order

    def _end(self, change: Change) -> None:
        self._change_hold(change.ref, {"status": change.kind.value, "ended_at": change.at_ms})

    def _change_hold(self, version: int, values: dict[str, Any]) -> None:
        rows = self.holds if version in self.holds else self.hold_changes
        rows.setdefault(version, {}).update(values)


async def positions(
    connection: AsyncConnection, product_ids: Iterable[str], *, lock: bool = False
) -> dict[str, tuple[str, int]]:
    """Return epoch and version up to which the changes of these products are in the tables; without new ones.

    Args:
        connection: in whose transaction.
        product_ids: the products.
        lock: whether this transaction alone may move them on until it ends.
    """
    names = sorted(product_ids)  # two that lock some of the same wait for each other in turn, not in a circle
    found: dict[str, tuple[str, int]] = {}
    for some in pages(names):
        query = sa.select(products.c.product_id, products.c.epoch, products.c.version)
        query = query.where(products.c.product_id.in_(some))
        query = query.order_by(products.c.product_id)
        for name, epoch, version in await connection.execute(query.with_for_update() if lock else query):
            found[name] = epoch, version
    return found


async def move(connection: AsyncConnection, portions: Sequence[Portion]) -> int:
    """Write what is new in these portions, one for each product; return how many changes that were.

    Raises:
        LedgerGapError: what comes before a portion is not in the tables.
    """
    known = await _lock(connection, portions)
    count = 0
    new_orders: list[dict[str, Any]] = []
    new_holds: list[dict[str, Any]] = []
    for portion in sorted(portions, key=lambda portion: portion.product_id):  # two movers wait, but not for each other
        if portion.product_id not in known:
            continue
        epoch, version = known[portion.product_id]
        changes = _unseen(portion, epoch, version)
        if not changes:
            continue
        count += len(changes)
        rows = work_out(structs.replace(portion, changes=changes))
        await _write_product(connection, portion, changes, rows, epoch)
        await _write_updates(connection, portion, rows)
        new_orders += rows.orders.values()
        new_holds += rows.holds.values()
    await insert(connection, orders, new_orders)
    await insert(connection, holds, new_holds)
    return count


async def _lock(connection: AsyncConnection, portions: Sequence[Portion]) -> dict[str, tuple[str, int]]:
    """Return the positions of these products, ("", 0) for new ones; without those whose portion is of a past sale."""
    found = await positions(connection, [portion.product_id for portion in portions], lock=True)
    known = {portion.product_id: found.get(portion.product_id, ("", 0)) for portion in portions}
    others = {portion.product_id: portion.epoch for portion in portions if portion.product_id in found}
    others = {name: epoch for name, epoch in others.items() if epoch != found[name][0]}
    if others:  # seldom: a product was opened anew, or somebody was late
        query = sa.select(past_sales).where(past_sales.c.product_id.in_(list(others)))
        for name, epoch in await connection.execute(query):
            if others[name] == epoch:
                del known[name]
    return known


async def write_row(connection: AsyncConnection, portion: Portion, later: Mapping[str, Any]) -> None:
    """Write the row of one change that is counted already.

    Args:
        connection: in whose transaction.
        portion: the change.
        later: what has become of the row since.
    """
    rows = work_out(portion)
    for row in (*rows.orders.values(), *rows.holds.values()):
        row.update(later)
    await _write_updates(connection, portion, rows)
    await insert(connection, orders, list(rows.orders.values()))
    await insert(connection, holds, list(rows.holds.values()))


async def bury(connection: AsyncConnection, portion: Portion, reason: str) -> None:
    """Count a change, but put it to the dead letters instead of into a row of its own."""
    [change] = portion.changes
    known = await _lock(connection, [portion])
    if portion.product_id not in known or not _unseen(portion, *known[portion.product_id]):
        return
    rows = work_out(portion)
    await _write_product(connection, portion, portion.changes, rows, known[portion.product_id][0])
    letter = {
        "product_id": portion.product_id,
        "epoch": portion.epoch,
        "version": change.version,
        "entry": msgspec.json.encode(change).decode(),
        "later": "{}",
        "error": reason,
        "created_at": change.at_ms,
    }
    await connection.execute(sa.insert(dead_letters), [letter])


def _unseen(portion: Portion, epoch: str, version: int) -> Sequence[Change]:
    """Return the changes that are not in the tables, which hold those of `epoch` up to `version`."""
    changes = portion.changes
    if not changes or (portion.epoch == epoch and changes[-1].version <= version):
        return []
    for change, behind in pairwise(changes):
        if behind.version != change.version + 1:
            raise LedgerGapError(portion.product_id, change.version, behind.version)
    if portion.epoch != epoch:
        if changes[0].kind is not Kind.OPENED:
            raise LedgerGapError(portion.product_id, 0, changes[0].version)
        return changes
    if changes[0].version > version + 1:
        raise LedgerGapError(portion.product_id, version, changes[0].version)
    return changes[version + 1 - changes[0].version :]


def work_out(portion: Portion) -> Rows:
    """Return what a portion does to the tables."""
    rows = Rows(portion)
    for change in portion.changes:
        rows.feed(change)
    return rows


async def _write_product(
    connection: AsyncConnection, portion: Portion, changes: Sequence[Change], rows: Rows, known_epoch: str
) -> None:
    """Move a product on, which stands in the table with another sale, with this one, or not at all ("")."""
    first, last = changes[0], changes[-1]
    sums = rows.counters
    moved = {"version": last.version, "changed_at": last.at_ms} | ({"state": sums.state} if sums.state else {})
    counted = {"restocked": sums.restocked, "sold": sums.sold, "held": sums.held}
    is_it = products.c.product_id == portion.product_id
    if first.kind is not Kind.OPENED:
        grown = {name: products.c[name] + number for name, number in counted.items()}
        await connection.execute(sa.update(products).where(is_it).values(moved | grown))
        return
    opened = {
        "epoch": portion.epoch,
        "initial": sums.initial,
        "early": first.ref,
        "opened_at": first.at_ms,
        "terms": None if first.terms is None else msgspec.json.encode(first.terms).decode(),
    }
    begun = opened | counted | moved
    if known_epoch:
        past = {"product_id": portion.product_id, "epoch": known_epoch}
        await connection.execute(sa.insert(past_sales), [past])
        await connection.execute(sa.update(products).where(is_it).values(begun))
    else:
        await connection.execute(sa.insert(products).values(begun | {"product_id": portion.product_id}))


async def _write_updates(connection: AsyncConnection, portion: Portion, rows: Rows) -> None:
    """Write what becomes of rows of earlier transactions."""
    if rows.hold_changes or rows.refunds:
        await _write_updates_of_letters(connection, portion, rows.hold_changes | rows.refunds)
    for table, changed in (holds, rows.hold_changes), (orders, rows.refunds):
        for names in {tuple(values) for values in changed.values()}:  # one statement for those that change alike
            is_row = sa.and_(
                table.c.product_id == portion.product_id,
                table.c.epoch == portion.epoch,
                table.c.version == sa.bindparam("of_version"),
            )
            statement = sa.update(table).where(is_row).values({name: sa.bindparam(name) for name in names})
            alike = [{"of_version": version, **values} for version, values in changed.items() if tuple(values) == names]
            await connection.execute(statement, alike)


async def _write_updates_of_letters(
    connection: AsyncConnection, portion: Portion, changed: Mapping[int, dict[str, Any]]
) -> None:
    """Write what becomes of rows that are dead letters: they will have it when they are written."""
    query = sa.select(dead_letters.c.id, dead_letters.c.version, dead_letters.c.later).where(
        dead_letters.c.product_id == portion.product_id,
        dead_letters.c.epoch == portion.epoch,
        dead_letters.c.solved_at.is_(None),
    )
    for number, version, later in (await connection.execute(query.with_for_update())).all():
        if version in changed:
            both = msgspec.json.decode(later) | changed[version]
            letter = sa.update(dead_letters).where(dead_letters.c.id == number)
            await connection.execute(letter.values(later=msgspec.json.encode(both).decode()))
