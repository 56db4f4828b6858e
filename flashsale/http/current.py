"""`/checkout`, `/purchase` and `/stats`: the current recurring sale, in the words of those who used it before."""

from zlib import crc32

from msgspec import Struct

from flashsale.domain.answers import (
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    UNKNOWN,
    Answer,
    Cancelled,
    Expired,
    Failed,
    Held,
    ItemTaken,
    ProductStatus,
    SoldOut,
    Success,
    Unknown,
)
from flashsale.domain.bounds import ITEMS_MAX
from flashsale.domain.checks import check
from flashsale.domain.ids import parse_order_id
from flashsale.domain.items import draw, make_item
from flashsale.domain.requests import Confirm, GetStatus, Reserve
from flashsale.domain.schedules import CurrentSale
from flashsale.http.asks import RefusedError, parameters, read_to_end
from flashsale.http.outcomes import refusal_of
from flashsale.http.products import idempotency_key
from flashsale.http.rates import ask
from flashsale.http.replies import Receive, Reply, Scope, json_reply
from flashsale.http.services import Services

CHECKED_OUT = "Checkout session created successfully"
PURCHASED = "Purchase completed successfully"
MISSING_PARAMETERS = "missing required parameters: user_id and id"
MISSING_CODE = "missing required parameter: code"
INVALID_ITEM = "invalid item id"
INVALID_CODE = "invalid or expired checkout code"
NO_SALE = "no active sale"
SOLD_OUT = "item sold out"
UNKNOWN_HOLD = "it is not known whether the item is held; a hold that nobody pays for ends by itself"
UNKNOWN_PURCHASE = "it is not known whether this was done; ask again with the same code"

LOTTERY_ODDS = 100
"""One purchase in so many is told the surprise."""
SURPRISE = "This was the 1 % lottery ticket: you have won the right to tell everybody."


