"""The commands about sales that come again and again."""

import re
from collections.abc import Sequence
from typing import Any

import click

from flashsale import backends
from flashsale.cli.options import (
    DURATION,
    UNITS,
    Checked,
    database_option,
    json_option,
    print_json,
    print_table,
    printable,
    store_options,
    with_admin,
    with_store,
)
from flashsale.config import Config
from flashsale.domain.schedules import (
    EVERY_MAX_S,
    KEEP_MAX_S,
    KEEP_S,
    CurrentSale,
    Due,
    Schedule,
    check_schedule_name,
    next_begin,
)
from flashsale.errors import DatabaseError, InvalidValueError, ProductNotFoundError, StoreUnavailableError
from flashsale.store.admin import Admin
from flashsale.store.schedules import Overview
from flashsale.terms import check_terms, local_time, parse_duration, show_duration, show_moment


def _check_period(value: str) -> int:
    seconds = parse_duration(value) if re.fullmatch(r"[0-9]{1,12}[mh]", value) else 0
    if not 1 <= seconds <= EVERY_MAX_S:
        raise InvalidValueError(
            f"'{value}' is not a period: give whole minutes or hours, such as 5m or 1h,"
            f" and {EVERY_MAX_S // 3_600}h at most"
        )
    return seconds


_NAME = Checked("name", check_schedule_name)
_PERIOD = Checked("period", _check_period)

name_argument = click.argument("name", metavar="NAME", type=_NAME)


@click.group()
def schedule() -> None:
    """Have a sale come again and again."""


@schedule.command()
@name_argument
@click.option("--every", "every_s", metavar="PERIOD", type=_PERIOD, required=True, help="Minutes or hours: 5m, 1h.")
@click.option("--items", "item_count", metavar="UNITS", type=UNITS, required=True, help="Units of each sale.")
@click.option("--limit", metavar="N", type=UNITS, help="Units that one user may buy and hold together.")
@click.option("--numbered", is_flag=True, help="Each unit is an item of its own, with a number from 1.")
@click.option("--hold", "hold_s", metavar="DURATION", type=DURATION, help="How long a hold lasts.  [default: 15m]")
@click.option(
    "--keep", "keep_s", metavar="DURATION", type=DURATION, help="How long a sale stays after its end.  [default: 48h]"
)
@click.option("--replace", is_flag=True, help="Change the terms of a schedule of that name, from its next sale on.")
@database_option
@store_options
def add(config: Config, name: str, *, replace: bool, **options: Any) -> None:
    """Open a sale in each period, from the present one on.

    Periods are counted from the Unix epoch, so that those of an hour begin on the hour.
    """
    wanted = _make_schedule(name, **options)

    async def call(
        store: backends.Store, admin: Admin
    ) -> tuple[Schedule | None, list[str], CurrentSale | None, int | None]:
        before = await admin.schedules.add(wanted, replace=replace)
        due = [one for one in (await admin.schedules.look()).due if one.schedule.name == name]
        frozen = await _check_due(config, store, due)
        for one in due:
            await admin.schedules.open(one)
        sale = (await admin.schedules.look()).current.get(name)
        return before, frozen, sale, await _left(admin, sale)

    before, frozen, sale, left = with_store(config, call)
    done = "added" if before is None else "is there already" if before == wanted else "changed"
    click.echo(f"✓ Schedule '{name}' {done}")
    click.echo(f"  {_told_terms(wanted)}")
    if sale is not None:
        how_many = "cannot be sold" if left is None else f"{left} left"
        click.echo(f"  now {sale.product_id} until {show_moment(sale.ends_at)}, {how_many}")
        next_at = _next_at(wanted, sale, sale.ends_at - 1)
        if next_at > sale.ends_at:  # its period was another one
            click.echo(f"  then none until {show_moment(next_at)}")
    for product_id in frozen:
        click.echo(f"  the database knows more of it: flashsale recover {product_id}")


async def _check_due(config: Config, store: backends.Store, due: Sequence[Due]) -> list[str]:
    """Freeze what the store has lost and the database knows, as a server does before it opens a sale; return that."""
    if not due or not backends.has_database(config):
        return []
    try:
        async with backends.open_fence(config, store) as fence:
            return await fence.check_due([one.product_id for one in due])
    except (DatabaseError, InvalidValueError) as error:
        click.echo(f"The database is left out: {printable(str(error))}", err=True)
        return []


async def _left(admin: Admin, sale: CurrentSale | None) -> int | None:
    """Return how many units of a sale are left; None when an operator has deleted it, or it is frozen."""
    if sale is None:
        return None
    try:
        return (await admin.status(sale.product_id)).remaining_stock
    except (ProductNotFoundError, StoreUnavailableError):
        return None


