"""What recording the attempts of buyers costs: the same crowd with and without it, in turns.

Two servers, each on a store of its own; one records into a SQLite file beside its store. Ratios are taken within a
round, and the median of the rounds is reported. What the recorder cannot write while the crowd wants all cores is
dropped and counted; the share of it is reported too.
"""

import asyncio
from collections.abc import Callable
from statistics import median
from typing import Any

import uvloop
from msgspec import Struct

from bench.load import SOLD_OUT, SUCCESS, Load
from bench.report import Target, spread
from bench.rig import Rig, open_rig
from bench.rules import Shape
from bench.stage import SERVE, home_config
from flashsale.backends import open_database
from flashsale.errors import FlashsaleError
from flashsale.orders import reports
from flashsale.orders.database import Database
from flashsale.orders.reports import AttemptsWanted
from flashsale.orders.tables import attempts_dropped

_PRODUCT_ID = "attempted"
_STOCK_PLENTY = 1_000_000_000
_RATIO_MIN = 0.85
_WARM_UP_S = 0.3
_LAST_S = 30.0
"""For the recorder to write what waits after a run."""
_POLL_S = 0.05
SHAPES = (
    Shape(200, 1, selling=True),
    Shape(50, 16, selling=True),
    Shape(200, 1, selling=False),
    Shape(50, 16, selling=False),
)


class Cell(Struct, frozen=True, kw_only=True):
    """Two runs, one after the other."""

    without_per_s: float
    recorded_per_s: float
    dropped_share: float
    """Of the attempts of the second run."""


Cells = dict[str, list[Cell]]
"""By shape, in the order of the rounds."""


def measure(round_count: int, duration_s: float, progress: Callable[[str], None]) -> tuple[Cells, list[Target]]:
    """Measure in turns; return the runs, and each ratio beside what it has to be."""
    cells = uvloop.run(_compare(round_count, duration_s, progress))
    return cells, targets_of(cells)


async def _compare(round_count: int, duration_s: float, progress: Callable[[str], None]) -> Cells:
    cells: Cells = {shape.name: [] for shape in SHAPES}
    async with open_rig() as without, open_rig((*SERVE, "--record-attempts")) as recording:
        database = open_database(home_config(recording.home))
        try:
            while not await database.has_table(attempts_dropped.name):  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(_POLL_S)  # the recorder begins with it
            await _run(without, SHAPES[0], min(_WARM_UP_S, duration_s))
            attempt_count, _ = await _run(recording, SHAPES[0], min(_WARM_UP_S, duration_s))
            dropped_count = await _settled(database, attempt_count)
            for number in range(1, round_count + 1):
                for shape in SHAPES:
                    progress(f"round {number} of {round_count}: {shape.name}")
                    rates: dict[bool, float] = {}
                    for records in (False, True) if number % 2 else (True, False):
                        count, rates[records] = await _run(recording if records else without, shape, duration_s)
                        if records:
                            attempt_count += count
                            before = dropped_count
                            dropped_count = await _settled(database, attempt_count)
                            share = (dropped_count - before) / count
                    cells[shape.name].append(
                        Cell(without_per_s=rates[False], recorded_per_s=rates[True], dropped_share=share)
                    )
        finally:
            await database.close()
    return cells


async def _run(rig: Rig, shape: Shape, duration_s: float) -> tuple[int, float]:
    """Let the crowd at a fresh sale; return how many answers there were, and how many a second."""
    load = Load(
        host=rig.server.host,
        port=rig.server.port,
        product_id=_PRODUCT_ID,
        connection_count=shape.connection_count,
        pipeline_depth=shape.pipeline_depth,
        duration_s=duration_s,
    )
    await rig.admin.init(_PRODUCT_ID, 0, force=True)
    result = await rig.run(load, stock=_STOCK_PLENTY if shape.selling else 0)
    kind = SUCCESS if shape.selling else SOLD_OUT
    if set(result.counts) != {kind}:
        raise FlashsaleError(f"{shape.name}: only {kind} was expected, not {dict(result.counts)}")
    return result.answer_count, result.throughput_per_s


async def _settled(database: Database, attempt_count: int) -> int:
    """Wait until so many attempts are written or dropped; return how many were dropped.

    Raises:
        FlashsaleError: attempts are missing, or there are more.
    """
    wanted = AttemptsWanted(product_id=_PRODUCT_ID)
    found, changed_at = -1, asyncio.get_running_loop().time()
    while True:
        dropped_count = sum((await reports.count_dropped(database)).values())
        now = sum((await reports.count_attempts(database, wanted)).values()) + dropped_count
        if now == attempt_count:
            return dropped_count
        if now != found:
            found, changed_at = now, asyncio.get_running_loop().time()
        elif asyncio.get_running_loop().time() > changed_at + _LAST_S:
            raise FlashsaleError(f"{attempt_count} attempts were made, {now} are recorded or counted as dropped")
        await asyncio.sleep(_POLL_S)


def targets_of(cells: Cells) -> list[Target]:
    """Return the ratios of throughput beside what they have to be."""
    targets = []
    for shape, found in cells.items():
        ratios = [cell.recorded_per_s / cell.without_per_s for cell in found]
        name = f"{shape}: throughput, recorded / not"
        targets.append(Target(name, spread(ratios), f">= {_RATIO_MIN:g}", median(ratios) >= _RATIO_MIN))
    return targets


ROWS_HEAD = ["Connections x depth", "Without, requests/s", "Recorded, requests/s", "Attempts dropped"]


def rows_of(cells: Cells) -> list[list[str]]:
    """Return the medians by shape, as rows of a table with the head ROWS_HEAD."""
    return [
        [
            shape,
            f"{median(cell.without_per_s for cell in found):,.0f}",
            f"{median(cell.recorded_per_s for cell in found):,.0f}",
            f"{median(cell.dropped_share for cell in found):.0%}",
        ]
        for shape, found in cells.items()
    ]


def as_json(cells: Cells, targets: list[Target]) -> dict[str, Any]:
    """Return the figures as they go into a JSON file."""
    return {"cells": cells, "targets": targets}
