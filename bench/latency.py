"""Latency at a given rate, sold out and selling, beside its floors: the same crowd at an echo, and the disk's fsync.

Four measurements in turns, round after round, so that a slow moment of the machine hits all alike; the figures are
the medians of the rounds. The echo tells what the client, the kernel and the machine's own pauses take before any
server does a thing.
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from msgspec import Struct

from bench.crowd import run_load
from bench.disk import fsync_latencies_ms, percentile
from bench.load import Load
from bench.report import Target, spread
from bench.result import Result
from bench.stage import started_server
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess

_CONNECTION_COUNT = 200
_STOCK_PLENTY = 10_000_000
_PRODUCT_ID = "latency"
_ECHO = (sys.executable, "-m", "bench.peers.echo")
_WARM_UP_S = 0.5

Run = Callable[[Load, int], Awaitable[Result]]
"""Opens a sale of so many units, lets the crowd at it, and checks it."""


class Scale(Struct, frozen=True, kw_only=True):
    """How much of it. Times in seconds, of each run."""

    round_count: int = 5
    rate_per_s: float = 5_000.0
    duration_s: float = 3.0
    probe_duration_s: float = 1.0
    """Of the disk's own fsync."""


async def measure_latency(server: ServerProcess, home: Path, run: Run, scale: Scale) -> list[Target]:
    """Measure in turns, from when each request was due.

    Args:
        server: the server to measure.
        home: the directory of its store: the disk whose fsync counts.
        run: opens a sale on it and runs a load.
        scale: how much.
    """

    def load(target: ServerProcess, duration_s: float) -> Load:
        return Load(
            host=target.host,
            port=target.port,
            product_id=_PRODUCT_ID,
            connection_count=_CONNECTION_COUNT,
            duration_s=duration_s,
            rate_per_s=scale.rate_per_s,
        )

    echoed: list[Result] = []
    sold_out: list[Result] = []
    selling: list[Result] = []
    fsync_p50_ms: list[float] = []
    fsync_p99_ms: list[float] = []
    with started_server(home, _ECHO) as echo:
        await run(load(server, min(_WARM_UP_S, scale.duration_s)), _STOCK_PLENTY)
        for _ in range(scale.round_count):
            echoed.append(await run_load(load(echo, scale.duration_s).with_timeout()))
            sold_out.append(await run(load(server, scale.duration_s), 0))
            selling.append(await run(load(server, scale.duration_s), _STOCK_PLENTY))
            fsyncs_ms = fsync_latencies_ms(home / "data", scale.probe_duration_s)
            fsync_p50_ms.append(percentile(fsyncs_ms, 50.0))
            fsync_p99_ms.append(percentile(fsyncs_ms, 99.0))
    if any(result.error_count for result in echoed + sold_out + selling):
        raise FlashsaleError("some requests of the open loop were not answered as they should be")
    rate = f"open loop {scale.rate_per_s:,.0f}/s"
    sold_out_ms = _p99s_ms(sold_out)
    over_fsync_ms = [p99 - fsync for p99, fsync in zip(_p99s_ms(selling), fsync_p99_ms, strict=True)]
    fsync = f"p50 {median(fsync_p50_ms):.2f}, p99 {spread(fsync_p99_ms)} ms"
    floor = "(a floor)"
    return [
        Target(f"{rate}, echo", _told(echoed), floor, met=None),
        Target("fsync of 512 bytes on that disk", fsync, floor, met=None),
        Target(f"{rate}, sold out", _told(sold_out), "p99 <= 1 ms", met=median(sold_out_ms) <= 1.0),
        Target(f"{rate}, selling", _told(selling), "", met=None),
        Target(
            f"{rate}, selling: p99 over the fsync's p99",
            f"{spread(over_fsync_ms)} ms",
            "<= 1 ms",
            met=median(over_fsync_ms) <= 1.0,
        ),
    ]


def _p99s_ms(results: list[Result]) -> list[float]:
    return [result.latency_ms(99.0) for result in results]


def _told(results: list[Result]) -> str:
    p50_ms = median(result.latency_ms(50.0) for result in results)
    return f"p50 {p50_ms:.2f}, p99 {spread(_p99s_ms(results))} ms"
