"""Purchase over gRPC beside an empty method of grpc.aio with the same messages.

In turns, so that a slow minute of the machine hits all alike. The client, the machine and the messages
are the same; every call has ids of its own. Ratios are taken within a round, and the median of the rounds is reported.
"""

import asyncio
import secrets
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from bench import proc
from bench.grpc_client import Crowd, Told
from bench.report import Target, spread
from bench.rig import Rig, open_rig
from bench.stage import SERVE, child_environment, started_server, temporary_home
from flashsale.errors import FlashsaleError

EMPTY, SOLD_OUT, SELLING = "an empty method", "Purchase, sold out", "Purchase, selling"
PURCHASES = (SOLD_OUT, SELLING)
_EMPTY_COMMAND = (sys.executable, "-m", "bench.peers.grpc_empty")
_PRODUCT_ID = "called"
_STOCK_PLENTY = 1_000_000_000
_CONNECTION_COUNT = 4
_CALL_COUNT = 50
_RATIO_MIN = 0.6
_WARM_UP_S = 0.5
_GRACE_S = 60.0
_EXPECTED = {EMPTY: "OK", SOLD_OUT: "RESOURCE_EXHAUSTED", SELLING: "OK"}


class Cell(Struct, frozen=True, kw_only=True):
    """One run."""

    throughput_per_s: float
    server_cpu_us: float
    """CPU time of the server process for one call."""
    client_cpu_share: float
    """How much of one core the client took: at 1.0 it is itself the bound."""
    latency_p50_ms: float
    latency_p99_ms: float


Cells = dict[str, list[Cell]]
"""By what is called, in the order of the rounds."""


def measure(round_count: int, duration_s: float, progress: Callable[[str], None]) -> tuple[Cells, list[Target]]:
    """Measure in turns; return the runs, and each ratio beside what it has to be.

    Raises:
        FlashsaleError: a call had another outcome than it must have, or the store sold something else.
    """
    cells = uvloop.run(_compare(round_count, duration_s, progress))
    return cells, targets_of(cells)


async def _compare(round_count: int, duration_s: float, progress: Callable[[str], None]) -> Cells:
    cells: Cells = {name: [] for name in _EXPECTED}
    with temporary_home() as home, started_server(home, _EMPTY_COMMAND) as empty:
        async with open_rig((*SERVE, "--grpc", "127.0.0.1:0")) as rig:
            own = rig.server.pid, rig.server.grpc_port
            places = {EMPTY: (empty.pid, empty.port)} | dict.fromkeys(PURCHASES, own)
            for name, place in places.items():
                await _run(rig, name, *place, min(_WARM_UP_S, duration_s))
            for number in range(1, round_count + 1):
                for name, place in places.items():
                    progress(f"round {number} of {round_count}: {name}")
                    cells[name].append(await _run(rig, name, *place, duration_s))
    return cells


async def _run(rig: Rig, name: str, pid: int, port: int, duration_s: float) -> Cell:
    if name != EMPTY:
        await rig.admin.init(_PRODUCT_ID, _STOCK_PLENTY if name == SELLING else 0, force=True)
    crowd = Crowd(
        host="127.0.0.1",
        port=port,
        product_id=_PRODUCT_ID,
        connection_count=_CONNECTION_COUNT,
        call_count=_CALL_COUNT,
        duration_s=duration_s,
        run_id=secrets.token_hex(4),
    )
    cpu_s = proc.cpu_s(pid)
    told = await _send(crowd)
    cpu_s = proc.cpu_s(pid) - cpu_s
    if set(told.counts) != {_EXPECTED[name]}:
        raise FlashsaleError(f"{name}: only {_EXPECTED[name]} was expected, not {told.counts}")
    call_count = sum(told.counts.values())
    if name != EMPTY:
        sold_count = (await rig.admin.status(_PRODUCT_ID)).sold
        if sold_count != told.counts.get("OK", 0):
            raise FlashsaleError(f"{name}: {told.counts} were told to buyers, but the store sold {sold_count}")
    return Cell(
        throughput_per_s=call_count / told.duration_s,
        server_cpu_us=cpu_s * 1e6 / call_count,
        client_cpu_share=told.cpu_s / told.duration_s,
        latency_p50_ms=told.latencies_ms[call_count // 2],
        latency_p99_ms=told.latencies_ms[call_count * 99 // 100],
    )


async def _send(crowd: Crowd) -> Told:
    """Let the crowd loose in a process of its own."""
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.grpc_client",
        msgspec.json.encode(crowd).decode(),
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(crowd.duration_s + _GRACE_S):
            out, _ = await client.communicate()
    except TimeoutError:
        raise FlashsaleError("a load generator hangs") from None
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    if client.returncode:
        raise FlashsaleError("a load generator ended before its time")
    return msgspec.json.decode(out, type=Told)


def targets_of(cells: Cells) -> list[Target]:
    """Return the ratios of throughput beside what they have to be, and those of CPU."""
    targets = []
    for name in PURCHASES:
        pairs = list(zip(cells[name], cells[EMPTY], strict=True))
        rates = [own.throughput_per_s / empty.throughput_per_s for own, empty in pairs]
        costs = [own.server_cpu_us / empty.server_cpu_us for own, empty in pairs]
        what = f"{name} / {EMPTY}"
        targets.append(Target(f"{what}: throughput", spread(rates), f">= {_RATIO_MIN:g}", median(rates) >= _RATIO_MIN))
        targets.append(Target(f"{what}: server CPU per call", spread(costs), "", None))
    return targets


ROWS_HEAD = ["4 connections x 50 calls", "Calls/s", "Server CPU, µs", "p50, ms", "p99, ms", "Client CPU"]


def rows_of(cells: Cells) -> list[list[str]]:
    """Return the medians, as rows of a table with the head ROWS_HEAD."""
    return [
        [
            name,
            f"{median(cell.throughput_per_s for cell in found):,.0f}",
            f"{median(cell.server_cpu_us for cell in found):.0f}",
            f"{median(cell.latency_p50_ms for cell in found):.1f}",
            f"{median(cell.latency_p99_ms for cell in found):.1f}",
            f"{median(cell.client_cpu_share for cell in found):.0%}",
        ]
        for name, found in cells.items()
    ]


def as_json(cells: Cells, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"cells": cells, "targets": targets}
