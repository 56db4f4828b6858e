"""The command line: parse, run, print. Exit codes: 0 done, 1 failed (also a sale or a request), 2 wrong usage."""

import signal
import sys
from pathlib import Path
from typing import Any

import click

from bench import attack, attempts, compare, expiry, latency, limits, orders, rules, sizes
from bench.http.cli import http_commands
from bench.load import CONNECTION_COUNT_MAX, DURATION_S_MAX, REQUEST_COUNT_MAX, Load
from bench.options import json_option, plot_option, refuse_options
from bench.report import print_result, print_table, print_targets, tell_step, write_json
from bench.scenarios import checkout_command, megaload_command, retry_storm_command
from flashsale.config import load_config, split_address
from flashsale.domain.bounds import STOCK_MAX
from flashsale.errors import FlashsaleError, InvalidValueError

_REQUEST_COUNT_DEFAULT = 1_000
_PROCESS_COUNT_MAX = 64


class _Group(click.Group):
    """Turns our own errors, and the system's, into one line and exit code 1, or 2 when it is a value that was given."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and directories are cleaned up
        try:
            return super().invoke(ctx)
        except InvalidValueError as error:
            raise click.UsageError(str(error), ctx) from error
        except FlashsaleError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise  # whoever read has seen enough: click ends quietly
        except OSError as error:
            raise click.ClickException(f"the system refused: {error}") from error


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--connections", type=click.IntRange(1, CONNECTION_COUNT_MAX), default=200, show_default=True)
@click.option(
    "--pipeline",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Closed loop: requests under way on each connection.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, REQUEST_COUNT_MAX),
    help=f"Requests of each connection.  [default: {_REQUEST_COUNT_DEFAULT}]",
)
@click.option("--duration", type=click.FloatRange(0.1, DURATION_S_MAX), help="Seconds, instead of --requests.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1e6),
    help="Open loop: requests a second over all connections; latency counts from when a request was due.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, _PROCESS_COUNT_MAX),
    default=1,
    show_default=True,
    help="Load generators; on two cores one is best.",
)
@click.option(
    "--stock", type=click.IntRange(0, STOCK_MAX), default=100, show_default=True, help="Units of the fresh product."
)
@click.option("--timeout", type=click.FloatRange(1, 2 * DURATION_S_MAX), help="Seconds until the run is given up.")
@click.option(
    "--connect", metavar="HOST:PORT", help="Attack a running server instead of starting one; needs --product."
)
@click.option("--product", metavar="ID", help="With --connect: the product to buy.")
@click.option("--home", help="With --connect: the directory of its embedded store, to check the sale.")
@click.option("--redis", metavar="URL", help="With --connect: its Redis, to check the sale.")
@json_option
@plot_option
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Let a crowd of buyers loose on a flash sale, measure it, and check that it was honest.

    Without a command: one crowd on one product, by default of a server of its own with a fresh embedded store.
    Times count from when everybody is connected.
    """
    if ctx.invoked_subcommand is None:
        _attack(**options)
        return
    refuse_options(ctx, options)


def _attack(
    *,
    connections: int,
    pipeline: int,
    requests: int | None,
    duration: float | None,
    rate: float | None,
    processes: int,
    stock: int,
    timeout: float | None,
    connect: str | None,
    product: str | None,
    home: str | None,
    redis: str | None,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    if requests is not None and duration is not None:
        raise click.UsageError("give --requests or --duration, not both")
    if rate is not None and pipeline != 1:
        raise click.UsageError("--pipeline belongs to the closed loop; with --rate requests go out when they are due")
    if (connect is None) != (product is None):
        raise click.UsageError("--connect and --product go together")
    has_store = home is not None or redis is not None
    if connect is None and has_store:
        raise click.UsageError("--home and --redis go with --connect; without it the store is a fresh one")
    if duration is None and requests is None:
        requests = _REQUEST_COUNT_DEFAULT
    host, port = split_address(connect) if connect is not None else ("", 0)
    load = Load(
        host=host or "127.0.0.1",
        port=port,
        product_id=attack.PRODUCT_ID if product is None else product,
        connection_count=connections,
        pipeline_depth=pipeline,
        request_count=requests,
        duration_s=duration,
        rate_per_s=rate,
    )
    load = load.with_timeout(timeout)
    if connect is not None:
        config = load_config(None, {}, {"home": home, "redis": redis}) if has_store else None
        result, sale = attack.attack_running(load, config=config, process_count=processes)
    else:
        result, sale = attack.attack_own(load, stock=stock, process_count=processes)
    print_result(result, sale)
    faults = sale.faults()
    if json_path is not None:
        write_json(json_path, result.as_json() | {"check": {"passed": not faults, "faults": faults, "sale": sale}})
    if plot_path is not None:
        from bench.plot import plot_result  # here, because it takes a second to load

        plot_result(result, plot_path)
    if faults or result.error_count:
        raise SystemExit(1)


@cli.command(name="compare")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--duration",
    type=click.FloatRange(0.1, 600),
    default=2.0,
    show_default=True,
    help="Seconds of each run; a round has one for each row of the first table.",
)
@json_option
@plot_option
def compare_command(*, rounds: int, duration: float, json_path: Path | None, plot_path: Path | None) -> None:
    """Compare with one EVALSHA per request and with an echo, in one go and in turns."""
    comparison = compare.compare(round_count=rounds, duration_s=duration, progress=tell_step)
    tell_step("")
    targets = compare.targets_of(comparison)
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(compare.ROWS_HEAD, compare.rows_of(comparison))
    click.echo(
        "\nWhere the client takes nearly 100 % of its core, it is the bound: then (a)/(c) measures the client.\n"
    )
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, compare.as_json(comparison, targets))
    if plot_path is not None:
        from bench.plot import plot_comparison

        plot_comparison(comparison, plot_path)


