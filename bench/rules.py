"""What the rules of a sale cost: the same crowd with and without them, in turns, so that a slow minute hits all alike.

Plain is a purchase of one unit without a request id, of a product without terms. The others are the same purchase with
a request id each, of a product with a limit for each user, or both. The ledger is always written, but by a second
server, on a store of its own, whose script leaves it out. Ratios are taken within a round, and the median of the rounds
is reported.

Each request has a user of its own, as in a flash sale, so that the limit stops nobody and every request id is new.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import uvloop
from msgspec import Struct

from bench import expiry, proc
from bench.load import SOLD_OUT, SUCCESS, Load
from bench.report import Target, spread
from bench.rig import Rig, on_rig, open_rig
from flashsale.domain.sale import PLAIN, Terms
from flashsale.errors import FlashsaleError

_PRODUCT_ID = "rules"
_UNLEDGERED = (sys.executable, "-m", "bench.peers.unledgered")
_STOCK_PLENTY = 1_000_000_000
_LIMIT = Terms(limit=2)
_ALL_RATIO_MIN = 0.6
_WARM_UP_S = 0.3


class Variant(Struct, frozen=True):
    """How much of the rules a purchase meets."""

    name: str
    terms: Terms
    request_ids: bool
    ledger: bool = True


UNLEDGERED = Variant("plain, no ledger", PLAIN, request_ids=False, ledger=False)
BARE = Variant("plain", PLAIN, request_ids=False)
LIMITED = Variant("limit", _LIMIT, request_ids=False)
IDENTIFIED = Variant("request ids", PLAIN, request_ids=True)
ALL = Variant("limit and request ids", _LIMIT, request_ids=True)


class Shape(Struct, frozen=True):
    """How a crowd behaves."""

    connection_count: int
    pipeline_depth: int
    selling: bool

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.connection_count} x {self.pipeline_depth}, {'selling' if self.selling else 'sold out'}"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is compared: who is sold out writes no ledger anyway."""
        variants = (BARE, LIMITED, IDENTIFIED, ALL)
        return (UNLEDGERED, *variants) if self.selling else variants


SHAPES = (
    Shape(200, 1, selling=True),
    Shape(50, 16, selling=True),
    Shape(200, 1, selling=False),
    Shape(50, 16, selling=False),
)


class Scale(Struct, frozen=True, kw_only=True):
    """How much of it."""

    round_count: int = 5
    duration_s: float = 1.0
    """Of each run, in seconds."""
    holds: expiry.Scale = expiry.Scale()


class Cell(Struct, frozen=True, kw_only=True):
    """One run."""

    throughput_per_s: float
    server_cpu_us: float
    """CPU time of the server for one request."""
    store_cpu_us: float
    latency_p50_ms: float
    latency_p99_ms: float


Cells = dict[str, dict[str, list[Cell]]]
"""All runs by shape and variant, in the order of the rounds."""


def measure(scale: Scale, progress: Callable[[str], None]) -> tuple[Cells, list[Target]]:
    """Measure the variants in turns, then the expiry; return the runs, and each figure beside what it has to be.

    Args:
        scale: how much.
        progress: called with what comes next.
    """

    async def expire(rig: Rig) -> list[Target]:
        return await expiry.measure_expiry(rig, scale.holds, progress)

    cells = uvloop.run(_compare(scale, progress))
    return cells, targets_of(cells) + on_rig(expire)


async def _compare(scale: Scale, progress: Callable[[str], None]) -> Cells:
    cells: Cells = {shape.name: {variant.name: [] for variant in shape.variants} for shape in SHAPES}
    async with open_rig() as ledgered, open_rig(_UNLEDGERED) as unledgered:
        for rig, variant in (ledgered, BARE), (unledgered, UNLEDGERED):
            await _run(rig, SHAPES[0], variant, min(_WARM_UP_S, scale.duration_s))
        for number in range(1, scale.round_count + 1):
            for shape in SHAPES:
                for variant in shape.variants if number % 2 else reversed(shape.variants):
                    progress(f"round {number} of {scale.round_count}: {shape.name}, {variant.name}")
                    rig = ledgered if variant.ledger else unledgered
                    cells[shape.name][variant.name].append(await _run(rig, shape, variant, scale.duration_s))
    return cells


