"""`POST /api/purchase`: one call that buys, in the words of those who used it before (README, "HTTP")."""

import msgspec
from msgspec import Struct

from flashsale.domain.answers import Answer, Failed, SoldOut, Success, Unknown
from flashsale.domain.checks import check_purchase
from flashsale.domain.requests import Purchase
from flashsale.http.asks import RefusedError, decode, read_body
from flashsale.http.outcomes import refusal_of
from flashsale.http.rates import ask
from flashsale.http.replies import Receive, Reply, Scope, json_reply
from flashsale.http.services import Services

PLACED = "order placed successfully"
INVALID_BODY = "invalid request body"
MISSING_FIELDS = "missing required fields"
DUPLICATE = "duplicate request"
INTERNAL_ERROR = "internal error"


class Body(Struct, frozen=True, gc=False):
    """Who buys how much of what; `item_id` is the product."""

    request_id: str = ""
    user_id: str = ""
    item_id: str = ""
    quantity: int = 0


class Told(Struct, frozen=True, gc=False, omit_defaults=True):
    """What became of it."""

    success: bool
    message: str
    order_id: str = ""
    first: "Told | None" = None
    """What the request was answered when it came first."""


_decoder = msgspec.json.Decoder(Body)


class Orders:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def purchase(self, scope: Scope, receive: Receive) -> Reply:
        """Buy."""
        raw = await read_body(scope, receive)
        try:
            body = decode(_decoder, raw)
        except RefusedError:
            return _told(400, INVALID_BODY)
        if not (body.request_id and body.user_id and body.item_id) or body.quantity <= 0:
            return _told(400, MISSING_FIELDS)
        request = Purchase(body.item_id, body.user_id, body.quantity, body.request_id)
        wrong = check_purchase(request)
        if wrong:
            return answered(Failed(wrong))
        return answered(await ask(self._services, scope, request))


def answered(answer: Answer) -> Reply:
    """Return an answer in the words of this endpoint."""
    if isinstance(answer, Success):
        placed = Told(success=True, message=PLACED, order_id=answer.order_id)
        if answer.duplicate:
            return json_reply(409, Told(success=False, message=DUPLICATE, first=placed))
        return json_reply(200, placed)
    if isinstance(answer, SoldOut):
        return _SOLD_OUT
    if isinstance(answer, Unknown):
        return _told(500, INTERNAL_ERROR)
    refusal = refusal_of(answer)
    return _told(refusal.status, refusal.words, retry_after_s=refusal.retry_after_s)


def _told(status: int, message: str, *, retry_after_s: float = 0) -> Reply:
    return json_reply(status, Told(success=False, message=message), retry_after_s=retry_after_s)


_SOLD_OUT = _told(410, "sold out")
