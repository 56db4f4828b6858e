"""Compares the server with its peers: in one go and in turns, so that a slow minute of the machine hits all alike.

(a) this server; (b) the same server with one EVALSHA for each request; (c) an echo of the same frames, the ceiling.
(a) and (b) have an embedded store each, with the same settings: append-only file, fsync before every answer. Ratios are
taken within a round and the median of the rounds is reported. The client is the same for all.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from statistics import median
from typing import Any

from msgspec import Struct

from bench import proc
from bench.crowd import run_load
from bench.load import Load
from bench.report import Target, spread
from bench.stage import SERVE, started_server, temporary_home, temporary_store
from flashsale.app import Store, open_admin
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin

GROUP, SINGLE, ECHO = "a", "b", "c"
PEER_NAMES = {GROUP: "flashsale, group commit", SINGLE: "one EVALSHA per request", ECHO: "echo (the ceiling)"}
_COMMANDS = {
    GROUP: SERVE,
    SINGLE: (sys.executable, "-m", "bench.peers.evalsha"),
    ECHO: (sys.executable, "-m", "bench.peers.echo"),
}
_PRODUCT_ID = "compared"
_STOCK_PLENTY = 1_000_000_000
"""More than any run sells."""
_WARM_UP_S = 0.3


class Shape(Struct, frozen=True):
    """How a crowd behaves, and who has to face it."""

    name: str
    connection_count: int
    pipeline_depth: int
    selling: bool
    peers: str


SHAPES = (
    Shape("200 x 1, sold out", 200, 1, selling=False, peers="abc"),
    Shape("200 x 1, selling", 200, 1, selling=True, peers="abc"),
    Shape("50 x 16, sold out", 50, 16, selling=False, peers="ab"),
    Shape("50 x 16, selling", 50, 16, selling=True, peers="ab"),
)


class Cell(Struct, frozen=True, kw_only=True):
    """One run of one peer."""

    throughput_per_s: float
    server_cpu_us: float
    """CPU time of the server process for one request."""
    client_cpu_share: float
    """How much of one core the load generator took: at 1.0 it is itself the bound."""
    latency_p50_ms: float
    latency_p99_ms: float


class Comparison(Struct, frozen=True):
    """All runs, by shape and peer, in the order of the rounds."""

    cells: dict[str, dict[str, list[Cell]]]

    def median_of(self, shape: str, peer: str, value: Callable[[Cell], float]) -> float:
        """Return the median over the rounds."""
        return median(value(cell) for cell in self.cells[shape][peer])

    def ratios(self, shape: str, peers: tuple[str, str], value: Callable[[Cell], float]) -> list[float]:
        """Return the first peer's value over the second's, round by round."""
        pairs = zip(self.cells[shape][peers[0]], self.cells[shape][peers[1]], strict=True)
        return [value(first) / value(second) if value(second) else 0.0 for first, second in pairs]


class _Peer(Struct, frozen=True):
    server: ServerProcess
    admin: Admin | None


def compare(*, round_count: int, duration_s: float, progress: Callable[[str], None]) -> Comparison:
    """Start the peers and run every shape against each of them, round by round.

    Args:
        round_count: how often.
        duration_s: of each run.
        progress: called with what comes next.

    Raises:
        FlashsaleError: a request failed, or a store sold something else than buyers were told.
    """
    with ExitStack() as stack:
        servers: dict[str, tuple[ServerProcess, Store | None]] = {}
        for peer, command in _COMMANDS.items():
            if peer == ECHO:
                home, store = stack.enter_context(temporary_home()), None
            else:
                home, store = stack.enter_context(temporary_store())
            servers[peer] = stack.enter_context(started_server(home, command)), store
        return asyncio.run(_compare(servers, round_count, duration_s, progress))


async def _compare(
    servers: dict[str, tuple[ServerProcess, Store | None]],
    round_count: int,
    duration_s: float,
    progress: Callable[[str], None],
) -> Comparison:
    cells: dict[str, dict[str, list[Cell]]] = {shape.name: {peer: [] for peer in shape.peers} for shape in SHAPES}
    async with AsyncExitStack() as stack:
        peers = {
            name: _Peer(server, await stack.enter_async_context(open_admin(store)) if store else None)
            for name, (server, store) in servers.items()
        }
        for peer in peers.values():
            await _run(peer, SHAPES[0], min(_WARM_UP_S, duration_s))
        for number in range(1, round_count + 1):
            for shape in SHAPES:
                for name in shape.peers:
                    progress(f"round {number} of {round_count}: {shape.name}, {PEER_NAMES[name]}")
                    cells[shape.name][name].append(await _run(peers[name], shape, duration_s))
    return Comparison(cells)


async def _run(peer: _Peer, shape: Shape, duration_s: float) -> Cell:
    if peer.admin is not None:
        await peer.admin.init(_PRODUCT_ID, _STOCK_PLENTY if shape.selling else 0)
    load = Load(
        host=peer.server.host,
        port=peer.server.port,
        product_id=_PRODUCT_ID,
        connection_count=shape.connection_count,
        pipeline_depth=shape.pipeline_depth,
        duration_s=duration_s,
    )
    cpu_s = proc.cpu_s(peer.server.pid)
    result = await run_load(load.with_timeout())
    cpu_s = proc.cpu_s(peer.server.pid) - cpu_s
    if result.error_count:
        raise FlashsaleError(f"{shape.name}: {result.error_count} requests failed: {result.errors}")
    if peer.admin is not None:
        sold_count = (await peer.admin.status(_PRODUCT_ID)).sold
        if sold_count != result.success_count or (shape.selling and result.sold_out_count):
            raise FlashsaleError(
                f"{shape.name}: {result.success_count} buyers were told SUCCESS and {result.sold_out_count} SOLD_OUT, "
                f"but the store sold {sold_count} units of plenty"
            )
        await peer.admin.reset(_PRODUCT_ID)
    return Cell(
        throughput_per_s=result.throughput_per_s,
        server_cpu_us=cpu_s * 1e6 / max(1, result.answer_count),
        client_cpu_share=result.client_cpu_s / result.duration_s,
        latency_p50_ms=result.latency_ms(50.0),
        latency_p99_ms=result.latency_ms(99.0),
    )


def throughput(cell: Cell) -> float:
    """Return answers a second."""
    return cell.throughput_per_s


def server_cpu(cell: Cell) -> float:
    """Return the server's CPU time for one request, in microseconds."""
    return cell.server_cpu_us


