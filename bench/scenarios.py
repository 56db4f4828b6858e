"""The commands for whole stories of customers: exit code 1 also when it does not add up."""

from pathlib import Path

import click

from bench import checkout, megaload, storm
from bench.load import Door
from bench.options import json_option, timeout_option
from bench.report import print_checkout, print_storm, print_table, tell_step, write_json
from flashsale.domain.bounds import HOLD_MAX_S, QUANTITY_MAX, STOCK_MAX

_COUNT_MAX = 1_000_000
"""Customers or purchases: each is kept until the check."""
_CONNECTION_COUNT_MAX = 10_000


@click.command(name="checkout")
@click.option("--customers", type=click.IntRange(1, _COUNT_MAX), default=10_000, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1e5),
    default=2_000.0,
    show_default=True,
    help="Customers that arrive each second, whatever the server does.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, _CONNECTION_COUNT_MAX),
    default=100,
    show_default=True,
    help="Which the customers share.",
)
@click.option("--stock", type=click.IntRange(0, STOCK_MAX), default=10_000, show_default=True)
@click.option(
    "--units",
    type=click.IntRange(1, QUANTITY_MAX),
    default=3,
    show_default=True,
    help="Each customer wants one to so many.",
)
@click.option(
    "--think",
    type=click.FloatRange(0, 600),
    default=0.5,
    show_default=True,
    help="Seconds between the hold and what becomes of it, on average.",
)
@click.option(
    "--hold", type=click.IntRange(1, HOLD_MAX_S), default=2, show_default=True, help="Seconds until a hold expires."
)
@click.option(
    "--patience",
    type=click.FloatRange(0, 600),
    default=3.0,
    show_default=True,
    help="Seconds for which one who is told SOLD_OUT tries again.",
)
@click.option(
    "--abandon",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Share of those with a hold who go without a word.",
)
@click.option(
    "--cancel", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of those who cancel it."
)
@timeout_option
@json_option
def checkout_command(
    *,
    customers: int,
    rate: float,
    connections: int,
    stock: int,
    units: int,
    think: float,
    hold: int,
    patience: float,
    abandon: float,
    cancel: float,
    timeout: float,
    json_path: Path | None,
) -> None:
    """Let customers reserve, think, then confirm, cancel or go.

    Who goes without a word leaves a hold that expires; its units are sold to others. In the end every unit must be
    accounted for, and every confirmed code must be an order in the store's ledger.
    """
    if abandon + cancel > 1:
        raise click.UsageError("--abandon and --cancel are shares of the same customers: together at most 1")
    plan = checkout.Plan(
        customer_count=customers,
        connection_count=connections,
        rate_per_s=rate,
        stock=stock,
        quantity_max=units,
        think_s=think,
        hold_s=hold,
        patience_s=patience,
        abandon_share=abandon,
        cancel_share=cancel,
        timeout_s=timeout,
    )
    found = checkout.check_out(plan, tell_step)
    tell_step("")
    print_checkout(found)
    _conclude(found, json_path)


@click.command(name="retry-storm")
@click.option("--purchases", type=click.IntRange(1, _COUNT_MAX), default=50_000, show_default=True)
@click.option("--connections", type=click.IntRange(2, _CONNECTION_COUNT_MAX), default=100, show_default=True)
@click.option(
    "--pipeline",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    help="Purchases under way on each connection.",
)
@click.option("--stock", type=click.IntRange(0, STOCK_MAX), default=30_000, show_default=True)
@click.option(
    "--again",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Share of the purchases that are sent two or three times.",
)
@timeout_option
@json_option
def retry_storm_command(
    *,
    purchases: int,
    connections: int,
    pipeline: int,
    stock: int,
    again: float,
    timeout: float,
    json_path: Path | None,
) -> None:
    """Send purchases again and again; each must count once.

    Each has a request id. Some are sent two or three times: in one burst, again when answered, on several connections
    at once, or after a connection broke. In the end each id must have one effect in the store's ledger, and every
    answer must say so.
    """
    plan = storm.Plan(
        purchase_count=purchases,
        connection_count=connections,
        pipeline_depth=pipeline,
        stock=stock,
        again_share=again,
        timeout_s=timeout,
    )
    found = storm.run_storm(plan, tell_step)
    tell_step("")
    print_storm(found)
    _conclude(found, json_path)


@click.command(name="megaload")
@click.option("--door", type=click.Choice(["http", "tcp", "both"]), default="both", show_default=True)
@click.option("--requests", type=click.IntRange(1, 100_000_000), default=1_000_000, show_default=True)
@click.option(
    "--connections",
    type=click.IntRange(1, _CONNECTION_COUNT_MAX),
    default=2_000,
    show_default=True,
    help="As many requests are under way at once.",
)
@click.option("--stock", type=click.IntRange(0, STOCK_MAX), default=10_000, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Load generators; on two cores one."
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 7_200),
    default=600.0,
    show_default=True,
    help="Seconds until the run over a door is given up.",
)
@json_option
def megaload_command(
    *, door: str, requests: int, connections: int, stock: int, processes: int, timeout: float, json_path: Path | None
) -> None:
    """Let a million buyers loose, 2,000 at a time, on 10,000 units.

    Every one of them must be answered, the units sold to the last, and the store must agree.
    """
    if requests % connections:
        raise click.UsageError("--requests must be a multiple of --connections, each of which sends as many")
    plan = megaload.Plan(
        request_count=requests,
        connection_count=connections,
        stock=stock,
        process_count=processes,
        timeout_s=timeout,
    )
    doors = list(Door) if door == "both" else [Door(door)]
    found = [megaload.run(each, plan, tell_step) for each in doors]
    tell_step("")
    print_table(megaload.ROWS_HEAD, [megaload.row_of(each) for each in found])
    for each in found:
        for kind, count in sorted(each.result.errors.items()):
            click.echo(f"✗ {each.door}: {count:,} x {kind}", err=True)
        for fault in each.faults:
            click.echo(f"✗ {each.door}: {fault}", err=True)
        if not each.faults:
            sold = each.result.success_count
            click.echo(f"✓ {each.door}: {requests:,} answered, {sold:,} sold, 0 errors, and the store agrees")
    if json_path is not None:
        write_json(json_path, {each.door: each.as_json() for each in found})
    if any(each.faults for each in found):
        raise SystemExit(1)


def _conclude(found: checkout.Checkout | storm.Storm, json_path: Path | None) -> None:
    """Write the figures if that was asked for; fail if not all is as it must be."""
    if json_path is not None:
        write_json(json_path, found.as_json())
    if found.faults or found.failed_count:
        raise SystemExit(1)
