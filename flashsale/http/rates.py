"""Who comes too often is answered before anybody is asked; what that is over HTTP is in the table of outcomes."""

from flashsale.domain.answers import Answer
from flashsale.domain.requests import BuyerRequest
from flashsale.gating import busy_for
from flashsale.http.asks import RefusedError, peer
from flashsale.http.outcomes import refusal_of
from flashsale.http.replies import Scope, problem
from flashsale.http.services import Services
from flashsale.limiting import OPERATIONS

_FORWARDED = b"x-forwarded-for"


async def ask(services: Services, scope: Scope, request: BuyerRequest) -> Answer:
    """Have a request decided, unless it comes too often: then the answer is BUSY, with the time to come again."""
    if services.gate is not None:
        wait_s = services.gate.wait_s(OPERATIONS[type(request)], _client_of(services, scope), request.user_id)
        if wait_s:
            busy = busy_for(wait_s)
            services.record([request], [busy])
            return busy
    return await services.ask(request)


def check_rate(services: Services, scope: Scope, operation: str, user_id: str = "") -> None:
    """Go on with what is no request to be decided, unless it comes too often.

    Args:
        services: of the server.
        scope: of the request.
        operation: one of flashsale.limiting.OPERATIONS.
        user_id: empty when it has none.

    Raises:
        RefusedError: it does; the answer is 429, and says when to come again.
    """
    if services.gate is None:
        return
    wait_s = services.gate.wait_s(operation, _client_of(services, scope), user_id)
    if wait_s:
        refusal = refusal_of(busy_for(wait_s))
        raise RefusedError(problem(refusal.status, refusal.kind, refusal.words, retry_after_s=refusal.retry_after_s))


def _client_of(services: Services, scope: Scope) -> str:
    """Return who asks, as the limits know it."""
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == _FORWARDED]
    return services.proxies.client_of(peer(scope), forwarded)
