"""The command about what buyers asked and were told."""

from typing import TYPE_CHECKING, Any

import click

from flashsale.cli.options import (
    database_option,
    json_option,
    print_json,
    print_table,
    printable,
    product_argument,
    store_options,
)
from flashsale.cli.orders import shown_moment, with_database
from flashsale.config import Config
from flashsale.domain.attempts import OUTCOMES

if TYPE_CHECKING:  # it takes longer to import than all else together
    from flashsale.orders.database import Database
    from flashsale.orders.reports import AttemptsWanted

_LINE = "{:24}  {:14}  {:8}  {:>5}  {:>8}  {:>9}  {}"
"""Of fixed width: a crowd's attempts are too many to be measured first."""
_COLUMNS = ("at", "outcome", "kind", "quantity", "item_id", "version", "user_id")
_HEAD = ("time", "outcome", "kind", "units", "item", "version", "user")


@click.command(short_help="List what buyers asked and were told.")
@product_argument
@click.option("--user", "user_id", help="Only those of this user.")
@click.option(
    "--outcome",
    metavar="STATUS",
    type=click.Choice(OUTCOMES, case_sensitive=False),
    help="Only those that ended so: success, sold_out, held or any other.",
)
@click.option("--counts", "as_counts", is_flag=True, help="How many ended how, instead of each.")
@json_option
@database_option
@store_options
def attempts(
    config: Config, product_id: str, *, user_id: str | None, outcome: str | None, as_counts: bool, as_json: bool
) -> None:
    """List what buyers asked of a product and were told, if a server runs with --record-attempts."""
    from flashsale.orders import reports

    wanted = reports.AttemptsWanted(product_id=product_id, user_id=user_id, outcome=outcome)

    async def call(database: "Database") -> None:
        dropped_count = sum((await reports.count_dropped(database)).values())
        counts = await reports.count_attempts(database, wanted)
        if as_json and as_counts:
            print_json({"dropped": dropped_count, "counts": counts})
        elif as_json:
            await _print_json(database, wanted, dropped_count)
        else:
            click.echo(f"=== Attempts of {product_id} ({sum(counts.values())} total) ===")
            if counts and as_counts:
                rows = [(name, str(count)) for name, count in counts.items()]
                print_table(("outcome", "attempts"), rows, right=frozenset({1}))
            elif counts:
                await _print_lines(database, wanted)
        if dropped_count:
            click.echo(f"{dropped_count} attempts, of whatever products, were dropped: they are no rows", err=True)
        if not await reports.has_recorded(database):
            click.echo("nothing is recorded unless a server runs with --record-attempts", err=True)

    with_database(config, call)


async def _print_lines(database: "Database", wanted: "AttemptsWanted") -> None:
    from flashsale.orders import reports

    click.echo(_LINE.format(*_HEAD))
    async for row in reports.list_attempts(database, wanted):
        shown = _shown(row)
        cells = ["-" if shown[name] is None else printable(str(shown[name])) for name in _COLUMNS]
        detail = f"  ({printable(shown['detail'])})" if shown["detail"] else ""
        click.echo(_LINE.format(*cells) + detail)


async def _print_json(database: "Database", wanted: "AttemptsWanted", dropped_count: int) -> None:
    """Print one object, as it is read: all attempts may be more than fits into memory."""
    from flashsale.orders import reports

    click.echo(f'{{"dropped":{dropped_count},"attempts":[', nl=False)
    comma = ""
    async for row in reports.list_attempts(database, wanted):
        click.echo(comma, nl=False)
        print_json(_shown(row))
        comma = ","
    click.echo("]}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"at": shown_moment(row["at"])}
