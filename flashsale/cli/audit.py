"""The command that compares sales with their ledgers."""

import click

from flashsale.cli.options import PRODUCT_ID, json_option, print_json, print_table, printable, store_options, with_admin
from flashsale.config import Config
from flashsale.errors import ProductNotFoundError, RefusedError
from flashsale.store.admin import Admin
from flashsale.store.report import Report

_SHOWN_COUNT = 20


@click.command()
@click.argument("product_ids", metavar="[ID]...", type=PRODUCT_ID, nargs=-1)
@click.option("--repair", is_flag=True, help="Set what differs to what the ledger says.")
@json_option
@store_options
def audit(config: Config, product_ids: tuple[str, ...], *, repair: bool, as_json: bool) -> None:
    """Compare products with their ledgers.

    Every counter and key is compared, of all products unless IDs are given; the sales may go on meanwhile. The exit
    code is 1 when something differs.
    """

    async def call(admin: Admin) -> bool:
        ok, rows = True, []
        for product_id in product_ids or await admin.audited_products():
            try:
                before, after = await admin.repair(product_id) if repair else [await admin.audit(product_id)] * 2
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

    if not with_admin(config, call):
        raise SystemExit(1)


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
