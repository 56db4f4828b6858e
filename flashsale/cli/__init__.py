"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 wrong usage."""

import asyncio
import os
import signal
import subprocess
import sys

import click
import msgspec
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import get_completion_class

from flashsale import __version__, app, backends, demo
from flashsale.cli.attempts import attempts
from flashsale.cli.audit import audit, recover
from flashsale.cli.carriers import relay, worker
from flashsale.cli.look import buyers, holds, products, status, watch
from flashsale.cli.options import database_option, log_options, on_reject_option, store_options
from flashsale.cli.orders import db, export, orders
from flashsale.cli.sale import close, init, pause, refund, reset, restock, resume
from flashsale.cli.schedule import schedule
from flashsale.cli.top import top
from flashsale.config import Config, load_config
from flashsale.errors import FlashsaleError, InvalidValueError
from flashsale.launch import ServerProcess, clean_environment, raise_descriptor_limit
from flashsale.logs import complain
from flashsale.store.durability import Durability

_TERMINATED = 128 + signal.SIGTERM
_COMPLETE_VARIABLE = "_FLASHSALE_COMPLETE"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flashsale")
def cli() -> None:
    """Sell N units to a crowd in the same second, and never one more."""


@cli.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Default 127.0.0.1:8080; ':8080' means all interfaces.  [env: LISTEN_ADDR]",
)
@click.option("--http", metavar="WHERE", help="Of HTTP: HOST:PORT, or 'off'.  [default: the port of --listen]")
@click.option("--grpc", metavar="HOST:PORT", help="Where gRPC is spoken.  [default: nowhere]")
@click.option("--workers", type=int, help="Server processes that share the port.  [default: 1]")
@click.option(
    "--durability",
    type=click.Choice([level.value for level in Durability]),
    help="What a confirmed sale must survive; 'relaxed' takes a store that may lose some.  [default: local]",
)
@click.option("--replicas", type=int, help="How many must have a sale, with --durability replicated.  [default: 1]")
@click.option("--backlog-max", type=int, help="Changes of a product that may wait for the database.")
@on_reject_option
@click.option("--orders/--no-orders", default=None, help="Move orders into the database.  [default: orders]")
@click.option(
    "--record-attempts/--no-record-attempts",
    default=None,
    help="Write what buyers ask and are told into the database.  [default: no-record-attempts]",
)
@click.option(
    "--lottery/--no-lottery",
    default=None,
    help="Tell one purchase in a hundred over HTTP of a surprise.  [default: lottery]",
)
@database_option
@store_options
@log_options
def serve(config: Config) -> None:
    """Run the server until SIGTERM or Ctrl-C."""

    def announce(line: str) -> None:
        click.echo(line)
        sys.stdout.flush()

    code = app.serve(config, announce)
    if code:
        raise SystemExit(code)


@cli.command(name="demo", short_help="Watch 100 units sell out to 2,000 buyers.")
@click.option("--home", help="Directory of the embedded store.  [env: FLASHSALE_HOME]")
def demo_command(home: str | None) -> None:
    """Watch 100 units sell out to 2,000 buyers, on a real server and a real store."""
    config = msgspec.structs.replace(load_config(None, os.environ, {"home": home}), redis=None)
    raise_descriptor_limit()
    with (
        backends.open_store(config) as store,
        ServerProcess(
            ["--listen", "127.0.0.1:0", "--home", config.home],
            environment=clean_environment(),
            log=subprocess.DEVNULL,
        ) as server,
    ):
        click.echo(f"A server listens on {server.host}:{server.port}, its store is {server.store}.")
        click.echo(
            f"{demo.STOCK} units of '{demo.PRODUCT_ID}' for {demo.BUYER_COUNT} buyers, each with a connection.\n"
        )

        async def run() -> demo.DemoResult:
            async with backends.open_admin(store) as admin:
                return await demo.run_demo(server.host, server.port, admin, bar.update)

        with click.progressbar(length=demo.BUYER_COUNT, label="Buyers answered", width=0) as bar:
            result = asyncio.run(run())
    click.echo(f"\nBought:            {result.sold_count}")
    click.echo(f"Sold out:          {result.sold_out_count}")
    click.echo(f"Unanswered:        {result.unanswered_count}")
    click.echo(f"Duration:          {result.duration_s:.2f} s")
    click.echo(f"Latency:           p50 {result.latency_p50_s * 1e3:.0f} ms, max {result.latency_max_s * 1e3:.0f} ms")
    click.echo(f"Remaining Stock:   {result.remaining_stock}")
    click.echo(f"Successful Buyers: {len(result.buyers)}")
    faults = result.faults()
    for fault in faults:
        click.echo(f"✗ {fault}", err=True)
    if faults:
        raise SystemExit(1)
    click.echo(
        f"✓ {result.remaining_stock} left + {len(result.buyers)} bought = {demo.STOCK}; every buyer was answered"
    )


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell completion script."""
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "flashsale", _COMPLETE_VARIABLE).source())


for _command in (
    init, restock, refund, pause, resume, close, reset, status, buyers, holds, products, audit, recover,
    schedule, watch, top, orders, attempts, export, db, worker, relay,
):  # fmt: skip
    cli.add_command(_command)


def _drop_output() -> None:
    """Drop what stdout does not take, or the interpreter complains of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line; every failure is one line on stderr, never a traceback."""
    if sys.stdout is None:  # the shell's `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # unwinds: the embedded store is left in order
    try:
        code = cli.main(standalone_mode=False, complete_var=_COMPLETE_VARIABLE)
        sys.stdout.flush()  # what a full disk does not take fails here, not when the interpreter ends
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "flashsale"
        click.echo(f"{' '.join(error.format_message().split())} (see '{where} --help')", err=True)
        code = 2
    except click.ClickException as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        code = 1
    except BrokenPipeError:
        _drop_output()
        code = 1
    except OSError as error:
        _drop_output()
        complain(f"the system refused: {error.strerror or error}")
        code = 1
    except InvalidValueError as error:
        complain(str(error))
        code = 2
    except FlashsaleError as error:
        complain(str(error))
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
