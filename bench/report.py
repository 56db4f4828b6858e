"""How results are told: the block of figures, tables of targets, a progress bar, JSON files."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.check import Sale
from bench.crowd import Progress as Tell
from bench.load import Load
from bench.result import Result


class Target(msgspec.Struct, frozen=True):
    """One figure beside what it has to be."""

    name: str
    measured: str
    target: str
    met: bool | None
    """None: it has no target."""


def spread(ratios: Sequence[float]) -> str:
    """Return the median with the smallest and the largest."""
    return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def print_result(result: Result, sale: Sale) -> None:
    """Print the block of figures of one run, the check last."""
    errors = ", ".join(f"{kind} {count}" for kind, count in sorted(result.errors.items()))
    lines = {
        "Duration": f"{result.duration_s:.2f} s",
        "Total Requests": str(result.request_count),
        "Successful": str(result.success_count),
        "Sold Out": str(result.sold_out_count),
        "Errors": str(result.error_count) + (f" ({errors})" if errors else ""),
        "Throughput": f"{result.throughput_per_s:.0f} req/s",
        "Avg Latency": f"{result.latency_mean_ms:.3f} ms",
    }
    lines |= {f"Latency {name}": f"{value:.3f} ms" for name, value in result.latencies_ms.items()}
    click.echo("=== Benchmark Results ===")
    for name, value in lines.items():
        click.echo(f"{name + ':':<16}{value}")
    print_check(sale)
    if errors:
        click.echo(f"✗ {result.error_count} requests failed: {errors}", err=True)


def print_check(sale: Sale) -> None:
    """Print whether the sale was honest, with a sentence for each fault."""
    faults = sale.faults()
    if faults:
        click.echo(f"{'Oversell Check:':<16}FAILED")
        for fault in faults:
            click.echo(f"✗ {fault}", err=True)
        return
    distinct = (
        "distinct buyers not checked (that needs --home or --redis)"
        if sale.distinct_buyer_count is None
        else f"{sale.distinct_buyer_count} distinct buyers"
    )
    click.echo(
        f"{'Oversell Check:':<16}PASSED ({sale.success_count} successes, {sale.sold_count} sold of "
        f"{sale.stock_before}, {distinct})"
    )


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is Markdown as well."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        click.echo("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def print_targets(targets: Sequence[Target]) -> None:
    """Print what was reached beside what had to be."""
    words = {None: "", True: "met", False: "MISSED"}
    rows = [[target.name, target.measured, target.target, words[target.met]] for target in targets]
    print_table(["Figure", "Measured", "Target", ""], rows)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def progress_bar(load: Load) -> Iterator[Tell | None]:
    """Yield what to call with the number of answers so far; on a terminal it moves a bar, elsewhere there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.fields[answered]:,} answered"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as progress:
        task = progress.add_task("", total=load.planned_count or load.duration_s, answered=0)
        begun = time.monotonic()

        def tell(count: int) -> None:
            completed = count if load.planned_count else time.monotonic() - begun
            progress.update(task, completed=completed, answered=count)

        yield tell


def tell_step(step: str) -> None:
    """Tell on a terminal what is under way, each step in the place of the one before; an empty one clears it."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(f"\r{step:<79}", end="\r", highlight=False)
