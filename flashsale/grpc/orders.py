"""The calls of OrderService that are answered once: bytes of a request in, bytes of a response out.

The handlers take and return bytes, so that one of them alone decides what an unreadable message is told. Nothing but
parsing, asking and serializing is done for a call: each is one coroutine.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from flashsale.domain.answers import Answer, Cancelled, Failed, Held, ProductStatus, Success
from flashsale.domain.checks import check, check_purchase
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Request, Reserve
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
    DEFECT,
    DUPLICATE,
    FIRST_KEY,
    UNREADABLE,
    bad_request,
    refuse,
    refuse_with,
)

PLACED = "order placed successfully"
MISSING_FIELDS = "missing required fields"

Ask: TypeAlias = Callable[[Request], Awaitable[Answer]]
Handler: TypeAlias = Callable[[bytes, Any], Awaitable[bytes]]
"""Takes the bytes of a request and the call's context, returns the bytes of the response."""

_log = logging.getLogger(__name__)


def make_purchase(ask: Ask) -> Handler:
    """Return the handler of Purchase; `ask` has a request decided."""
    parse = PurchaseRequest.FromString

    async def purchase(raw: bytes, context: Any) -> bytes:
        try:
            asked = parse(raw)
        except DecodeError:
            return refuse(context, UNREADABLE)
        request_id, user_id, product_id = asked.request_id, asked.user_id, asked.item_id
        if not (request_id and user_id and product_id) or asked.quantity <= 0:
            return refuse(context, bad_request(MISSING_FIELDS))
        request = Purchase(product_id, user_id, asked.quantity, request_id, asked.item_number or None)
        wrong = check_purchase(request)
        if wrong:
            return refuse(context, bad_request(wrong))
        answer = await ask(request)
        if not isinstance(answer, Success):
            return refuse_with(context, answer)
        if answer.duplicate:
            first = _order(answer, duplicate=False)
            return refuse(context, DUPLICATE, (*DUPLICATE.as_metadata(), (FIRST_KEY, first)))
        return _order(answer, duplicate=False)

    return _guarded(purchase)


def make_others(ask: Ask) -> dict[str, Handler]:
    """Return the handlers of the other calls, by name."""
    return {
        "Reserve": _make(ask, ReserveRequest, _read_reserve, Held, _hold),
        "Confirm": _make(ask, ConfirmRequest, _read_confirm, Success, _confirmed),
        "Cancel": _make(ask, CancelRequest, _read_cancel, Cancelled, _cancelled),
        "Extend": _make(ask, ExtendRequest, _read_extend, Held, _hold),
        "Status": _make(ask, StatusRequest, _read_status, ProductStatus, _status),
    }


_Asked = TypeVar("_Asked", bound=Message)
_Wanted = TypeVar("_Wanted", bound=Answer)


def _make(
    ask: Ask,
    message: type[_Asked],
    read: Callable[[_Asked], BuyerRequest],
    wanted: type[_Wanted],
    write: Callable[[_Wanted], bytes],
) -> Handler:
    """Return the handler of a call.

    Args:
        ask: has a request decided.
        message: what it takes.
        read: makes a request of that.
        wanted: the answer that fulfils it.
        write: makes a response of that.
    """

    async def handle(raw: bytes, context: Any) -> bytes:
        try:
            request = read(message.FromString(raw))
        except DecodeError:
            return refuse(context, UNREADABLE)
        wrong = check(request)
        answer = Failed(wrong) if wrong else await ask(request)
        return write(answer) if isinstance(answer, wanted) else refuse_with(context, answer)

    return _guarded(handle)


def _guarded(handler: Handler) -> Handler:
    """Return a handler that answers also when it meets a bug; gRPC would tell the client what it was."""

    async def guarded(raw: bytes, context: Any) -> bytes:
        try:
            return await handler(raw, context)
        except Exception:  # noqa: BLE001 - a bug, met with the safe answer
            _log.exception("a call failed")
            return refuse(context, DEFECT)

    return guarded


# What is asked


def _read_reserve(asked: ReserveRequest) -> Reserve:
    return Reserve(
        product_id=asked.product_id,
        user_id=asked.user_id,
        quantity=asked.quantity,
        request_id=asked.request_id or None,
        item_id=asked.item_number or None,
        hold_seconds=asked.hold_seconds or None,
    )


def _read_confirm(asked: ConfirmRequest) -> Confirm:
    return Confirm(asked.code, asked.request_id or None)


def _read_cancel(asked: CancelRequest) -> Cancel:
    return Cancel(asked.code)


def _read_extend(asked: ExtendRequest) -> Extend:
    return Extend(asked.code, asked.hold_seconds or None)


def _read_status(asked: StatusRequest) -> GetStatus:
    return GetStatus(asked.product_id)


# What is answered


def as_bytes(message: Message) -> bytes:
    """Return a message as it is sent."""
    raw: bytes = message.SerializeToString()
    return raw


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


def _confirmed(answer: Success) -> bytes:
    return _order(answer, duplicate=answer.duplicate)


def _hold(answer: Held) -> bytes:
    response = HoldResponse(
        code=answer.code,
        expires_at=answer.expires_at,
        remaining=answer.remaining_stock,
        version=answer.version,
        item_number=answer.item_id or 0,
        duplicate=answer.duplicate,
    )
    return as_bytes(response)


def _cancelled(answer: Cancelled) -> bytes:
    response = CancelResponse(remaining=answer.remaining_stock, version=answer.version, duplicate=answer.duplicate)
    return as_bytes(response)


def _status(answer: ProductStatus) -> bytes:
    response = StatusResponse(
        remaining=answer.remaining_stock,
        sold=answer.sold,
        held=answer.held,
        state=answer.state,
        version=answer.version,
    )
    return as_bytes(response)