async def _run(rig: Rig, shape: Shape, variant: Variant, duration_s: float) -> Cell:
    """Let the crowd at a fresh sale; all answers must be what is expected of it."""
    load = Load(
        host=rig.server.host,
        port=rig.server.port,
        product_id=_PRODUCT_ID,
        connection_count=shape.connection_count,
        pipeline_depth=shape.pipeline_depth,
        duration_s=duration_s,
        request_ids=variant.request_ids,
    )
    await rig.admin.init(_PRODUCT_ID, 0, force=True)  # forgetting the run before is not part of this one's CPU time
    server_s, store_s = proc.cpu_s(rig.server.pid), proc.cpu_s(rig.store_pid)
    result = await rig.run(load, stock=_STOCK_PLENTY if shape.selling else 0, terms=variant.terms)
    server_s, store_s = proc.cpu_s(rig.server.pid) - server_s, proc.cpu_s(rig.store_pid) - store_s
    kind = SUCCESS if shape.selling else SOLD_OUT
    if set(result.counts) != {kind}:
        raise FlashsaleError(f"{shape.name}, {variant.name}: only {kind} was expected, not {dict(result.counts)}")
    return Cell(
        throughput_per_s=result.throughput_per_s,
        server_cpu_us=server_s * 1e6 / result.answer_count,
        store_cpu_us=store_s * 1e6 / result.answer_count,
        latency_p50_ms=result.latency_ms(50.0),
        latency_p99_ms=result.latency_ms(99.0),
    )


def targets_of(cells: Cells) -> list[Target]:
    """Return the ratios of throughput, beside what they have to be."""
    targets = []
    for shape in SHAPES:
        pairs = [(variant, BARE) for variant in shape.variants if variant.ledger and variant != BARE]
        if UNLEDGERED in shape.variants:
            pairs += [(BARE, UNLEDGERED), (ALL, UNLEDGERED)]
        for pair in pairs:
            wanted = _ALL_RATIO_MIN if shape.selling and pair == (ALL, BARE) else None
            targets.append(_target(cells, shape, pair, at_least=wanted))
    return targets


def _target(cells: Cells, shape: Shape, pair: tuple[Variant, Variant], *, at_least: float | None) -> Target:
    found, other = (cells[shape.name][variant.name] for variant in pair)
    ratios = [one.throughput_per_s / two.throughput_per_s for one, two in zip(found, other, strict=True)]
    name = f"{shape.name}: throughput, {pair[0].name} / {pair[1].name}"
    if at_least is None:
        return Target(name, spread(ratios), "", None)
    return Target(name, spread(ratios), f">= {at_least:g}", median(ratios) >= at_least)


ROWS_HEAD = ["Connections x depth", "Rules", "Requests/s", "Server CPU, µs", "Store CPU, µs", "p50, ms", "p99, ms"]


def rows_of(cells: Cells) -> list[list[str]]:
    """Return the medians by shape and variant, as rows of a table with the head ROWS_HEAD."""
    return [
        [
            shape,
            variant,
            f"{median(cell.throughput_per_s for cell in found):,.0f}",
            f"{median(cell.server_cpu_us for cell in found):.1f}",
            f"{median(cell.store_cpu_us for cell in found):.1f}",
            f"{median(cell.latency_p50_ms for cell in found):.2f}",
            f"{median(cell.latency_p99_ms for cell in found):.2f}",
        ]
        for shape, variants in cells.items()
        for variant, found in variants.items()
    ]


def as_json(scale: Scale, cells: Cells, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"scale": scale, "cells": cells, "targets": targets}
