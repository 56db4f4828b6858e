"""The command `http`, and those behind its name."""

import asyncio
from pathlib import Path

import click

from bench import compare as over_tcp
from bench.http import checkout, compare
from bench.http.rush import Plan
from bench.options import json_option, refuse_options
from bench.report import print_operations, print_table, print_targets, tell_step, write_json
from flashsale.config import split_address


@click.group(name="http", invoke_without_command=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(0.1, 600), default=2.0, show_default=True, help="Seconds of each of six runs."
)
@json_option
@click.pass_context
def http_commands(ctx: click.Context, /, *, rounds: int, duration: float, json_path: Path | None) -> None:
    """Compare POST /api/purchase with a constant and with one EVALSHA per request, in one go and in turns."""
    if ctx.invoked_subcommand is not None:
        refuse_options(ctx, ("rounds", "duration", "json_path"))
        return
    comparison = compare.compare(round_count=rounds, duration_s=duration, progress=tell_step)
    tell_step("")
    targets = compare.targets_of(comparison)
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(over_tcp.ROWS_HEAD, over_tcp.rows_of(comparison, compare.PEER_NAMES))
    click.echo()
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, compare.as_json(comparison, targets))


@http_commands.command(name="checkout")
@click.option(
    "--rate",
    type=click.FloatRange(1, 1e5),
    default=10_000.0,
    show_default=True,
    help="Visitors that come each second, whatever the server does.",
)
@click.option("--duration", type=click.FloatRange(0.1, 3_600), default=10.0, show_default=True, help="Seconds.")
@click.option(
    "--connections", type=click.IntRange(1, 10_000), default=500, show_default=True, help="Which the visitors share."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30.0,
    show_default=True,
    help="Seconds for the answers to those who came last.",
)
@click.option("--connect", metavar="HOST:PORT", help="Go to a running server, which has a recurring sale.")
@json_option
def checkout_command(
    *, rate: float, duration: float, connections: int, timeout: float, connect: str | None, json_path: Path | None
) -> None:
    """Let visitors check out and purchase, as tools/k6/loadtest.js does.

    70 % check out an item at random, 10 % are users who want more than they may, 10 % purchase with the code, 10 % send
    what is not valid. Latency counts from when a visitor was due.
    """
    plan = Plan(rate_per_s=rate, duration_s=duration, connection_count=connections, timeout_s=timeout)
    if connect is None:
        found = checkout.rush_own(plan, tell_step)
    else:
        host, port = split_address(connect)
        found = asyncio.run(checkout.rush_running(host or "127.0.0.1", port, plan, tell_step))
    tell_step("")
    _print(found)
    if json_path is not None:
        write_json(json_path, found.as_json())
    if found.faults or found.unexpected:
        raise SystemExit(1)


def _print(found: checkout.Found) -> None:
    answered = sum(result.answer_count for result in found.results.values())
    click.echo(
        f"{found.plan.rate_per_s:,.0f} visitors a second for {found.plan.duration_s:g} s: {answered:,} answers in "
        f"{found.duration_s:.1f} s; they took {found.client_cpu_share:.0%} of a core"
    )
    print_operations(found.results)
    for kind, count in found.unexpected.most_common():
        click.echo(f"✗ not documented: {count:,} x {kind}", err=True)
    for fault in found.faults:
        click.echo(f"✗ {fault}", err=True)
    after = found.after
    units = f"{after.sold_count:,} sold + {after.held_count:,} held of {after.item_count:,}"
    click.echo(f"Check: {'FAILED' if found.faults or found.unexpected else 'PASSED'} ({after.sale_id}: {units})")