def targets_of(comparison: Comparison) -> list[Target]:
    """Return each ratio beside what it has to be."""
    targets = []

    def add(shape: Shape, peers: tuple[str, str], *, at_least: float) -> None:
        ratios = comparison.ratios(shape.name, peers, throughput)
        name = f"{shape.name}: throughput ({peers[0]}) / ({peers[1]})"
        targets.append(Target(name, spread(ratios), f">= {at_least:g}", median(ratios) >= at_least))

    sold_out, selling, deep_sold_out, deep_selling = SHAPES
    for shape in (sold_out, selling):
        add(shape, (GROUP, SINGLE), at_least=4)
    add(sold_out, (GROUP, ECHO), at_least=0.6)
    add(selling, (GROUP, ECHO), at_least=0.5)
    for shape in (deep_sold_out, deep_selling):
        add(shape, (GROUP, SINGLE), at_least=10)
    for shape in (sold_out, selling):
        ratios = comparison.ratios(shape.name, (GROUP, ECHO), server_cpu)
        name = f"{shape.name}: server CPU per request (a) / (c)"
        targets.append(Target(name, spread(ratios), "<= 2", median(ratios) <= 2))
    return targets


def rows_of(comparison: Comparison) -> list[list[str]]:
    """Return the medians by shape and peer, as rows of a table with the head ROWS_HEAD."""
    rows = []
    for shape, peers in comparison.cells.items():
        for peer in peers:
            values = (
                f"{comparison.median_of(shape, peer, throughput):,.0f}",
                f"{comparison.median_of(shape, peer, server_cpu):.1f}",
                f"{comparison.median_of(shape, peer, lambda cell: cell.latency_p50_ms):.2f}",
                f"{comparison.median_of(shape, peer, lambda cell: cell.latency_p99_ms):.2f}",
                f"{comparison.median_of(shape, peer, lambda cell: cell.client_cpu_share):.0%}",
            )
            rows.append([shape, f"({peer}) {PEER_NAMES[peer]}", *values])
    return rows


ROWS_HEAD = ["Connections x depth", "Server", "Requests/s", "Server CPU, µs", "p50, ms", "p99, ms", "Client CPU"]


def as_json(comparison: Comparison, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"peers": PEER_NAMES, "cells": comparison.cells, "targets": targets}
