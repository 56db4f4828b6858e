"""Who comes too often is answered before anybody is asked; what that is over HTTP is in the table of outcomes."""

from collections.abc import Awaitable

from flashsale.domain.answers import Answer, Busy
from flashsale.domain.requests import BuyerRequest, Subscribe
from flashsale.gating import refuse
from flashsale.http.asks import RefusedError, headers, peer
from flashsale.http.outcomes import problem_of
from flashsale.http.replies import Scope
from flashsale.http.services import Services

_FORWARDED = b"x-forwarded-for"


def ask(services: Services, scope: Scope, request: BuyerRequest) -> Awaitable[Answer]:
    """Have a request decided, unless it comes too often: then the answer is BUSY, with the time to come again."""
    busy = _refuse(services, scope, request)
    return services.ask(request) if busy is None else _at_once(busy)


async def _at_once(answer: Answer) -> Answer:
    return answer


def check_rate(services: Services, scope: Scope, request: BuyerRequest | Subscribe) -> None:
    """Go on with a request, unless it comes too often.

    Raises:
        RefusedError: it does; the answer is a problem with 429, and says when to come again.
    """
    busy = _refuse(services, scope, request)
    if busy is not None:
        raise RefusedError(problem_of(busy))


def _refuse(services: Services, scope: Scope, request: BuyerRequest | Subscribe) -> Busy | None:
    if services.gate is None:
        return None
    client = services.proxies.client_of(peer(scope), headers(scope, _FORWARDED))
    return refuse(request, client, services.gate, services.record)
