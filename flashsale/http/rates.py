"""Who comes too often is told 429, and when to come again."""

from flashsale.domain.requests import Request
from flashsale.gating import busy_for
from flashsale.http.asks import RefusedError, peer
from flashsale.http.replies import Scope, problem
from flashsale.http.services import Services

TOO_MANY_REQUESTS = "too many requests"

_FORWARDED = b"x-forwarded-for"


def client_of(services: Services, scope: Scope) -> str:
    """Return who asks, as the limits know it."""
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == _FORWARDED]
    return services.proxies.client_of(peer(scope), forwarded)


def wait_s(
    services: Services, scope: Scope, operation: str, user_id: str = "", request: Request | None = None
) -> float:
    """Return 0 to go on with a request; else it is refused, and worth another try in so many seconds.

    Args:
        services: of the server.
        scope: of the request.
        operation: one of flashsale.limiting.OPERATIONS.
        user_id: empty when it has none.
        request: what would have been asked, so that a refusal is recorded like any other.
    """
    if services.gate is None:
        return 0.0
    waits_s = services.gate.wait_s(operation, client_of(services, scope), user_id)
    if waits_s and request is not None and services.record is not None:
        services.record([request], [busy_for(waits_s)])
    return waits_s


def check_rate(
    services: Services, scope: Scope, operation: str, user_id: str = "", request: Request | None = None
) -> None:
    """Go on with a request, unless it comes too often; see `wait_s`.

    Raises:
        RefusedError: it does; the answer says when to come again.
    """
    waits_s = wait_s(services, scope, operation, user_id, request)
    if waits_s:
        raise RefusedError(problem(429, "rate-limited", TOO_MANY_REQUESTS, retry_after_s=waits_s))
