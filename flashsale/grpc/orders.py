"""The calls of OrderService that are answered once: bytes of a request in, bytes of a response out.

The handlers read and return bytes, so that one of them alone decides what an unreadable message is told. Nothing but
parsing, asking and serializing is done for a call: each is one coroutine.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from msgspec import Struct

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
    Refusal,
    bad_request,
    refuse,
    refuse_with,
)
from flashsale.grpc.rates import Rates
from flashsale.grpc.receiving import receive

PLACED = "order placed successfully"
MISSING_FIELDS = "missing required fields"

Ask: TypeAlias = Callable[[Request], Awaitable[Answer]]
Handler: TypeAlias = Callable[[Any, Any], Awaitable[bytes]]
"""Takes the stream of requests, which it leaves alone, and the call's context; returns the bytes of the response."""

_Asked = TypeVar("_Asked", bound=Message)


class Means(Struct, frozen=True):
    """What the handlers work with."""

    ask: Ask
    """Has a request decided."""
    frame_timeout_s: float
    """For a message to come."""
    rates: Rates | None = None
    """Refuses who comes too often; without it nobody is asked who he is."""


def make_handlers(means: Means) -> dict[str, Handler]:
    """Return the handlers of the calls, by name."""
    return {
        "Purchase": _make(means, PurchaseRequest, _read_purchase, _write_purchase),
        "Reserve": _make(means, ReserveRequest, _read_reserve, _write_hold),
        "Confirm": _make(means, ConfirmRequest, _read_confirm, _write_confirmed),
        "Cancel": _make(means, CancelRequest, _read_cancel, _write_cancelled),
        "Extend": _make(means, ExtendRequest, _read_extend, _write_hold),
        "Status": _make(means, StatusRequest, _read_status, _write_status),
    }


def _make(
    means: Means,
    message: type[_Asked],
    read: Callable[[_Asked], BuyerRequest | str],
    write: Callable[[Answer, Any], bytes],
) -> Handler:
    """Return the handler of a call.

    Args:
        means: what it works with.
        message: what it takes.
        read: makes a request of that, or the error text that answers it.
        write: makes a response of the answer, or has the call, given by its context, end with another status.
    """
    parse, ask, rates, timeout_s = message.FromString, means.ask, means.rates, means.frame_timeout_s

    async def handle(stream: Any, context: Any) -> bytes:
        try:
            raw = await receive(context, timeout_s)
            if isinstance(raw, Refusal):
                return refuse(context, raw)
            request = read(parse(raw))
            if isinstance(request, str):
                return refuse(context, bad_request(request))
            busy = rates.refuse(request, context) if rates is not None else None
            return write(busy or await ask(request), context)
        except DecodeError:
            return refuse(context, UNREADABLE)
        except grpc.aio.BaseError:
            raise  # the client has gone: gRPC knows what to do
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
