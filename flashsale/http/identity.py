"""Which request is which: each has an id that its lines in the log bear, and that its client is told."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Container
from typing import TypeAlias

from flashsale import logs
from flashsale.http.asks import peer
from flashsale.http.replies import Receive, Reply, Scope, Send

Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = b"x-request-id"
LINE_COUNT_MAX = 10
"""Lines in one second about answers that are worth one: in a crowd all fail alike."""
TOLD = frozenset({401, 403, *range(500, 600)})
"""Statuses that are: the server's fault, and of whoever took himself for the operator."""

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:=/+-]{1,64}")
_FRESH_SIZE = 12  # bytes
_SECRET_PATH = "/v1/holds/"  # noqa: S105 - what is below it is a hold's code
_log = logging.getLogger(__name__)


class Identified:
    """An application around another one, whose requests it gives ids.

    An id is the client's own `X-Request-Id` if that is short and plain, else a fresh one. Where a crowd buys, a request
    without one is let through as it is: what else happens here costs a tenth of a purchase.
    """

    def __init__(self, application: Application, *, hot: Container[str] = ()) -> None:
        """Wrap it.

        Args:
            application: what answers.
            hot: the paths where a crowd buys.
        """
        self._application = application
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; uvicorn runs each in a task, and so a context, of its own."""
        given = None
        for name, value in scope["headers"]:
            if name == HEADER:
                given = value if _WELL_FORMED.fullmatch(value) else None
                break
        if given is None and scope["path"] in self._hot:
            try:
                await self._application(scope, receive, send)
            except Exception:
                _identify()
                raise  # uvicorn logs it, in this context
            return
        header = (HEADER, _identify(given))

        def sending(message: dict[str, object]) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]  # type: ignore[misc]
            return send(message)

        await self._application(scope, receive, sending)  # type: ignore[arg-type]


class Teller:
    """Writes lines about answers that are worth one."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0  # of such answers in it

    def tell(self, scope: Scope, reply: Reply) -> Reply:
        """Log an answer whose status is one of TOLD; return it, with the id that the line bears."""
        if not self._has_room():
            return reply
        if not logs.request_id.get():
            reply = Reply(reply.status, [*reply.headers, (HEADER, _identify())], reply.body)
        path = _SECRET_PATH + logs.HIDDEN if scope["path"].startswith(_SECRET_PATH) else scope["path"]
        _log.warning("%s %s from %s is answered with %d", scope["method"], path, peer(scope) or "?", reply.status)
        return reply

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._count > LINE_COUNT_MAX:
                _log.warning("%d more requests were answered like that in that second", self._count - LINE_COUNT_MAX)
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= LINE_COUNT_MAX


def _identify(given: bytes | None = None) -> bytes:
    """Have what is logged in this context bear an id, and return it: the given one, or a fresh one."""
    found = given or secrets.token_hex(_FRESH_SIZE).encode()
    logs.request_id.set(found.decode())
    return found
