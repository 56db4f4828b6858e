"""What the commands share: arguments that check themselves, where the store is, and how things are printed."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from flashsale import backends, logs
from flashsale.config import Config, OnReject, load_config, secrets_of
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.ids import check_product_id, parse_order_id
from flashsale.errors import InvalidValueError
from flashsale.logs import printable as printable  # the commands take it from here
from flashsale.store.admin import Admin
from flashsale.terms import check_stock, parse_duration, parse_moment

T = TypeVar("T")


class Checked(click.ParamType):  # type: ignore[type-arg]  # it takes none before click 8.3
    """An argument checked by a function of the domain."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the function makes of it, or fail with its sentence."""
        try:
            return self._check(value) if isinstance(value, str) else value
        except InvalidValueError as error:
            self.fail(str(error), param, ctx)


def _check_units(value: str) -> int:
    try:
        units = check_stock(value)
    except InvalidValueError:
        units = 0
    if not units:
        raise InvalidValueError(
            f"'{printable(value)}' is not a number of units: give a whole number from 1 to {STOCK_MAX}"
        )
    return units


def _check_order_id(value: str) -> str:
    if parse_order_id(value) is None:
        raise InvalidValueError(f"'{printable(value)}' is not an order id: give one as its buyer was told it")
    return value


PRODUCT_ID = Checked("id", check_product_id)
STOCK = Checked("units", check_stock)
UNITS = Checked("units", _check_units)
ORDER_ID = Checked("order", _check_order_id)
DURATION = Checked("duration", parse_duration)
MOMENT = Checked("time", parse_moment)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
product_argument = click.argument("product_id", metavar="ID", type=PRODUCT_ID)


_SERVER_OPTIONS = (
    *("listen", "http", "grpc", "workers", "durability", "replicas"),
    *("database", "orders", "backlog_max", "on_reject", "record_attempts", "lottery", "log_format", "log_level"),
)


def store_options(command: Callable[..., T]) -> Callable[..., T]:
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
        for name in _SERVER_OPTIONS:
            flags[name] = rest.pop(name, None)
        return command(load_config(config_path, os.environ, flags), *args, **rest)

    return with_config


on_reject_option = click.option(
    "--on-reject",
    type=click.Choice([choice.value for choice in OnReject]),
    help="What becomes of an order that the database does not take.  [default: keep]",
)
database_option = click.option(
    "--database", help="Of the orders: a URL.  [default: orders.db in the home directory]  [env: DATABASE_URL]"
)


def with_admin(config: Config, call: Callable[[Admin], Awaitable[T]]) -> T:
    """Return what the call returns, with an operator's hands on the store of the settings."""
    return with_store(config, lambda _, admin: call(admin))


def with_store(config: Config, call: Callable[[backends.Store, Admin], Awaitable[T]]) -> T:
    """Return what the call returns, with the store of the settings and an operator's hands on it."""
    logging.getLogger("flashsale").addHandler(logging.NullHandler())  # a failure is told once, by the exception

    async def run() -> T:
        async with backends.open_admin(store) as admin:
            return await call(store, admin)

    with backends.open_store(config) as store:
        return asyncio.run(run())


def log_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options that say how and what is logged, and do it; for what runs until it is told to end."""

    @click.option(
        "--log-format",
        type=click.Choice([choice.value for choice in logs.LogFormat]),
        help="Of the lines on stderr.  [default: text]",
    )
    @click.option(
        "--log-level",
        type=click.Choice([level.value for level in logs.LogLevel]),
        help="Which of them there are.  [default: info]  [env: LOG_LEVEL]",
    )
    @wraps(command)
    def with_log(config: Config, *args: Any, **rest: Any) -> T:
        logs.set_up(config.log_format, config.log_level, secrets_of(config))
        return command(config, *args, **rest)

    return with_log


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(msgspec.json.encode(value).decode())


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> None:
    """Print rows of text in columns as wide as they need; those in `right` are numbers."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        click.echo("  ".join(cells).rstrip())