class Told(Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of a checkout or a purchase."""

    success: bool
    message: str
    checkout_code: str = ""
    expires_at: int = 0
    """When the code ends, in Unix seconds by the store's clock."""
    purchase_id: str = ""
    surprise: str = ""


class _Numbers(Struct, frozen=True, gc=False):
    """All of them are text, which is how they were told before."""

    start_time: str
    end_time: str
    total_items: str
    items_sold: str
    current_inventory: str


class Stats(Struct, frozen=True, gc=False):
    """How far a sale is."""

    success: bool
    sale_id: str
    stats: _Numbers


class Item(Struct, frozen=True, gc=False):
    """What is sold under a number."""

    id: int
    name: str
    picture: str
    """Its URL."""


class Current:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def checkout(self, scope: Scope, receive: Receive) -> Reply:
        """Hold an item while its buyer pays."""
        await read_to_end(receive)
        given = parameters(scope)
        user_id, item = given.get("user_id", ""), given.get("id", "")
        if not user_id or not item:
            return _told(400, MISSING_PARAMETERS)
        sale = self._sale(given)
        if not _is_number(item):
            return _told(400, INVALID_ITEM)
        item_id = int(item) if sale.numbered else None
        request = Reserve(sale.product_id, user_id, request_id=idempotency_key(scope), item_id=item_id)
        wrong = check(request)
        if wrong:
            return refused(Failed(wrong))
        answer = await ask(self._services, scope, request)
        if isinstance(answer, Unknown) and request.request_id is None:
            return _UNKNOWN_HOLD
        if isinstance(answer, Held):
            return json_reply(
                200,
                Told(success=True, message=CHECKED_OUT, checkout_code=answer.code, expires_at=answer.expires_at),
            )
        return refused(answer)

    async def purchase(self, scope: Scope, receive: Receive) -> Reply:
        """Make the hold behind a code an order; asked again, the same one."""
        await read_to_end(receive)
        code = parameters(scope).get("code", "")
        if not code:
            return _told(400, MISSING_CODE)
        request = Confirm(code)
        answer = Failed(wrong) if (wrong := check(request)) else await ask(self._services, scope, request)
        if isinstance(answer, Unknown):
            return _UNKNOWN_PURCHASE
        if not isinstance(answer, Success):
            return refused(answer)
        purchase_id = make_purchase_id(answer.order_id)
        surprise = SURPRISE if self._services.lottery and crc32(purchase_id.encode()) % LOTTERY_ODDS == 0 else ""
        return json_reply(200, Told(success=True, message=PURCHASED, purchase_id=purchase_id, surprise=surprise))

    async def stats(self, scope: Scope, receive: Receive) -> Reply:
        """Tell how far the sale is."""
        sale = self._sale(parameters(scope))
        answer = await ask(self._services, scope, GetStatus(sale.product_id))
        if not isinstance(answer, ProductStatus):
            return refused(answer)
        units = answer.remaining_stock + answer.sold + answer.held
        numbers = _Numbers(*map(str, (sale.begins_at, sale.ends_at, units, answer.sold, answer.remaining_stock)))
        return json_reply(200, Stats(success=True, sale_id=sale.product_id, stats=numbers))

    async def item(self, scope: Scope, receive: Receive) -> Reply:
        """Tell what an item is."""
        sale, number = self._item(scope)
        name = make_item(sale.product_id, number).name
        return json_reply(200, Item(number, name, f"/items/{number}.svg"))

    async def picture(self, scope: Scope, receive: Receive) -> Reply:
        """Show it."""
        sale, number = self._item(scope)
        body = draw(make_item(sale.product_id, number)).encode()
        headers = [
            (b"content-type", b"image/svg+xml"),
            (b"content-length", b"%d" % len(body)),
            (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
        ]
        return Reply(200, headers, body)

    def _sale(self, given: dict[str, str]) -> CurrentSale:
        sale = self._services.current_sale(given.get("schedule"))
        if sale is None:
            raise RefusedError(_told(404, NO_SALE))
        return sale

    def _item(self, scope: Scope) -> tuple[CurrentSale, int]:
        sale = self._sale(parameters(scope))
        number = scope["path_params"]["number"]
        if not _is_number(number) or not 1 <= int(number) <= sale.item_count:
            raise RefusedError(_told(404, ITEM_NOT_FOUND))
        return sale, int(number)


def _is_number(text: str) -> bool:
    """Whether it may be the number of an item; what is longer than any is not even read."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(ITEMS_MAX))


def make_purchase_id(order_id: str) -> str:
    """Return the id of an order in the words of those who used it before: `purchase_a1b2c3d4e5f6g7h8`.

    Its 16 hex digits, or more, are epoch and version of the order, by which it is found in the table `orders`.
    """
    order = parse_order_id(order_id)
    assert order is not None
    return f"purchase_{order.epoch}{order.version:08x}"


def refused(answer: Answer) -> Reply:
    """Return an answer that fulfils nothing, in the words of these endpoints."""
    match answer:
        case SoldOut() | ItemTaken():
            return _told(409, SOLD_OUT)
        case Expired() | Cancelled():
            return _told(400, INVALID_CODE)
        case Failed(error) if error in _FAULTS:
            return _told(400, _FAULTS[error])
        case _:
            refusal = refusal_of(answer)
            return _told(refusal.status, refusal.words, retry_after_s=refusal.retry_after_s)


def _told(status: int, message: str, *, retry_after_s: float = 0) -> Reply:
    return json_reply(status, Told(success=False, message=message), retry_after_s=retry_after_s)


_UNKNOWN = refusal_of(UNKNOWN)
_UNKNOWN_HOLD = _told(_UNKNOWN.status, UNKNOWN_HOLD, retry_after_s=_UNKNOWN.retry_after_s)
_UNKNOWN_PURCHASE = _told(_UNKNOWN.status, UNKNOWN_PURCHASE, retry_after_s=_UNKNOWN.retry_after_s)
_FAULTS = {HOLD_NOT_FOUND: INVALID_CODE, ITEM_NOT_FOUND: INVALID_ITEM, "invalid item_id": INVALID_ITEM}
"""What a client got wrong, in its words."""
