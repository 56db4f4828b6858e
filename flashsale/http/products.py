"""`/v1`: the whole of what a buyer may ask, as resources (README, "HTTP"); answers are those of protocol.md."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from flashsale.domain.answers import (
    Answer,
    Cancelled,
    Failed,
    Held,
    ProductStatus,
    Success,
)
from flashsale.domain.bounds import REQUEST_ID_SIZE_MAX, USER_ID_SIZE_MAX, HoldSeconds, ItemId, Quantity
from flashsale.domain.checks import check
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Reserve
from flashsale.http.asks import RefusedError, decode, headers, read_body, read_to_end, segment
from flashsale.http.outcomes import problem_of
from flashsale.http.rates import ask
from flashsale.http.replies import Headers, Receive, Reply, Scope, json_reply, problem
from flashsale.http.services import Services

REPLAYED: Headers = [(b"idempotency-replayed", b"true")]
"""Of an answer that was given before."""


class PurchaseBody(Struct, frozen=True, gc=False):
    """Who buys how much."""

    user_id: Annotated[str, Meta(min_length=1, max_length=USER_ID_SIZE_MAX)]
    quantity: Quantity = 1
    item_id: ItemId | None = None


class HoldBody(PurchaseBody, frozen=True, gc=False):
    """Who holds how much for how long."""

    hold_seconds: HoldSeconds | None = None


class ExtendBody(Struct, frozen=True, gc=False):
    """For how much longer."""

    hold_seconds: HoldSeconds | None = None


_purchase = msgspec.json.Decoder(PurchaseBody)
_hold = msgspec.json.Decoder(HoldBody)
_extend = msgspec.json.Decoder(ExtendBody)


class Products:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def purchase(self, scope: Scope, receive: Receive) -> Reply:
        """Buy at once."""
        body = decode(_purchase, await read_body(scope, receive))
        product_id, key = _segment_of(scope, "product_id"), idempotency_key(scope)
        return await self._ask(scope, Purchase(product_id, body.user_id, body.quantity, key, body.item_id), 201)

    async def hold(self, scope: Scope, receive: Receive) -> Reply:
        """Take units out of stock for a while."""
        body = decode(_hold, await read_body(scope, receive))
        product_id, key = _segment_of(scope, "product_id"), idempotency_key(scope)
        request = Reserve(product_id, body.user_id, body.quantity, key, body.item_id, body.hold_seconds)
        return await self._ask(scope, request, 201)

    async def status(self, scope: Scope, receive: Receive) -> Reply:
        """Tell what is left, sold and held."""
        return await self._ask(scope, GetStatus(_segment_of(scope, "product_id")), 200)

    async def confirm(self, scope: Scope, receive: Receive) -> Reply:
        """Buy what is held."""
        await read_body(scope, receive)
        return await self._ask(scope, Confirm(_segment_of(scope, "code"), idempotency_key(scope)), 200)

    async def extend(self, scope: Scope, receive: Receive) -> Reply:
        """Hold on."""
        body = await read_body(scope, receive)
        seconds = decode(_extend, body).hold_seconds if body else None
        return await self._ask(scope, Extend(_segment_of(scope, "code"), seconds), 200)

    async def cancel(self, scope: Scope, receive: Receive) -> Reply:
        """Give back what is held."""
        await read_to_end(receive)
        return await self._ask(scope, Cancel(_segment_of(scope, "code")), 200)

    async def _ask(self, scope: Scope, request: BuyerRequest, status: int) -> Reply:
        wrong = check(request)
        answer = Failed(wrong) if wrong else await ask(self._services, scope, request)
        return answered(request, answer, status)


def answered(request: BuyerRequest, answer: Answer, status: int) -> Reply:
    """Return an answer over HTTP: as it is when it fulfils the request, as a problem when it does not."""
    match answer:
        case Success() | Held() | ProductStatus():
            replayed = isinstance(answer, Success | Held) and answer.duplicate
            return json_reply(status, answer, headers=REPLAYED if replayed else None)
        case Cancelled() if isinstance(request, Cancel):
            return json_reply(status, answer)
        case _:
            return problem_of(answer)


def idempotency_key(scope: Scope) -> str | None:
    """Return the request id that the header Idempotency-Key gives, in quotes or not; None when there is none.

    Raises:
        RefusedError: it is empty, too long or no ASCII, or there are two.
    """
    values = headers(scope, b"idempotency-key")
    if not values:
        return None
    value = values[0] if len(values) == 1 else ""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if not 1 <= len(value) <= REQUEST_ID_SIZE_MAX or not value.isascii() or not value.isprintable():
        raise RefusedError(problem(400, "invalid-field", "invalid Idempotency-Key", more={"field": "Idempotency-Key"}))
    return value


def _segment_of(scope: Scope, name: str) -> str:
    return segment(scope["path_params"][name])
