"""A shop with a recurring sale, and the rush of visitors at it; in the end their counts are held against the sale's."""

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from bench import line
from bench.http.rush import Plan, Rush
from bench.http.shop import Shop, Terms
from bench.result import Result
from bench.rig import Rig, on_rig
from flashsale.domain.schedules import EVERY_MAX_S, Schedule
from flashsale.errors import FlashsaleError

ITEM_COUNT = 10_000
LIMIT = 10
_TIMEOUT_S = 30.0
_POLL_S = 0.05


class Stats(Struct, frozen=True):
    """How far a sale is."""

    sale_id: str
    item_count: int
    sold_count: int
    held_count: int


class Found(Struct, frozen=True):
    """What came of it."""

    plan: Plan
    duration_s: float
    client_cpu_share: float
    """How much of one core the visitors took: at 1.0 they are themselves the bound."""
    results: dict[str, Result]
    """Of each operation."""
    unexpected: Counter[str]
    """Answers that are not documented for what was asked."""
    before: Stats
    after: Stats
    faults: list[str]
    """What is not as it must be, a sentence each."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they go into a JSON file."""
        return {
            "plan": self.plan,
            "duration_s": self.duration_s,
            "client_cpu_share": self.client_cpu_share,
            "operations": line.as_json(self.results),
            "unexpected": self.unexpected,
            "check": {"passed": not self.faults, "faults": self.faults, "before": self.before, "after": self.after},
        }


def rush_own(plan: Plan, progress: Callable[[str], None]) -> Found:
    """Let the visitors at a server of their own, with a sale of 10,000 items, 10 for each user.

    Args:
        plan: how many come.
        progress: called with what comes next.
    """

    async def run(rig: Rig) -> Found:
        # a period that does not end meanwhile: `--every 1h` would, within the last minutes of an hour
        schedule = Schedule(name="bench", every_s=EVERY_MAX_S, item_count=ITEM_COUNT, limit=LIMIT, numbered=True)
        await rig.admin.schedules.add(schedule)
        found = await rush_running(rig.server.host, rig.server.http_port, plan, progress, limit=LIMIT)
        report = await rig.admin.audit(found.after.sale_id)
        if not report.ok:
            found.faults.append("the store differs from its ledger")
        return found

    return on_rig(run)


async def rush_running(
    host: str, port: int, plan: Plan, progress: Callable[[str], None], *, limit: int | None = None
) -> Found:
    """Let the visitors at a running server, whose current sale nobody else is at.

    Raises:
        FlashsaleError: it cannot be reached, or has no current sale.
    """
    before = await _wait_for_sale(host, port)
    shop = Shop(f"{host}:{port}", Terms(item_count=before.item_count, limit=limit))
    rush = Rush(shop, plan)
    progress(f"{plan.rate_per_s:,.0f} visitors a second for {plan.duration_s:g} s")
    await rush.run(host, port)
    after = await asyncio.to_thread(_read_stats, host, port)
    if after is None:
        raise FlashsaleError("the server does not tell any more how far its sale is")
    return Found(
        plan=plan,
        duration_s=rush.timings.duration_s,
        client_cpu_share=rush.cpu_s / rush.timings.duration_s,
        results=dict(sorted(rush.timings.results().items())),
        unexpected=rush.unexpected,
        before=before,
        after=after,
        faults=shop.faults + find_faults(before, after, held_count=shop.held_count, sold_count=shop.purchased_count),
    )


def find_faults(before: Stats, after: Stats, *, held_count: int, sold_count: int) -> list[str]:
    """Return where a sale did not go on by what visitors were told."""
    if before.sale_id != after.sale_id:
        return ["the sale ended meanwhile, and its counts are not known"]
    sold = after.sold_count - before.sold_count
    taken = sold + after.held_count - before.held_count
    faults = []
    if sold != sold_count:
        faults.append(f"{sold_count} visitors purchased, but the sale has {sold} items sold")
    if taken != held_count:
        faults.append(f"{held_count} visitors checked out, but the sale has {taken} items held or sold")
    if after.sold_count + after.held_count > after.item_count:
        faults.append(f"more is sold and held than there are items: {after}")
    return faults


async def _wait_for_sale(host: str, port: int) -> Stats:
    """Return how far the current sale is, once there is one."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while (stats := await asyncio.to_thread(_read_stats, host, port)) is None:  # noqa: ASYNC110 - it is far away
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise FlashsaleError(f"{host}:{port} has no current sale: see `flashsale schedule add`") from None
    return stats


def _read_stats(host: str, port: int) -> Stats | None:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/stats")
        answer = connection.getresponse()
        told = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FlashsaleError(f"cannot ask {host}:{port} how far its sale is: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        return None
    numbers = {name: int(value) for name, value in told["stats"].items()}
    held_count = numbers["total_items"] - numbers["items_sold"] - numbers["current_inventory"]
    return Stats(told["sale_id"], numbers["total_items"], numbers["items_sold"], held_count)