def _make_schedule(
    name: str,
    *,
    every_s: int,
    item_count: int,
    limit: int | None,
    hold_s: int | None,
    keep_s: int | None,
    **rest: bool,
) -> Schedule:
    """Return the schedule that was typed, or raise a UsageError when it makes no sense."""
    usual = Schedule(name=name, every_s=every_s, item_count=item_count)
    hold_s = usual.hold_s if hold_s is None else hold_s
    wanted = Schedule(
        name=name,
        every_s=every_s,
        item_count=item_count,
        limit=limit or 0,
        hold_s=hold_s,
        hold_total_s=max(hold_s, usual.hold_total_s),
        keep_s=KEEP_S if keep_s is None else keep_s,
        **rest,
    )
    try:
        check_terms(item_count, wanted.terms, now_s=0)
        if not wanted.hold_total_s <= wanted.keep_s <= KEEP_MAX_S:
            raise InvalidValueError(
                f"a sale is kept from {show_duration(wanted.hold_total_s)}, when its last hold ends,"
                f" to {show_duration(KEEP_MAX_S)} after its end"
            )
    except InvalidValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    return wanted


def _told_terms(schedule: Schedule) -> str:
    what = f"{schedule.item_count} {'numbered items' if schedule.numbered else 'units'}"
    each = f", at most {schedule.limit} for one user" if schedule.limit else ""
    return f"{what} every {_show_period(schedule.every_s)}{each}"


def _show_period(seconds: int) -> str:
    """Return a period as it is typed; one that no command makes, in seconds."""
    return next(f"{seconds // size}{unit}" for unit, size in (("h", 3_600), ("m", 60), ("s", 1)) if seconds % size == 0)


@schedule.command(name="list")
@json_option
@store_options
def list_command(config: Config, *, as_json: bool) -> None:
    """List the schedules, each with the sale that goes on."""

    async def call(admin: Admin) -> tuple[Overview, dict[str, int | None]]:
        look = await admin.schedules.look()
        return look, {name: await _left(admin, sale) for name, sale in look.current.items()}

    look, left = with_admin(config, call)
    found = sorted(look.schedules.values(), key=lambda schedule: schedule.name)
    if as_json:
        now_s = int(look.now_s)
        rows = [_as_json(row, look.current.get(row.name), left.get(row.name), now_s) for row in found]
        print_json({"schedules": rows})
        return
    if not found:
        click.echo("no schedules")
        return
    head = ("name", "every", "items", "limit", "current sale", "left", "next")
    rows_of_text = (_as_text(row, look.current.get(row.name), left.get(row.name), int(look.now_s)) for row in found)
    print_table(head, rows_of_text, right=frozenset({1, 2, 3, 5}))


def _as_text(schedule: Schedule, sale: CurrentSale | None, left: int | None, now_s: int) -> tuple[str, ...]:
    at_s = _next_at(schedule, sale, now_s)
    at = local_time(at_s)
    return (
        schedule.name,
        _show_period(schedule.every_s),
        str(schedule.item_count),
        str(schedule.limit or "-"),
        sale.product_id if sale else "-",
        "-" if left is None else str(left),
        at.strftime("%H:%M:%S" if at_s - now_s < 86_400 else "%d %b %H:%M") if at else "-",
    )


def _as_json(schedule: Schedule, sale: CurrentSale | None, left: int | None, now_s: int) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "every_s": schedule.every_s,
        "items": schedule.item_count,
        "limit": schedule.limit or None,
        "numbered": schedule.numbered,
        "hold_s": schedule.hold_s,
        "hold_max_s": schedule.hold_total_s,
        "keep_s": schedule.keep_s,
        "product_id": sale.product_id if sale else None,
        "remaining_stock": left,
        "next_begins_at": _next_at(schedule, sale, now_s),
    }


def _next_at(schedule: Schedule, sale: CurrentSale | None, now_s: int) -> int:
    """Return when the next sale begins: not before the one that goes on is over, which had other terms perhaps."""
    if sale is None or sale.ends_at <= now_s:
        return next_begin(schedule, now_s)
    return next_begin(schedule, sale.ends_at - 1)


@schedule.command(short_help="Have no more sales opened.")
@name_argument
@store_options
def remove(config: Config, name: str) -> None:
    """Open no further sales of schedule NAME; the one that goes on goes on to its end."""

    async def call(admin: Admin) -> CurrentSale | None:
        await admin.schedules.remove(name)
        return (await admin.schedules.look()).current.get(name)

    sale = with_admin(config, call)
    click.echo(f"✓ Schedule '{name}' removed")
    if sale is not None:
        click.echo(f"  {sale.product_id} goes on until {show_moment(sale.ends_at)}")
