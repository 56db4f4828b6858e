"""The command that compares sales with their ledgers."""

from functools import partial

import click

from flashsale import backends
from flashsale.cli.options import (
    PRODUCT_ID,
    database_option,
    json_option,
    print_json,
    print_table,
    printable,
    product_argument,
    store_options,
    with_admin,
)
from flashsale.config import Config
from flashsale.errors import DatabaseError, ProductNotFoundError, RefusedError
from flashsale.store.admin import Admin
from flashsale.store.replay import Base
from flashsale.store.report import Report

_SHOWN_COUNT = 20


@click.command()
@click.argument("product_ids", metavar="[ID]...", type=PRODUCT_ID, nargs=-1)
@click.option("--repair", is_flag=True, help="Set what differs to what the ledger says.")
@json_option
@database_option
@store_options
def audit(config: Config, product_ids: tuple[str, ...], *, repair: bool, as_json: bool) -> None:
    """Compare products with their ledgers.

    Every counter and key is compared, of all products unless IDs are given; the sales may go on meanwhile. What a
    ledger does not tell of any more comes from the database. The exit code is 1 when something differs.
    """
    if not with_admin(config, lambda admin: _audit(config, admin, product_ids, repair=repair, as_json=as_json)):
        raise SystemExit(1)


async def _audit(config: Config, admin: Admin, product_ids: tuple[str, ...], *, repair: bool, as_json: bool) -> bool:
    ok, rows = True, []
    for product_id in product_ids or await admin.audited_products():
        base = partial(_read_base, config, product_id)
        try:
            if repair:
                before, after = await admin.repair(product_id, base)
            else:
                before = after = await admin.audit(product_id, base)
        except ProductNotFoundError:
            if product_ids:
                raise
            continue  # it was deleted since the list was made
        except RefusedError as error:
            ok = False
            rows.append({"product_id": product_id, "ok": False, "refused": str(error)})
            if not as_json:
                click.echo(printable(str(error)), err=True)
            continue
        ok = ok and after.ok
        rows.append(_row(before, after))
        if not as_json:
            _show(before, after)
    if as_json:
        print_json({"ok": ok, "products": rows})
    return ok


@click.command(short_help="Rebuild a product from the database.")
@product_argument
@database_option
@store_options
def recover(config: Config, product_id: str) -> None:
    """Rebuild a product from the database, if that knows more of it than the store, and go on selling it.

    That is so when the store was lost, or was set back to what it had been. Lost with it are the codes of holds, whose
    units return when their time is over, and sales that were not in the database yet.
    """

    async def call(admin: Admin) -> tuple[Base | None, Report]:
        return await admin.recover(product_id, partial(_read_history, config, product_id))

    base, after = with_admin(config, call)
    name = printable(product_id)
    if base is None:
        click.echo(f"✓ {name}: nothing of it was lost")
    else:
        click.echo(f"✓ {name}: rebuilt as the database knows it up to version {base.counters.version}")
        standing = sum(not order.refund_version for order in base.orders)
        click.echo(
            f"  {standing} orders of {base.counters.sold} units, {len(base.holds)} holds of {base.counters.held}"
        )
    _show(after, after)
    if not after.ok:
        raise SystemExit(1)


async def _read_history(config: Config, product_id: str) -> Base | None:
    from flashsale.orders.history import read_base  # takes longer to import than all else

    async with backends.open_history(config) as database:
        return None if database is None else await read_base(database, product_id)


async def _read_base(config: Config, product_id: str) -> Base | None:
    try:
        return await _read_history(config, product_id)
    except DatabaseError as error:
        click.echo(f"The database is left out: {printable(str(error))}", err=True)
        return None


def _row(before: Report, after: Report) -> dict[str, object]:
    return {
        "product_id": after.product_id,
        "ok": after.ok,
        "first_version": after.first_version,
        "version": after.version,
        "trimmed": after.trimmed,
        "units": after.units,
        "remaining": after.remaining,
        "held": after.held,
        "sold": after.sold,
        "fault": after.fault or None,
        "difference_count": after.difference_count,
        "differences": after.differences,
        "repaired": before.differences if before is not after else [],
    }


def _show(before: Report, after: Report) -> None:
    name = printable(after.product_id)
    if before is not after:
        _show_differences(name, before)
        mended = before.difference_count - after.difference_count
        click.echo(f"✓ {name}: {mended} mended, as the ledger says")
    if after.fault:
        click.echo(f"✗ {name}: its ledger {after.fault}")
    if after.difference_count:
        _show_differences(name, after)
    elif not after.fault:
        click.echo(f"✓ {name}: {_told(after)}")


def _told(report: Report) -> str:
    if not report.first_version:
        return f"{report.remaining} left, set by hand; no ledger yet, nothing to compare"
    sums = f"{report.units} units = {report.remaining} left + {report.held} held + {report.sold} sold"
    if report.trimmed:
        return f"{sums}; its ledger begins at version {report.first_version}"
    if report.first_version > report.version:
        return f"{sums}; all up to version {report.version} as the database knows it"
    return f"{sums}; versions {report.first_version} to {report.version}"


def _show_differences(name: str, report: Report) -> None:
    count = report.difference_count
    click.echo(f"✗ {name}: {count} difference{'s' * (count != 1)}")
    rows = [
        (f"  {printable(row.what)}", printable(row.found), printable(row.expected))
        for row in report.differences[:_SHOWN_COUNT]
    ]
    print_table(("  what", "is", "should be"), rows)
    if count > _SHOWN_COUNT:
        click.echo(f"  and {count - _SHOWN_COUNT} more")
