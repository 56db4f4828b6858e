"""The commands about the orders in the database."""

import asyncio
import csv
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flashsale import backends
from flashsale.cli.options import (
    PRODUCT_ID,
    Checked,
    database_option,
    json_option,
    print_json,
    print_table,
    printable,
    product_argument,
    store_options,
)
from flashsale.config import Config
from flashsale.errors import InvalidValueError

if TYPE_CHECKING:  # `reports` is imported by the commands that need it, so that the others start in half the time
    from flashsale.orders.database import Database

T = TypeVar("T")

_NUMBER_LENGTH_MAX = 18  # digits: a database has room for as many
_MOMENTS = {"created_at", "refunded_at", "solved_at"}  # in Unix ms


def _check_number(value: str) -> int:
    digits = value.lstrip("0")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _NUMBER_LENGTH_MAX):
        raise InvalidValueError(f"'{printable(value)}' is not the number of a dead letter: see `flashsale orders dead`")
    return int(digits)


class _OrdersGroup(click.Group):
    """A group whose first argument may be a product: `orders ID` beside `orders dead`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            args = ["list", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_OrdersGroup, short_help="List the orders in the database.", subcommand_metavar="[ID] | COMMAND [ARGS]..."
)
def orders() -> None:
    """List the orders in the database, those of one product or of all.

    Options are --user USER, --json, --database URL and where the store is: see `flashsale orders list --help`.
    """


@orders.command(name="list", hidden=True)
@click.argument("product_id", metavar="[ID]", type=PRODUCT_ID, required=False)
@click.option("--user", "user_id", help="Only those of this user.")
@json_option
@database_option
@store_options
def list_orders(config: Config, product_id: str | None, *, user_id: str | None, as_json: bool) -> None:
    """List orders by time."""
    from flashsale.orders import reports

    async def call(database: "Database") -> list[dict[str, Any]]:
        return [_shown(row) async for row in reports.list_orders(database, product_id, user_id)]

    found = with_database(config, call)
    if as_json:
        print_json(found)
        return
    click.echo(f"=== Orders{f' of {product_id}' if product_id else ''} ({len(found)} total) ===")
    if found:
        columns = ("created_at", "status", "quantity", "item_id", "user_id", "order_id")
        rows = (tuple("-" if row[name] is None else printable(str(row[name])) for name in columns) for row in found)
        print_table(("time", "status", "units", "item", "user", "order"), rows, right=frozenset({2, 3}))


@orders.command()
@json_option
@database_option
@store_options
def dead(config: Config, *, as_json: bool) -> None:
    """List the changes that the database did not take."""
    from flashsale.orders import reports

    found = [_shown(row) for row in with_database(config, reports.list_dead_letters)]
    if as_json:
        print_json(found)
        return
    click.echo(f"=== Dead letters ({len(found)} total) ===")
    for row in found:
        click.echo(f"{row['id']}: version {row['version']} of {printable(row['product_id'])}, {row['created_at']}")
        click.echo(f"  {printable(row['entry'])}")
        click.echo(f"  {printable(row['error'])}")


@orders.command(short_help="Write a dead letter into its table.")
@click.argument("number", metavar="NUMBER", type=Checked("number", _check_number))
@database_option
@store_options
def retry(config: Config, number: int) -> None:
    """Write a dead letter into its table, once what stood in its way is gone."""
    from flashsale.orders import reports

    now_ms = int(time.clock_gettime(time.CLOCK_REALTIME) * 1000)
    if not with_database(config, lambda database: reports.retry(database, number, now_ms)):
        raise click.ClickException(f"There is no dead letter {number}")
    click.echo(f"✓ Dead letter {number} is in the database")


@click.command(short_help="Write a product's orders as CSV or JSON lines.")
@product_argument
@click.option("--csv", "as_csv", is_flag=True, help="With a line of the columns' names.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="An object in each line.")
@database_option
@store_options
def export(config: Config, product_id: str, *, as_csv: bool, as_jsonl: bool) -> None:
    """Write a product's orders to the standard output, as --csv or --jsonl."""
    from flashsale.orders import reports

    if as_csv == as_jsonl:
        raise click.UsageError("say how: --csv or --jsonl")

    async def call(database: "Database") -> None:
        if as_csv:
            names = reports.ORDER_COLUMNS
            writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
            writer.writeheader()
            async for row in reports.list_orders(database, product_id):
                writer.writerow(_shown(row))
        else:
            async for row in reports.list_orders(database, product_id):
                print_json(_shown(row))

    with_database(config, call)


@click.group()
def db() -> None:
    """Look after the database of the orders."""


@db.command(short_help="Make the tables, or bring them up to date.")
@database_option
@store_options
def upgrade(config: Config) -> None:
    """Make the tables, or bring them up to date; a server does it too when it starts."""
    applied = with_database(config, lambda database: database.upgrade(), upgrade=False)
    for name in applied:
        click.echo(f"✓ {name}")
    if not applied:
        click.echo("✓ The tables are up to date")


def with_database(config: Config, call: Callable[["Database"], Awaitable[T]], *, upgrade: bool = True) -> T:
    """Return what the call returns, with the database of the settings, whose tables are made first."""

    async def run() -> T:
        database = backends.open_database(config)
        try:
            if upgrade:
                await database.upgrade()
            return await call(database)
        finally:
            await database.close()

    return asyncio.run(run())


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its times as text: ISO 8601, in UTC."""
    return {
        name: shown_moment(value) if name in _MOMENTS and value is not None else value for name, value in row.items()
    }


def shown_moment(at_ms: int) -> str:
    """Return a time as text: ISO 8601, in UTC."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
