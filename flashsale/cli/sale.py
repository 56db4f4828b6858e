"""The commands that change a sale."""

import sys
from collections.abc import Awaitable, Callable
from itertools import takewhile
from typing import Any

import click

from flashsale import backends
from flashsale.cli.options import (
    DURATION,
    MOMENT,
    ORDER_ID,
    STOCK,
    UNITS,
    database_option,
    json_option,
    print_json,
    printable,
    product_argument,
    store_options,
    with_admin,
)
from flashsale.config import Config
from flashsale.domain.answers import ORDER_NOT_FOUND, Changed
from flashsale.domain.requests import Close, OperatorRequest, Pause, Refund, Restock, Resume
from flashsale.domain.sale import PLAIN, Terms
from flashsale.errors import InvalidValueError, RefusedError
from flashsale.store.admin import Admin
from flashsale.terms import Moment, check_terms, show_duration, show_moment

discard_option = click.option(
    "--discard", is_flag=True, help="Also when some orders are not in the database yet; those are lost."
)


class _TakesNumbers(click.Command):
    """A command to which -1 is a wrong number, and not a wrong option."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        for word in takewhile(lambda word: word != "--", args):
            if word.startswith("-") and not word[1:2].isdigit() and word.partition("=")[0] not in known:
                raise click.NoSuchOption(word, ctx=ctx)
        return super().parse_args(ctx, args)


@click.command(cls=_TakesNumbers)
@product_argument
@click.argument("stock", metavar="UNITS", type=STOCK)
@click.option("--limit", metavar="N", type=UNITS, help="Units that one user may buy and hold together.")
@click.option("--opens-at", metavar="TIME", type=MOMENT, help="ISO 8601 with its zone, or from now on: +10m.")
@click.option("--closes-at", metavar="TIME", type=MOMENT, help="The first moment at which nothing is sold any more.")
@click.option("--hold", metavar="DURATION", type=DURATION, help="How long a hold lasts: 2s, 15m, 1h.  [default: 15m]")
@click.option("--hold-max", metavar="DURATION", type=DURATION, help="With all its extensions.  [default: 1h]")
@click.option("--numbered", is_flag=True, help="Each unit is an item of its own, with a number from 1.")
@click.option("--force", is_flag=True, help="Also when the product has buyers or holds; they are forgotten.")
@discard_option
@store_options
def init(config: Config, product_id: str, stock: int, *, force: bool, discard: bool, **options: Any) -> None:
    """Open a sale of UNITS units of product ID."""

    async def call(admin: Admin) -> Terms:
        now_s = await admin.now()
        terms = _make_terms(now_s, **options)
        try:
            check_terms(stock, terms, now_s)
        except InvalidValueError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None
        await admin.init(product_id, stock, terms, force=force, discard=discard)
        return terms

    terms = with_admin(config, call)
    click.echo(f"✓ Product '{product_id}' initialized with {stock} units")
    for line in _told_terms(terms):
        click.echo(f"  {line}")


def _make_terms(
    now_s: int,
    *,
    limit: int | None,
    opens_at: Moment | None,
    closes_at: Moment | None,
    hold: int | None,
    hold_max: int | None,
    numbered: bool,
) -> Terms:
    """Return the terms that were typed; what was not has its default, and a long hold stretches that of --hold-max."""
    hold_s = PLAIN.hold_s if hold is None else hold
    return Terms(
        limit=limit or 0,
        opens_at=opens_at.at(now_s) if opens_at else 0,
        closes_at=closes_at.at(now_s) if closes_at else 0,
        hold_s=hold_s,
        hold_total_s=max(hold_s, PLAIN.hold_total_s) if hold_max is None else hold_max,
        numbered=numbered,
    )


def _told_terms(terms: Terms) -> list[str]:
    """Return what is not as usual, a line each."""
    lines = []
    if terms.opens_at:
        lines.append(f"opens {show_moment(terms.opens_at)}")
    if terms.closes_at:
        lines.append(f"closes {show_moment(terms.closes_at)}")
    if terms.limit:
        lines.append(f"at most {terms.limit} for one user")
    if (terms.hold_s, terms.hold_total_s) != (PLAIN.hold_s, PLAIN.hold_total_s):
        lines.append(f"holds last {show_duration(terms.hold_s)}, extended {show_duration(terms.hold_total_s)} at most")
    if terms.numbered:
        lines.append("each unit has a number")
    return lines


@click.command(cls=_TakesNumbers)
@product_argument
@click.argument("quantity", metavar="UNITS", type=UNITS)
@json_option
@store_options
def restock(config: Config, product_id: str, quantity: int, *, as_json: bool) -> None:
    """Add UNITS units to the stock of product ID."""
    changed = _change(config, Restock(product_id, quantity), as_json=as_json)
    if changed:
        click.echo(f"✓ Product '{product_id}' restocked with {quantity} units, {changed.remaining_stock} left")


@click.command()
@click.argument("order_id", metavar="ORDER_ID", type=ORDER_ID)
@json_option
@database_option
@store_options
def refund(config: Config, order_id: str, *, as_json: bool) -> None:
    """Return the units of an order to stock, once."""

    async def call(admin: Admin) -> Changed:
        try:
            return await admin.change(Refund(order_id))
        except RefusedError as error:
            known = await _find_order(config, order_id) if str(error) == ORDER_NOT_FOUND else None
            if known is None:
                raise
            return await admin.change(Refund(order_id, known))

    changed = _change(config, Refund(order_id), call, as_json=as_json)
    if changed:
        done = "was refunded before" if changed.duplicate else "refunded"
        click.echo(f"✓ Order '{printable(order_id)}' {done}, {changed.remaining_stock} left")


async def _find_order(config: Config, order_id: str) -> tuple[str, int, int] | None:
    """Return user, units and item of an order of which the ledger does not tell any more."""
    from flashsale.orders.history import find_order  # takes longer to import than all else

    async with backends.open_history(config) as database:
        order = None if database is None else await find_order(database, order_id)
    return None if order is None else (order.user_id, order.quantity, order.item_id)


def _switch(name: str, request: Callable[[str], OperatorRequest], done: str, already: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @product_argument
    @json_option
    @store_options
    def command(config: Config, product_id: str, *, as_json: bool) -> None:
        changed = _change(config, request(product_id), as_json=as_json)
        if changed:
            click.echo(f"✓ Product '{product_id}' {already if changed.duplicate else done}")

    return command


pause = _switch(
    "pause", Pause, "paused", "is paused already", "Stop selling until `resume`; what is held may be confirmed."
)
resume = _switch("resume", Resume, "resumed", "is not paused", "Go on with a paused sale.")
close = _switch("close", Close, "closed", "is closed already", "End a sale for good; what is held may be confirmed.")


def _change(
    config: Config,
    request: OperatorRequest,
    call: Callable[[Admin], Awaitable[Changed]] | None = None,
    *,
    as_json: bool,
) -> Changed | None:
    """Have a request decided, by the call if there is one; None when the answer was printed as JSON."""
    try:
        changed: Changed = with_admin(config, call or (lambda admin: admin.change(request)))
    except RefusedError as error:
        if isinstance(request, Refund) and str(error) == ORDER_NOT_FOUND:
            raise RefusedError(f"Order '{printable(request.order_id)}' not found") from None
        raise RefusedError(f"Product '{printable(request.product_id)}' stays as it was: {error}") from None
    if not as_json:
        return changed
    print_json(
        {
            "product_id": request.product_id,
            "remaining_stock": changed.remaining_stock,
            "version": changed.version,
            "already": changed.duplicate,
        }
    )
    return None


@click.command()
@product_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@discard_option
@store_options
def reset(config: Config, product_id: str, *, yes: bool, discard: bool) -> None:
    """Delete a product with its buyers, holds and ledger."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete product '{product_id}' with its buyers, holds and ledger?", abort=True)
    with_admin(config, lambda admin: admin.reset(product_id, discard=discard))
    click.echo(f"✓ Product '{product_id}' reset (deleted)")
