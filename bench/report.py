"""How results are told: the block of figures, tables of targets, a progress bar, JSON files."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.check import Sale
from bench.checkout import ABANDONED, CANCELLED, CONFIRMED, SOLD_OUT, TOO_LATE, Checkout
from bench.crowd import Progress as Tell
from bench.load import Load
from bench.result import PERCENTILES, Result
from bench.storm import Manner, Storm
from flashsale.domain.answers import ProductStatus


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
    _print_lines(lines)
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


def print_checkout(checkout: Checkout) -> None:
    """Print how the customers left, the figures of each operation, the check last."""
    outcomes, status = checkout.outcomes, checkout.status
    click.echo("=== Checkout Results ===")
    _print_lines(
        {
            "Duration": f"{checkout.duration_s:.2f} s",
            "Customers": str(len(checkout.visits)),
            "Confirmed": str(outcomes[CONFIRMED]),
            "Cancelled": str(outcomes[CANCELLED]),
            "Abandoned": str(outcomes[ABANDONED]),
            "Too Late": str(outcomes[TOO_LATE]),
            "Sold Out": str(outcomes[SOLD_OUT]),
            "Failed": str(checkout.failed_count),
            "Throughput": _total_rate(checkout.results),
        }
    )
    print_operations(checkout.results)
    orders = f"{outcomes[CONFIRMED]} confirmed codes are orders, {checkout.expired_count} holds expired"
    print_books(checkout.plan.stock, status, orders, checkout.faults)
    if checkout.failed_count:
        click.echo(f"✗ {checkout.failed_count} customers were not served", err=True)


def print_storm(storm: Storm) -> None:
    """Print what was sent how often, the figures of what was sent first and again, the check last."""
    click.echo("=== Retry Storm Results ===")
    _print_lines(
        {
            "Duration": f"{storm.duration_s:.2f} s",
            "Purchases": str(len(storm.orders)),
            "Sent Once": str(storm.manners[Manner.ONCE]),
            "Sent Again": ", ".join(
                f"{storm.manners[manner]} {manner}" for manner in Manner if manner is not Manner.ONCE
            ),
            "Duplicates": f"{storm.duplicate_count} answers",
            "Sold": str(storm.sold_count),
            "Failed": str(storm.failed_count),
            "Throughput": _total_rate(storm.results),
        }
    )
    print_operations(storm.results)
    print_books(storm.plan.stock, storm.status, "each request id had one effect", storm.faults)
    if storm.failed_count:
        click.echo(f"✗ {storm.failed_count} requests failed", err=True)


def _total_rate(results: Mapping[str, Result]) -> str:
    return f"{sum(result.throughput_per_s for result in results.values()):.0f} req/s"


def print_operations(results: Mapping[str, Result]) -> None:
    """Print rate, latency and answers of each operation; latency counts from when it was sent."""
    click.echo()
    rows = [
        [
            operation,
            f"{result.throughput_per_s:,.0f}",
            *(f"{value:.2f}" for value in result.latencies_ms.values()),
            ", ".join(f"{count:,} {kind}" for kind, count in result.counts.most_common()),
        ]
        for operation, result in results.items()
    ]
    print_table(["Operation", "Answers/s", *(f"{name}, ms" for name in PERCENTILES), "Answers"], rows)
    click.echo()


def print_books(stock: int, status: ProductStatus, more: str, faults: Sequence[str]) -> None:
    """Print whether a sale adds up, with a sentence for each fault."""
    if faults:
        click.echo(f"{'Check:':<16}FAILED")
        for fault in faults:
            click.echo(f"✗ {fault}", err=True)
        return
    units = f"{status.sold} sold + {status.held} held + {status.remaining_stock} left = {stock}"
    click.echo(f"{'Check:':<16}PASSED ({units}; {more})")


def _print_lines(lines: Mapping[str, str]) -> None:
    for name, value in lines.items():
        click.echo(f"{name + ':':<16}{value}")


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
