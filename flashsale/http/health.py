"""Whether the server lives, and whether it can sell."""

from datetime import UTC, datetime

from msgspec import Struct

from flashsale.domain.answers import Busy, Unavailable, Unknown
from flashsale.domain.requests import GetStatus
from flashsale.http.replies import Receive, Reply, Scope, json_reply, problem
from flashsale.http.services import Services

_ANY_PRODUCT = GetStatus("flashsale-health")
"""There need be none of that name: to be told so, the store must have answered."""

_LIVES = json_reply(200, {"status": "ok"})
_DRAINING = problem(503, "draining", "the server is ending")
_NO_STORE = problem(503, "unavailable", "the store does not answer", retry_after_s=1)


class Healthy(Struct, frozen=True):
    """Whether the server can sell."""

    success: bool
    message: str
    timestamp: int
    """Unix seconds, by this server's clock."""


class Health:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def livez(self, scope: Scope, receive: Receive) -> Reply:
        """Answer: whoever can, lives."""
        return _LIVES

    async def readyz(self, scope: Scope, receive: Receive) -> Reply:
        """Tell whether buyers should be sent here."""
        if self._services.draining.is_set():
            return _DRAINING
        return _LIVES if await self._sells() else _NO_STORE

    async def health(self, scope: Scope, receive: Receive) -> Reply:
        """Tell the same in the words of those who asked here before."""
        healthy = not self._services.draining.is_set() and await self._sells()
        message = "Service is healthy" if healthy else "Service is unhealthy"
        return json_reply(200 if healthy else 503, Healthy(healthy, message, int(datetime.now(UTC).timestamp())))

    async def _sells(self) -> bool:
        return not isinstance(await self._services.ask(_ANY_PRODUCT), Unavailable | Unknown | Busy)
