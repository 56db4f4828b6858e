"""What a run under faults must leave behind whatever broke, and what of it is counted."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from flashsale.domain.answers import Success
from flashsale.domain.sale import Change
from flashsale.errors import DatabaseError
from flashsale.store.admin import Admin
from tests.faults.scene import PATIENCE_S, Scene
from tests.history.checks import check
from tests.history.crowd import Recorder
from tests.history.evidence import Evidence, version_of
from tests.history.record import Sale, read_store
from tests.orders import plain

LATENESS_MAX_MS = 20_000
"""How late holds may come back is not the question here, and some faults are long."""


class Found(Struct):
    """What a run left behind; everything is counted over all of its sales."""

    faults: list[str]
    """Sentences, of everything that is not as it must be."""
    lost: list[int]
    """When the calls began whose answers promised what there is not, in ns."""
    twice: int = 0
    """Effects of a request id beyond its first."""
    oversold: int = 0
    """Units."""


async def judge(
    scene: Scene, recorder: Recorder, sales: Sequence[Sale], clock_ms: float, patience_s: float = PATIENCE_S
) -> Found:
    """Check a run that has ended: its history, the store's keys against their ledgers, and the rows once in."""
    found = Found([], [])
    async with Redis.from_url(scene.url) as client, Admin(scene.url) as admin:
        for sale in sales:
            ledger, keys = await read_store(client, sale.product_id)
            history = recorder.history(sale, ledger, keys, clock_ms, LATENESS_MAX_MS)
            found.faults += [f"{name}: {words}" for name, some in check(history).items() for words in some]
            report = await admin.audit(sale.product_id)
            found.faults += [f"audit: {report.fault or difference}" for difference in report.differences or [""]][
                : not report.ok
            ]
            evidence = Evidence(history)
            _count(found, evidence, ledger, sale)
            if scene.moves:
                await _judge_rows(found, scene, client, evidence, patience_s)
    return found


def _count(found: Found, evidence: Evidence, ledger: Sequence[Change], sale: Sale) -> None:
    for version, calls in evidence.claims.items():
        change = evidence.fold.by_version.get(version)
        for call in calls:
            if change is None or call.answer is None or not evidence.is_told(change, call.answer):
                found.lost.append(call.begin)
    found.twice += sum(len(changes) - 1 for changes in evidence.effects.values())
    units = sale.stock + sum(change.quantity for change in ledger if change.kind == "restocked")
    found.oversold += max(0, evidence.fold.states.sold.last - units)


async def _judge_rows(found: Found, scene: Scene, client: Redis, evidence: Evidence, patience_s: float) -> None:
    """Wait until every change that was told is in the tables, then compare them row by row with the ledger."""
    product_id, wanted = evidence.sale.product_id, evidence.fold.last_version
    database = scene.open_database()
    deadline = asyncio.get_running_loop().time() + patience_s
    try:
        while True:
            rows = await _read_rows(database, product_id)
            ledger, _ = await read_store(client, product_id)  # holds may go on expiring
            version = rows["products"][0]["version"] if rows["products"] else 0
            moved = plain.fold(product_id, evidence.epoch, [change for change in ledger if change.version <= version])
            if version >= wanted and rows == plain.together(moved):
                break
            if asyncio.get_running_loop().time() > deadline:
                found.faults.append(
                    f"the rows of {product_id} stay at version {version} of {wanted}, or differ from it"
                )
                break
            await asyncio.sleep(0.05)
    finally:
        await database.close()
    counted = Counter(row["order_id"] for row in rows["orders"])
    for call in evidence.calls:
        if isinstance(call.answer, Success) and version_of(call) <= wanted and counted[call.answer.order_id] != 1:
            found.lost.append(call.begin)
    found.twice += sum(number - 1 for number in counted.values())
    found.twice += sum(number - 1 for number in Counter(map(_request, rows["orders"])).values() if number > 1)
    for row in rows["products"]:
        found.oversold += max(0, row["sold"] - row["initial"] - row["restocked"])


def _request(row: dict[str, Any]) -> object:
    return row["request_id"] or row["order_id"]


async def _read_rows(database: Any, product_id: str) -> plain.Rows:
    try:
        return await plain.read(database, product_id)
    except DatabaseError:  # it may be on its way back
        return {"products": [], "orders": [], "holds": []}
