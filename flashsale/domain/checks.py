"""What every door asks of a request before it is submitted, whatever it was written in."""

from flashsale.domain.answers import HOLD_NOT_FOUND, PRODUCT_NOT_FOUND
from flashsale.domain.bounds import (
    HOLD_MAX_S,
    ID_SIZE_MAX,
    ITEMS_MAX,
    QUANTITY_MAX,
    REQUEST_ID_SIZE_MAX,
    USER_ID_SIZE_MAX,
)
from flashsale.domain.ids import TOKEN_LENGTH, token_of
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Reserve, Subscribe

MISSING_FIELD = "missing product_id or user_id"
MISSING_CODE = "missing code"

_NUL = "\0"
"""PostgreSQL takes no text with one: an order of such a user could never become a row."""


def check_purchase(request: Purchase | Reserve) -> str:
    """Return the error text that answers it; empty when nothing is wrong."""
    if not request.product_id or not request.user_id:
        return MISSING_FIELD
    if not _fits(request.user_id, USER_ID_SIZE_MAX) or _NUL in request.user_id:
        return "invalid user_id"
    if not 1 <= request.quantity <= QUANTITY_MAX:
        return "invalid quantity"
    if not _is_request_id(request.request_id):
        return "invalid request_id"
    if request.item_id is not None and not 1 <= request.item_id <= ITEMS_MAX:
        return "invalid item_id"
    if type(request) is Reserve and not _is_hold_time(request.hold_seconds):
        return "invalid hold_seconds"
    return "" if _fits(request.product_id, ID_SIZE_MAX) else PRODUCT_NOT_FOUND


def check(request: BuyerRequest | Subscribe) -> str:
    """Return the error text that answers it; empty when nothing is wrong."""
    match request:
        case Purchase() | Reserve():
            return check_purchase(request)
        case Confirm() | Cancel() | Extend():
            if not request.code:
                return MISSING_CODE
            if isinstance(request, Confirm) and not _is_request_id(request.request_id):
                return "invalid request_id"
            if isinstance(request, Extend) and not _is_hold_time(request.hold_seconds):
                return "invalid hold_seconds"
            product_id = request.product_id
            if len(token_of(request.code)) != TOKEN_LENGTH or not product_id or not _fits(product_id, ID_SIZE_MAX):
                return HOLD_NOT_FOUND
        case GetStatus() if not request.product_id:
            return MISSING_FIELD
        case Subscribe() if not request.product_id and request.after_version is not None:
            return "invalid after_version"
        case GetStatus() | Subscribe() if not _fits(request.product_id or "", ID_SIZE_MAX):
            return PRODUCT_NOT_FOUND  # no operator can have opened it, and nobody else is to keep its name
        case _:
            pass
    return ""


def _is_request_id(value: str | None) -> bool:
    return value is None or (value != "" and _fits(value, REQUEST_ID_SIZE_MAX) and _NUL not in value)


def _is_hold_time(value: int | None) -> bool:
    return value is None or 1 <= value <= HOLD_MAX_S


def _fits(value: str, size_max: int) -> bool:
    return len(value) <= size_max and (value.isascii() or len(value.encode()) <= size_max)
