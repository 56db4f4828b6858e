"""Which request is which: each has an id that its lines in the log bear, and that its client is told."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Container
from typing import TypeAlias

from flashsale import logs
from flashsale.http.asks import peer
from flashsale.http.replies import Receive, Scope, Send

Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = b"x-request-id"
LINE_COUNT_MAX = 10
"""Lines in one second about answers that are worth one: in a crowd all fail alike."""

_REFUSED = frozenset({401, 403})
"""Of whoever took himself for the operator."""

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:=/+-]{1,64}")
_FRESH_SIZE = 12  # bytes
_SECRET_PATH = "/v1/holds/"  # noqa: S105 - what is below it is a hold's code
_log = logging.getLogger(__name__)


class Identified:
    """An application around another one, whose requests it gives ids.

    An id is the client's own `X-Request-Id` if that is short and plain, else a fresh one. Where a crowd buys, only who
    sent one is told it, and a fresh one is made only for a line in the log.
    """

    def __init__(self, application: Application, *, hot: Container[str] = ()) -> None:
        """Wrap it.

        Args:
            application: what answers.
            hot: the paths where a crowd buys.
        """
        self._application = application
        self._hot = hot
        self._lines = _FewLines()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; uvicorn runs each in a task, and so a context, of its own."""
        given = _given(scope)
        if given is None and scope["path"] not in self._hot:
            given = _fresh()
        if given is not None:
            logs.request_id.set(given)

        def sending(message: dict[str, object]) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                self._begin(scope, message, given)
            return send(message)

        try:
            await self._application(scope, receive, sending)  # type: ignore[arg-type]
        except Exception:
            if given is None:
                logs.request_id.set(_fresh())
            raise  # uvicorn logs it, in this context

    def _begin(self, scope: Scope, message: dict[str, object], given: str | None) -> None:
        """Tell the client the id; and the log, if the server failed or somebody is no operator."""
        status = message["status"]
        assert isinstance(status, int)
        if (status >= 500 or status in _REFUSED) and self._lines.room():
            if given is None:
                given = _fresh()
                logs.request_id.set(given)
            path = _SECRET_PATH + logs.HIDDEN if scope["path"].startswith(_SECRET_PATH) else scope["path"]
            _log.warning("%s %s of %s is answered with %d", scope["method"], path, peer(scope) or "?", status)
        if given is not None:
            message["headers"] = [*message.get("headers", ()), (HEADER, given.encode())]  # type: ignore[misc]


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == HEADER:
            return str(value.decode()) if _WELL_FORMED.fullmatch(value) else None
    return None


def _fresh() -> str:
    return secrets.token_hex(_FRESH_SIZE)


class _FewLines:
    """Lets through so many lines a second, and says how many there were besides."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0

    def room(self) -> bool:
        """Whether there is room for one more."""
        second = int(time.monotonic())
        if second != self._second:
            if self._count > LINE_COUNT_MAX:
                _log.warning("%d more requests were answered like that in that second", self._count - LINE_COUNT_MAX)
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= LINE_COUNT_MAX
