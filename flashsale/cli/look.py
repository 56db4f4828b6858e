"""The commands that look at sales and change nothing."""

from collections.abc import AsyncIterator
from typing import TypeVar

import click

from flashsale.cli.options import (
    PRODUCT_ID,
    json_option,
    print_json,
    print_table,
    printable,
    product_argument,
    store_options,
    with_admin,
)
from flashsale.config import Config
from flashsale.domain.events import Event, PurchaseEvent, SoldOutEvent
from flashsale.domain.sale import Kind, Terms
from flashsale.store.admin import Admin
from flashsale.store.records import HoldRecord
from flashsale.terms import local_time, show_duration, show_moment

T = TypeVar("T")

_STATES = {"not_open": "not open yet"}


@click.command()
@product_argument
@json_option
@store_options
def status(config: Config, product_id: str, *, as_json: bool) -> None:
    """Show what is left, sold and held, and on what terms."""
    found = with_admin(config, lambda admin: admin.sale(product_id))
    terms = found.terms
    if as_json:
        print_json(
            {
                "product_id": product_id,
                "remaining_stock": found.remaining,
                "successful_buyers": found.buyer_count,
                "sold": found.sold,
                "held": found.held,
                "limit": terms.limit or None,
                "opens_at": terms.opens_at or None,
                "closes_at": terms.closes_at or None,
                "hold_s": terms.hold_s,
                "hold_max_s": terms.hold_total_s,
                "numbered": terms.numbered,
                "state": found.state,
                "version": found.version,
            }
        )
        return
    click.echo(f"\n=== Product Status: {product_id} ===")
    click.echo(f"Remaining Stock:   {found.remaining}")
    click.echo(f"Successful Buyers: {found.buyer_count}")
    click.echo(f"Sold:              {_units(found.sold)}")
    click.echo(f"Held:              {_units(found.held)}")
    click.echo(f"Limit:             {f'{_units(terms.limit)} per user' if terms.limit else 'none'}")
    click.echo(f"Window:            {_window(terms)}")
    click.echo(f"State:             {_STATES.get(found.state, found.state)}")
    click.echo(
        f"Holds:             {show_duration(terms.hold_s)}, extended {show_duration(terms.hold_total_s)} at most"
    )
    click.echo(f"Numbered:          {'yes' if terms.numbered else 'no'}")


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"


def _window(terms: Terms) -> str:
    begin = f"from {show_moment(terms.opens_at)}" if terms.opens_at else ""
    end = f"to {show_moment(terms.closes_at)}" if terms.closes_at else ""
    return f"{begin} {end}".strip() or "always"


@click.command()
@product_argument
@json_option
@store_options
def buyers(config: Config, product_id: str, *, as_json: bool) -> None:
    """List the buyers in order of purchase."""
    found = with_admin(config, lambda admin: _collect(admin.buyers(product_id)))
    if as_json:
        print_json({"product_id": product_id, "buyers": found})
        return
    click.echo(f"=== Buyers for {product_id} ({len(found)} total) ===")
    for number, buyer in enumerate(found, 1):
        click.echo(f"{number}. {printable(buyer)}")


@click.command()
@product_argument
@json_option
@store_options
def holds(config: Config, product_id: str, *, as_json: bool) -> None:
    """List the live holds by deadline. Whoever knows a code can confirm or cancel the hold."""

    async def call(admin: Admin) -> tuple[int, list[tuple[str, HoldRecord, int]]]:
        return await admin.now(), await _collect(admin.holds(product_id))

    now_s, found = with_admin(config, call)
    if as_json:
        rows = [
            {
                "code": code,
                "user_id": hold.user_id,
                "quantity": hold.quantity,
                "item_id": hold.item_id or None,
                "request_id": hold.request_id or None,
                "created_at": hold.created_at,
                "expires_at": expires_at,
                "version": hold.version,
            }
            for code, hold, expires_at in found
        ]
        print_json({"product_id": product_id, "holds": rows})
        return
    click.echo(f"=== Holds for {product_id} ({len(found)} total) ===")
    if found:
        head = ("code", "units", "item", "expires in", "at", "user")
        print_table(head, (_told_hold(*row, now_s) for row in found), right=frozenset({1, 2}))


def _told_hold(code: str, hold: HoldRecord, expires_at: int, now_s: int) -> tuple[str, ...]:
    left_s = expires_at - now_s
    at = local_time(expires_at)
    return (
        printable(code),
        str(hold.quantity),
        str(hold.item_id or "-"),
        show_duration(left_s) if left_s > 0 else "over",
        at.strftime("%H:%M:%S" if left_s < 86_400 else "%d %b %H:%M") if at else "-",
        printable(hold.user_id),
    )


@click.command()
@json_option
@store_options
def products(config: Config, *, as_json: bool) -> None:
    """List the products."""
    found = with_admin(config, lambda admin: admin.products())
    if as_json:
        print_json({"products": found})
        return
    for product_id in found:
        click.echo(printable(product_id))


@click.command()
@click.argument("product_id", metavar="[ID]", type=PRODUCT_ID, required=False)
@json_option
@store_options
def watch(config: Config, product_id: str | None, *, as_json: bool) -> None:
    """Follow the sales as they happen, until Ctrl-C."""

    async def follow(admin: Admin) -> None:
        started = False
        async for heard in admin.events():
            if heard is None:
                click.echo("the link broke; sales in between are not shown" if started else "watching…", err=True)
                started = True
                continue
            event, message = heard
            if product_id is None or event.product_id == product_id:
                click.echo(message.decode(errors="replace") if as_json else _told(event))

    try:
        with_admin(config, follow)
    except KeyboardInterrupt:
        return


async def _collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def _told(event: Event) -> str:
    at = local_time(event.timestamp)
    clock = at.strftime("%H:%M:%S") if at else "--:--:--"
    return f"{clock}  {printable(event.product_id)}  {_said(event)}"


def _said(event: Event) -> str:
    if isinstance(event, SoldOutEvent):
        return "sold out"
    buyer, quantity, left = printable(event.buyer), event.quantity, f"{event.remaining} left"
    if isinstance(event, PurchaseEvent):
        return f"{buyer} bought{f' {quantity}' if quantity > 1 else ''}, {left}"
    return {
        Kind.OPENED: f"opened, {left}",
        Kind.HELD: f"{buyer} holds {quantity}, {left}",
        Kind.EXTENDED: f"{buyer} holds {quantity} for longer, {left}",
        Kind.CANCELLED: f"{buyer} gave {quantity} back, {left}",
        Kind.EXPIRED: f"{buyer}'s hold of {quantity} expired, {left}",
        Kind.REFUNDED: f"{buyer} got a refund for {quantity}, {left}",
        Kind.RESTOCKED: f"restocked with {quantity}, {left}",
    }.get(event.event, str(event.event))
