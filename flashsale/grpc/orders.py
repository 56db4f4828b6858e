"""The calls of OrderService that are answered once: bytes of a request in, bytes of a response out.

The handlers take and return bytes, so that one of them alone decides what an unreadable message is told. Nothing but
parsing, asking and serializing is done for a call: each is one coroutine.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from flashsale.domain.answers import Answer, Cancelled, Held, ProductStatus, Success
from flashsale.domain.checks import check, check_purchase
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Request, Reserve
from flashsale.grpc.defects import tell_defect
from flashsale.grpc.orders_pb2 import (
    CancelRequest,
    CancelResponse,
    ConfirmRequest,
    ExtendRequest,
    HoldResponse,
    PurchaseRequest,
    PurchaseResponse,
    ReserveRequest,
    StatusRequest,
    StatusResponse,
)
from flashsale.grpc.outcomes import (
    DUPLICATE,
    FIRST_KEY,
    UNREADABLE,
    bad_request,
    refuse,
    refuse_with,
)
from flashsale.grpc.rates import Rates

PLACED = "order placed successfully"
MISSING_FIELDS = "missing required fields"

Ask: TypeAlias = Callable[[Request], Awaitable[Answer]]
Handler: TypeAlias = Callable[[bytes, Any], Awaitable[bytes]]
"""Takes the bytes of a request and the call's context, returns the bytes of the response."""

_Asked = TypeVar("_Asked", bound=Message)


def make_handlers(ask: Ask, rates: Rates | None = None) -> dict[str, Handler]:
    """Return the handlers of the calls, by name.

    Args:
        ask: has a request decided.
        rates: refuses who comes too often; without it nobody is asked who he is.
    """
    return {
        "Purchase": _make(ask, rates, PurchaseRequest, _read_purchase, _write_purchase),
        "Reserve": _make(ask, rates, ReserveRequest, _read_reserve, _write_hold),
        "Confirm": _make(ask, rates, ConfirmRequest, _read_confirm, _write_confirmed),
        "Cancel": _make(ask, rates, CancelRequest, _read_cancel, _write_cancelled),
        "Extend": _make(ask, rates, ExtendRequest, _read_extend, _write_hold),
        "Status": _make(ask, rates, StatusRequest, _read_status, _write_status),
    }


def _make(
    ask: Ask,
    rates: Rates | None,
    message: type[_Asked],
    read: Callable[[_Asked], BuyerRequest | str],
    write: Callable[[Answer, Any], bytes],
) -> Handler:
    """Return the handler of a call.

    Args:
        ask: has a request decided.
        rates: refuses who comes too often.
        message: what it takes.
        read: makes a request of that, or the error text that answers it.
        write: makes a response of the answer, or has the call, given by its context, end with another status.
    """
    parse = message.FromString

    async def handle(raw: bytes, context: Any) -> bytes:
        try:
            request = read(parse(raw))
            if isinstance(request, str):
                return refuse(context, bad_request(request))
            busy = rates.refuse(request, context) if rates is not None else None
            return write(busy or await ask(request), context)
        except DecodeError:
            return refuse(context, UNREADABLE)
        except Exception:  # noqa: BLE001 - a bug, which is logged there
            return tell_defect(context, message.__name__)

    return handle


# What is asked


def _read_purchase(asked: PurchaseRequest) -> Purchase | str:
    request_id, user_id, product_id, quantity = asked.request_id, asked.user_id, asked.item_id, asked.quantity
    if not (request_id and user_id and product_id) or quantity <= 0:
        return MISSING_FIELDS
    request = Purchase(product_id, user_id, quantity, request_id, asked.item_number or None)
    return check_purchase(request) or request


def _read_reserve(asked: ReserveRequest) -> Reserve | str:
    request = Reserve(
        product_id=asked.product_id,
        user_id=asked.user_id,
        quantity=asked.quantity,
        request_id=asked.request_id or None,
        item_id=asked.item_number or None,
        hold_seconds=asked.hold_seconds or None,
    )
    return check_purchase(request) or request


def _read_confirm(asked: ConfirmRequest) -> Confirm | str:
    request = Confirm(asked.code, asked.request_id or None)
    return check(request) or request


def _read_cancel(asked: CancelRequest) -> Cancel | str:
    request = Cancel(asked.code)
    return check(request) or request


def _read_extend(asked: ExtendRequest) -> Extend | str:
    request = Extend(asked.code, asked.hold_seconds or None)
    return check(request) or request


def _read_status(asked: StatusRequest) -> GetStatus | str:
    request = GetStatus(asked.product_id)
    return check(request) or request


# What is answered


def _write_purchase(answer: Answer, context: Any) -> bytes:
    if not isinstance(answer, Success):
        return refuse_with(context, answer)
    order = _order(answer, duplicate=False)
    if answer.duplicate:
        return refuse(context, DUPLICATE, (*DUPLICATE.as_metadata(), (FIRST_KEY, order)))
    return order


def _write_confirmed(answer: Answer, context: Any) -> bytes:
    if not isinstance(answer, Success):
        return refuse_with(context, answer)
    return _order(answer, duplicate=answer.duplicate)


def _order(answer: Success, *, duplicate: bool) -> bytes:
    response = PurchaseResponse(
        success=True,
        message=PLACED,
        order_id=answer.order_id,
        remaining=answer.remaining_stock,
        version=answer.version,
        item_number=answer.item_id or 0,
        duplicate=duplicate,
    )
    return as_bytes(response)


def _write_hold(answer: Answer, context: Any) -> bytes:
    if not isinstance(answer, Held):
        return refuse_with(context, answer)
    response = HoldResponse(
        code=answer.code,
        expires_at=answer.expires_at,
        remaining=answer.remaining_stock,
        version=answer.version,
        item_number=answer.item_id or 0,
        duplicate=answer.duplicate,
    )
    return as_bytes(response)


def _write_cancelled(answer: Answer, context: Any) -> bytes:
    if not isinstance(answer, Cancelled):
        return refuse_with(context, answer)
    return as_bytes(
        CancelResponse(remaining=answer.remaining_stock, version=answer.version, duplicate=answer.duplicate)
    )


def _write_status(answer: Answer, context: Any) -> bytes:
    if not isinstance(answer, ProductStatus):
        return refuse_with(context, answer)
    response = StatusResponse(
        remaining=answer.remaining_stock,
        sold=answer.sold,
        held=answer.held,
        state=answer.state,
        version=answer.version,
    )
    return as_bytes(response)


def as_bytes(message: Message) -> bytes:
    """Return a message as it is sent."""
    raw: bytes = message.SerializeToString()
    return raw