@cli.command(name="limits")
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Of what is measured in turns."
)
@click.option(
    "--duration",
    type=click.FloatRange(0.5, 600),
    default=3.0,
    show_default=True,
    help="Seconds of each run of the open loop.",
)
@json_option
def limits_command(*, rounds: int, duration: float, json_path: Path | None) -> None:
    """Measure latency at 5,000 requests a second, 10,000 at once, idle memory, and independence of size."""
    scale = limits.Scale(
        open_loop=latency.Scale(round_count=rounds, duration_s=duration), pairs=sizes.Scale(round_count=rounds)
    )
    targets = limits.measure(scale, tell_step)
    tell_step("")
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, {"scale": scale, "targets": targets})


@cli.command(name="rules")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option(
    "--duration",
    type=click.FloatRange(0.1, 600),
    default=1.0,
    show_default=True,
    help="Seconds of each run of the crowd; a round has one for each row of the first table.",
)
@json_option
def rules_command(*, rounds: int, duration: float, json_path: Path | None) -> None:
    """Measure what limits, request ids and expiring holds cost.

    The same crowd buys with and without a limit for each user and request ids, in turns; then 100,000 holds expire in
    one second while a crowd buys 2,000 units a second of the same product.
    """
    scale = rules.Scale(round_count=rounds, duration_s=duration, holds=expiry.Scale(round_count=rounds))
    cells, targets = rules.measure(scale, tell_step)
    tell_step("")
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(rules.ROWS_HEAD, rules.rows_of(cells))
    click.echo()
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, rules.as_json(scale, cells, targets))


@cli.command(name="orders")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--orders", "order_count", type=click.IntRange(1_000, 10_000_000), default=100_000, show_default=True)
@click.option("--duration", type=click.FloatRange(0.2, 600), default=3.0, show_default=True, help="Of each crowd.")
@json_option
def orders_command(*, rounds: int, order_count: int, duration: float, json_path: Path | None) -> None:
    """Measure how orders get into a database.

    A ledger is drained into SQLite and into a PostgreSQL of this machine; then comes the lag of a row behind the answer
    to its buyer, at 5,000 sales a second, and what --durability strict costs.
    """
    scale = orders.Scale(round_count=rounds, order_count=order_count, duration_s=duration)
    targets = orders.measure(scale, tell_step)
    tell_step("")
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, targets)


@cli.command(name="attempts")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(0.1, 600), default=0.5, show_default=True, help="Seconds of each run."
)
@json_option
def attempts_command(*, rounds: int, duration: float, json_path: Path | None) -> None:
    """Measure what recording the attempts of buyers costs: with and without it, in turns."""
    cells, targets = attempts.measure(rounds, duration, tell_step)
    tell_step("")
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(attempts.ROWS_HEAD, attempts.rows_of(cells))
    click.echo()
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, attempts.as_json(cells, targets))


@cli.command(name="grpc")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(0.1, 600), default=2.0, show_default=True, help="Seconds of each run."
)
@json_option
def grpc_command(*, rounds: int, duration: float, json_path: Path | None) -> None:
    """Compare Purchase over gRPC with an empty method of grpc.aio, in turns."""
    from bench import grpc  # here, because nobody else needs its libraries

    cells, targets = grpc.measure(rounds, duration, tell_step)
    tell_step("")
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(grpc.ROWS_HEAD, grpc.rows_of(cells))
    click.echo()
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, grpc.as_json(cells, targets))


cli.add_command(checkout_command)
cli.add_command(retry_storm_command)
cli.add_command(megaload_command)
cli.add_command(http_commands)
