"""A million buyers, two thousand at a time, and ten thousand units: is each of them answered, and rightly?

Each connection has one request under way, and sends the next when it has its answer; each request is of another user
and, over HTTP, has another request id. The generators count as they go and keep nothing of a request.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from bench import proc
from bench.check import Sale, count_distinct
from bench.crowd import run_load
from bench.load import (
    CONNECTION_LOST,
    NO_ANSWER,
    NOT_CONNECTED,
    NOT_SENT,
    SOLD_OUT,
    SUCCESS,
    Door,
    Load,
)
from bench.result import Result
from bench.rig import Rig, open_rig

_PRODUCT_ID = "mega"
_NETWORK = frozenset({CONNECTION_LOST, NO_ANSWER, NOT_CONNECTED, NOT_SENT})
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}

SOLD, REFUSED, SERVER_ERRORS, NETWORK_ERRORS = "sold", "sold out", "server errors", "network errors and time-outs"
CLASSES = (SOLD, REFUSED, SERVER_ERRORS, NETWORK_ERRORS)


class Plan(Struct, frozen=True, kw_only=True):
    """How many come."""

    request_count: int
    connection_count: int
    stock: int
    process_count: int
    timeout_s: float
    """Until the run is given up; what is not answered then counts as a time-out."""


class Found(Struct, frozen=True):
    """What came of it over one door."""

    door: Door
    plan: Plan
    result: Result
    sale: Sale
    server_memory_kib: int
    """The most that the server had."""

    @property
    def classes(self) -> dict[str, int]:
        """How many requests ended how."""
        counts: Counter[str] = Counter()
        for kind, count in self.result.counts.items():
            counts[_class_of(kind)] += count
        return {name: counts[name] for name in CLASSES}

    @property
    def faults(self) -> list[str]:
        """Return what is not as it must be, a sentence each."""
        classes, faults = self.classes, []
        wanted = min(self.plan.stock, self.plan.request_count)
        answered = classes[SOLD] + classes[REFUSED]
        if answered != self.plan.request_count:
            faults.append(f"{answered:,} of {self.plan.request_count:,} requests were answered as they should be")
        if classes[SOLD] != wanted:
            faults.append(f"{classes[SOLD]:,} buyers were told that they bought, and {wanted:,} were to")
        return faults + self.sale.faults()

    @property
    def latencies_ms(self) -> dict[str, float]:
        """The latencies of the reported percentiles, in milliseconds."""
        return {name: self.result.latency_ms(percentile) for name, percentile in PERCENTILES.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they go into a JSON file."""
        return {
            "plan": self.plan,
            "classes": self.classes,
            "errors_by_kind": self.result.errors,
            "duration_s": self.result.duration_s,
            "throughput_per_s": self.result.throughput_per_s,
            "latency_ms": self.latencies_ms,
            "client_cpu_s": self.result.client_cpu_s,
            "client_memory_kib": self.result.client_memory_kib,
            "server_memory_kib": self.server_memory_kib,
            "check": {"passed": not self.faults, "faults": self.faults, "sale": self.sale},
        }


def _class_of(kind: str) -> str:
    if kind == SUCCESS:
        return SOLD
    if kind == SOLD_OUT:
        return REFUSED
    return NETWORK_ERRORS if kind in _NETWORK else SERVER_ERRORS


def run(door: Door, plan: Plan, progress: Callable[[str], None]) -> Found:
    """Let everybody at a server of their own with a fresh store.

    Args:
        door: what they speak.
        plan: how many come.
        progress: called with what comes next, and how many are answered.
    """

    async def work() -> Found:
        async with open_rig() as rig:
            return await _run(rig, door, plan, progress)

    return asyncio.run(work())


async def _run(rig: Rig, door: Door, plan: Plan, progress: Callable[[str], None]) -> Found:
    await rig.admin.init(_PRODUCT_ID, plan.stock)
    load = Load(
        host=rig.server.host,
        port=rig.server.http_port if door is Door.HTTP else rig.server.port,
        product_id=_PRODUCT_ID,
        door=door,
        connection_count=plan.connection_count,
        request_count=plan.request_count // plan.connection_count,
        timeout_s=plan.timeout_s,
    )
    result = await run_load(
        load,
        process_count=plan.process_count,
        progress=lambda count: progress(f"{door}: {count:,} of {plan.request_count:,} answered"),
    )
    status = await rig.admin.status(_PRODUCT_ID)
    sale = Sale(
        stock_before=plan.stock,
        stock_after=status.remaining_stock,
        sold_count=status.sold,
        distinct_buyer_count=await count_distinct(rig.admin.buyers(_PRODUCT_ID)),
        request_count=result.request_count,
        success_count=result.success_count,
        sold_out_count=result.sold_out_count,
        error_count=result.error_count,
        uncertain_count=result.uncertain_count,
    )
    return Found(door, plan, result, sale, proc.rss_kib_max(rig.server.pid))


ROWS_HEAD = [
    "Door",
    "Requests/s",
    *(f"{name}, ms" for name in PERCENTILES),
    *(name.capitalize() for name in CLASSES),
    "Server, MiB",
    "Client, MiB",
]


def row_of(found: Found) -> list[str]:
    """Return the figures as a row of a table with the head ROWS_HEAD."""
    return [
        found.door.upper(),
        f"{found.result.throughput_per_s:,.0f}",
        *(f"{value:,.1f}" for value in found.latencies_ms.values()),
        *(f"{count:,}" for count in found.classes.values()),
        f"{found.server_memory_kib / 1024:.0f}",
        f"{found.result.client_memory_kib / 1024:.0f}",
    ]
