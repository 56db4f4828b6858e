"""Compares POST /api/purchase with plain endpoints, in one go and in turns, as compare.py does over TCP.

(a) this server; (b) a Starlette route under uvicorn that answers everything with a constant, the least that a framework
costs; (c) one that makes one EVALSHA for each purchase through redis-py, with the least script that sells.
(a) and (c) have an embedded store each, with the same settings: append-only file, fsync before every answer. The
client is the same for all, and after each run of (a) and (c) their stores are held against what buyers were told.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from bench import proc
from bench.check import Sale
from bench.compare import Cell, Comparison, server_cpu, throughput
from bench.crowd import run_load
from bench.load import Door, Load
from bench.report import Target, spread
from bench.result import Result
from bench.stage import SERVE, started_server, temporary_home, temporary_store
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store import keys
from flashsale.store.admin import Admin

OURS, CONSTANT, EVALSHA = "a", "b", "c"
PEER_NAMES = {
    OURS: "flashsale",
    CONSTANT: "uvicorn and Starlette, a constant",
    EVALSHA: "uvicorn and Starlette, one EVALSHA",
}
_COMMANDS = {
    OURS: SERVE,
    CONSTANT: (sys.executable, "-m", "bench.peers.starlette_constant"),
    EVALSHA: (sys.executable, "-m", "bench.peers.starlette_evalsha"),
}
_TARGETS = {CONSTANT: 0.9, EVALSHA: 3.0}
"""How many times the throughput of each peer this server has to reach."""
_PRODUCT_ID = "compared"
_STOCK_PLENTY = 1_000_000_000
"""More than any run sells."""
_CONNECTION_COUNT = 200
_WARM_UP_S = 0.3


class _Peer(Struct, frozen=True):
    server: ServerProcess
    store_url: str | None


def compare(*, round_count: int, duration_s: float, progress: Callable[[str], None]) -> Comparison:
    """Start the peers and let the crowd at each of them, selling and sold out, round by round.

    Args:
        round_count: how often.
        duration_s: of each run.
        progress: called with what comes next.

    Raises:
        FlashsaleError: a request failed, or a store sold something else than buyers were told.
    """
    with ExitStack() as stack:
        peers = {}
        for name, command in _COMMANDS.items():
            if name == CONSTANT:
                home, store_url = stack.enter_context(temporary_home()), None
            else:
                home, store = stack.enter_context(temporary_store())
                store_url = store.url
            peers[name] = _Peer(stack.enter_context(started_server(home, command)), store_url)
        return asyncio.run(_compare(peers, round_count, duration_s, progress))


async def _compare(
    peers: dict[str, _Peer], round_count: int, duration_s: float, progress: Callable[[str], None]
) -> Comparison:
    cells: dict[str, dict[str, list[Cell]]] = {name_of(selling): {peer: [] for peer in peers} for selling in _SALES}
    for peer in peers.values():
        await _run(peer, min(_WARM_UP_S, duration_s), selling=True)
    for number in range(1, round_count + 1):
        for selling in _SALES:
            for name, peer in peers.items():
                progress(f"round {number} of {round_count}: {name_of(selling)}, {PEER_NAMES[name]}")
                cells[name_of(selling)][name].append(await _run(peer, duration_s, selling=selling))
    return Comparison(cells)


_SALES = (True, False)


def name_of(selling: bool) -> str:  # noqa: FBT001 - the only thing that there is to tell apart
    """Return what a run is called in tables."""
    return f"{_CONNECTION_COUNT} x 1, {'selling' if selling else 'sold out'}"


async def _run(peer: _Peer, duration_s: float, *, selling: bool) -> Cell:
    stock = _STOCK_PLENTY if selling else 0
    load = Load(
        host=peer.server.host,
        port=peer.server.http_port,
        product_id=_PRODUCT_ID,
        door=Door.HTTP,
        connection_count=_CONNECTION_COUNT,
        duration_s=duration_s,
    ).with_timeout()
    if peer.store_url is None:
        result, cpu_s = await _measure(peer, load)
        faults: list[str] = []
    else:
        async with Admin(peer.store_url) as admin, Redis.from_url(peer.store_url) as redis:
            await admin.init(_PRODUCT_ID, stock)
            result, cpu_s = await _measure(peer, load)
            faults = (await sale_of(redis, stock, result)).faults()
            await admin.reset(_PRODUCT_ID)
    if result.error_count or faults:
        raise FlashsaleError(f"{name_of(selling)}: {result.errors or ''} {'; '.join(faults)}")
    return Cell(
        throughput_per_s=result.throughput_per_s,
        server_cpu_us=cpu_s * 1e6 / max(1, result.answer_count),
        client_cpu_share=result.client_cpu_s / result.duration_s,
        latency_p50_ms=result.latency_ms(50.0),
        latency_p99_ms=result.latency_ms(99.0),
    )


async def _measure(peer: _Peer, load: Load) -> tuple[Result, float]:
    cpu_s = proc.cpu_s(peer.server.pid)
    result = await run_load(load)
    return result, proc.cpu_s(peer.server.pid) - cpu_s


async def sale_of(redis: Redis, stock: int, result: Result) -> Sale:
    """Return the sale of a product that was opened with that stock, as the plain keys of the store have it."""
    left, buyers = keys.key(_PRODUCT_ID, "stock"), keys.key(_PRODUCT_ID, "buyers")
    listed = await redis.lrange(buyers, 0, -1)
    return Sale(
        stock_before=stock,
        stock_after=int(await redis.get(left) or 0),
        sold_count=len(listed),
        distinct_buyer_count=len(set(listed)),
        request_count=result.request_count,
        success_count=result.success_count,
        sold_out_count=result.sold_out_count,
        error_count=result.error_count,
        uncertain_count=result.uncertain_count,
    )


def targets_of(comparison: Comparison) -> list[Target]:
    """Return each ratio beside what it has to be."""
    targets = []
    for shape in comparison.cells:
        for peer, least in _TARGETS.items():
            ratios = comparison.ratios(shape, (OURS, peer), throughput)
            name = f"{shape}: throughput (a) / ({peer})"
            targets.append(Target(name, spread(ratios), f">= {least:g}", median(ratios) >= least))
            ratios = comparison.ratios(shape, (OURS, peer), server_cpu)
            targets.append(Target(f"{shape}: server CPU per request (a) / ({peer})", spread(ratios), "", None))
    return targets


def as_json(comparison: Comparison, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"peers": PEER_NAMES, "cells": comparison.cells, "targets": targets}
