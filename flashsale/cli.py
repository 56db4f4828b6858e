"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 wrong usage."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import get_completion_class

from flashsale import __version__, app, demo
from flashsale.config import Config, load_config
from flashsale.domain import Event, PurchaseEvent, check_product_id, check_stock
from flashsale.errors import ConfigError, FlashsaleError, InvalidValueError
from flashsale.launch import ServerProcess, clean_environment, raise_descriptor_limit
from flashsale.store.admin import Admin
from flashsale.store.durability import Durability

T = TypeVar("T")

_TERMINATED = 128 + signal.SIGTERM
_COMPLETE_VARIABLE = "_FLASHSALE_COMPLETE"


class _Checked(click.ParamType):  # type: ignore[type-arg]  # it takes none before click 8.3
    """An argument checked by a function of the domain."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._check(value) if isinstance(value, str) else value
        except InvalidValueError as error:
            self.fail(str(error), param, ctx)


PRODUCT_ID = _Checked("id", check_product_id)
STOCK = _Checked("units", check_stock)


def _store_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options that say where the store is; the command gets a Config first."""

    @click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A TOML settings file.",
    )
    @click.option("--home", help="Directory of the embedded store.  [env: FLASHSALE_HOME]")
    @click.option("--redis", help="A Redis or Valkey of your own: a URL, or HOST:PORT.  [env: REDIS_URL, REDIS_ADDR]")
    @wraps(command)
    def with_config(*args: Any, config_path: Path | None, home: str | None, redis: str | None, **rest: Any) -> T:
        flags = {"home": home, "redis": redis}
        for name in ("listen", "workers", "durability"):
            flags[name] = rest.pop(name, None)
        return command(load_config(config_path, os.environ, flags), *args, **rest)

    return with_config


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
product_argument = click.argument("product_id", metavar="ID", type=PRODUCT_ID)


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
@click.option("--workers", type=int, help="Server processes that share the port.  [default: 1]")
@click.option(
    "--durability",
    type=click.Choice([level.value for level in Durability]),
    help="What a confirmed sale must survive; 'relaxed' takes a store that may lose some.  [default: local]",
)
@_store_options
def serve(config: Config) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)

    def announce(line: str) -> None:
        click.echo(line)
        sys.stdout.flush()

    code = app.serve(config, announce)
    if code:
        raise SystemExit(code)


@cli.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a wrong stock, not a wrong option
@product_argument
@click.argument("stock", metavar="UNITS", type=STOCK)
@click.option("--force", is_flag=True, help="Also when the product has buyers; they are forgotten.")
@_store_options
def init(config: Config, product_id: str, stock: int, *, force: bool) -> None:
    """Open a sale of UNITS units of product ID."""
    _with_admin(config, lambda admin: admin.init(product_id, stock, force=force))
    click.echo(f"✓ Product '{product_id}' initialized with {stock} units")


@cli.command()
@product_argument
@json_option
@_store_options
def status(config: Config, product_id: str, *, as_json: bool) -> None:
    """Show how many units are left and how many are sold."""
    found = _with_admin(config, lambda admin: admin.status(product_id))
    if as_json:
        _print_json({"product_id": product_id, "remaining_stock": found.remaining_stock, "sold": found.sold})
        return
    click.echo(f"\n=== Product Status: {product_id} ===")
    click.echo(f"Remaining Stock:   {found.remaining_stock}")
    click.echo(f"Successful Buyers: {found.sold}")


@cli.command()
@product_argument
@json_option
@_store_options
def buyers(config: Config, product_id: str, *, as_json: bool) -> None:
    """List the buyers in order of purchase."""
    found = _with_admin(config, lambda admin: _collect(admin.buyers(product_id)))
    if as_json:
        _print_json({"product_id": product_id, "buyers": found})
        return
    click.echo(f"=== Buyers for {product_id} ({len(found)} total) ===")
    for number, buyer in enumerate(found, 1):
        click.echo(f"{number}. {_printable(buyer)}")


@cli.command()
@json_option
@_store_options
def products(config: Config, *, as_json: bool) -> None:
    """List the products."""
    found = _with_admin(config, lambda admin: admin.products())
    if as_json:
        _print_json({"products": found})
        return
    for product_id in found:
        click.echo(_printable(product_id))


@cli.command()
@product_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@_store_options
def reset(config: Config, product_id: str, *, yes: bool) -> None:
    """Delete a product and the list of its buyers."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete product '{product_id}' and its buyers?", abort=True)
    _with_admin(config, lambda admin: admin.reset(product_id))
    click.echo(f"✓ Product '{product_id}' reset (deleted)")


@cli.command()
@click.argument("product_id", metavar="[ID]", type=PRODUCT_ID, required=False)
@json_option
@_store_options
def watch(config: Config, product_id: str | None, *, as_json: bool) -> None:
    """Follow the sales as they happen, until Ctrl-C."""

    async def follow(admin: Admin) -> None:
        started = False
        async for event in admin.events():
            if event is None:
                click.echo("the link broke; sales in between are not shown" if started else "watching…", err=True)
                started = True
            elif product_id is None or event.product_id == product_id:
                click.echo(msgspec.json.encode(event).decode() if as_json else _told(event))

    try:
        _with_admin(config, follow)
    except KeyboardInterrupt:
        return


@cli.command(name="demo")
@click.option("--home", help="Directory of the embedded store.  [env: FLASHSALE_HOME]")
def demo_command(home: str | None) -> None:
    """Watch 100 units sell out to 2,000 buyers, on a real server and a real store."""
    config = msgspec.structs.replace(load_config(None, os.environ, {"home": home}), redis=None)
    raise_descriptor_limit()
    with (
        app.open_store(config) as store,
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
            async with app.open_admin(store) as admin:
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


def _with_admin(config: Config, call: Callable[[Admin], Any]) -> Any:
    async def run() -> Any:
        async with app.open_admin(store) as admin:
            return await call(admin)

    with app.open_store(config) as store:
        return asyncio.run(run())


async def _collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def _printable(text: str) -> str:
    """Return the text with what could play tricks on a terminal escaped: user ids come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _told(event: Event) -> str:
    clock = datetime.fromtimestamp(event.timestamp, UTC).astimezone().strftime("%H:%M:%S")
    product_id = _printable(event.product_id)
    if isinstance(event, PurchaseEvent):
        return f"{clock}  {product_id}  {_printable(event.buyer)} bought, {event.remaining} left"
    return f"{clock}  {product_id}  sold out"


def main() -> None:
    """Run the command line; every failure is one line on stderr, never a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # unwinds: the embedded store is left in order
    try:
        code = cli.main(standalone_mode=False, complete_var=_COMPLETE_VARIABLE)
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "flashsale"
        click.echo(f"{error.format_message()} (see '{where} --help')", err=True)
        code = 2
    except click.ClickException as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        code = 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 1
    except OSError as error:
        click.echo(f"the system refused: {error.strerror or error}", err=True)
        code = 1
    except ConfigError as error:
        click.echo(str(error), err=True)
        code = 2
    except FlashsaleError as error:
        click.echo(str(error), err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
