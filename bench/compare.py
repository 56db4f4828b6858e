"""Compares the server with its peers: in one go and in turns, so that a slow minute of the machine hits all alike.

(a) this server; (b) the same server with one EVALSHA for each request, through redis-py's client; (c) an echo of the
same frames, the ceiling; (d) like (b), but tuned by hand: on bare connections. The targets speak of (b) and (c).
(a), (b) and (d) have an embedded store each, with the same settings: append-only file, fsync before every answer.
Ratios are taken within a round and the median of the rounds is reported. The client is the same for all.

While selling, (b) and (d) publish an event for every sale, because the script does so for small batches; (a) at load
has large ones, and publishes only when somebody listens. The shapes with a subscriber compare like with like.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from statistics import median
from typing import Any

from msgspec import Struct
from redis.asyncio.connection import parse_url

from bench import proc
from bench.crowd import run_load
from bench.load import Load
from bench.report import Target, spread
from bench.stage import SERVE, started_server, temporary_home, temporary_store
from flashsale.backends import Store, open_admin
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from flashsale.store.keys import EVENTS_CHANNEL

GROUP, SINGLE, ECHO, TUNED = "a", "b", "c", "d"
PEER_NAMES = {
    GROUP: "flashsale, group commit",
    SINGLE: "one EVALSHA per request",
    ECHO: "echo (the ceiling)",
    TUNED: "as (b), bare connections",
}
_COMMANDS = {
    GROUP: SERVE,
    SINGLE: (sys.executable, "-m", "bench.peers.evalsha"),
    ECHO: (sys.executable, "-m", "bench.peers.echo"),
    TUNED: (sys.executable, "-m", "bench.peers.evalsha", "--bare"),
}
_PRODUCT_ID = "compared"
_STOCK_PLENTY = 1_000_000_000
"""More than any run sells."""
_WARM_UP_S = 0.3
_READ_SIZE = 64 * 1024


class Shape(Struct, frozen=True, kw_only=True):
    """How a crowd behaves, and how many times the throughput of its peers the server has to reach."""

    connection_count: int
    pipeline_depth: int
    selling: bool
    listened: bool = False
    """Whether somebody subscribes to the sale events."""
    over_single: float
    of_echo: float | None
    """None: the echo does not run."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        sale = "selling" if self.selling else "sold out"
        listener = ", a subscriber listens" if self.listened else ""
        return f"{self.connection_count} x {self.pipeline_depth}, {sale}{listener}"

    @property
    def peers(self) -> str:
        """Who has to face it."""
        return GROUP + SINGLE + (ECHO if self.of_echo is not None else "") + (TUNED if not self.listened else "")


SHAPES = (
    Shape(connection_count=200, pipeline_depth=1, selling=False, over_single=4, of_echo=0.6),
    Shape(connection_count=200, pipeline_depth=1, selling=True, over_single=4, of_echo=0.5),
    Shape(connection_count=200, pipeline_depth=1, selling=True, listened=True, over_single=4, of_echo=0.5),
    Shape(connection_count=50, pipeline_depth=16, selling=False, over_single=10, of_echo=None),
    Shape(connection_count=50, pipeline_depth=16, selling=True, over_single=10, of_echo=None),
    Shape(connection_count=50, pipeline_depth=16, selling=True, listened=True, over_single=10, of_echo=None),
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
    store: Store | None
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
            name: _Peer(server, store, await stack.enter_async_context(open_admin(store)) if store else None)
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
    async with AsyncExitStack() as stack:
        if shape.listened and peer.store is not None:
            await stack.enter_async_context(_subscriber(peer.store.url))
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


@asynccontextmanager
async def _subscriber(store_url: str) -> AsyncIterator[None]:
    """Hold a subscriber of the sale events, which throws them away unread: no other costs the machine less.

    Raises:
        FlashsaleError: it could not keep up, and the store has dropped it.
    """
    reader, writer = await asyncio.open_unix_connection(parse_url(store_url)["path"])

    async def discard() -> None:
        while await reader.read(_READ_SIZE):
            pass

    try:
        writer.write(f"SUBSCRIBE {EVENTS_CHANNEL}\r\n".encode())
        await reader.readuntil(b":1\r\n")
        task = asyncio.create_task(discard())
        yield
        if task.done():
            raise FlashsaleError("the store has dropped the subscriber of sale events")
        task.cancel()
    finally:
        writer.close()


def throughput(cell: Cell) -> float:
    """Return answers a second."""
    return cell.throughput_per_s


def server_cpu(cell: Cell) -> float:
    """Return the server's CPU time for one request, in microseconds."""
    return cell.server_cpu_us


def targets_of(comparison: Comparison) -> list[Target]:
    """Return each ratio beside what it has to be."""
    targets = []
    for shape in SHAPES:
        targets.append(_throughput_target(comparison, shape, SINGLE, at_least=shape.over_single))
        if TUNED in shape.peers:
            targets.append(_throughput_target(comparison, shape, TUNED, at_least=None))
        if shape.of_echo is not None:
            targets.append(_throughput_target(comparison, shape, ECHO, at_least=shape.of_echo))
            ratios = comparison.ratios(shape.name, (GROUP, ECHO), server_cpu)
            name = f"{shape.name}: server CPU per request (a) / (c)"
            targets.append(Target(name, spread(ratios), "<= 2", median(ratios) <= 2))
    return targets


def _throughput_target(comparison: Comparison, shape: Shape, peer: str, *, at_least: float | None) -> Target:
    ratios = comparison.ratios(shape.name, (GROUP, peer), throughput)
    name = f"{shape.name}: throughput (a) / ({peer})"
    if at_least is None:
        return Target(name, spread(ratios), "", None)
    return Target(name, spread(ratios), f">= {at_least:g}", median(ratios) >= at_least)


def rows_of(comparison: Comparison, names: Mapping[str, str] = PEER_NAMES) -> list[list[str]]:
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
            rows.append([shape, f"({peer}) {names[peer]}", *values])
    return rows


ROWS_HEAD = ["Connections x depth", "Server", "Requests/s", "Server CPU, µs", "p50, ms", "p99, ms", "Client CPU"]


def as_json(comparison: Comparison, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"peers": PEER_NAMES, "cells": comparison.cells, "targets": targets}
