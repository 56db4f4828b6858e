"""All routes of the HTTP door, as one ASGI application."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashsale.http.asks import GoneError, RefusedError
from flashsale.http.orders import Orders
from flashsale.http.replies import Receive, Reply, Scope, Send, problem
from flashsale.http.services import Services

Endpoint: TypeAlias = Callable[[Scope, Receive], Awaitable[Reply]]

_NOT_FOUND = problem(404, "not-found", "there is nothing at this URL")


class _Page:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._endpoint(scope, receive)
        except RefusedError as refused:
            reply = refused.reply
        except GoneError:
            return
        await reply.send(send)


class Site:
    """The application: what is asked most is found ahead of the router."""

    def __init__(self, services: Services) -> None:
        orders = Orders(services)
        hot: dict[tuple[str, str], Endpoint] = {("POST", "/api/purchase"): orders.purchase}
        self._hot = {where: _Page(endpoint) for where, endpoint in hot.items()}
        routes = [Route(path, page, methods=[method]) for (method, path), page in self._hot.items()]
        self._router = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        page = self._hot.get((scope["method"], scope["path"]))
        await (page or self._router)(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer what the router does not know."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        reply = problem(405, "method-not-allowed", "this URL takes another method")
    else:
        reply = _NOT_FOUND
    headers = {name.decode(): value.decode() for name, value in reply.headers} | dict(error.headers or {})
    return Response(reply.body, status_code=reply.status, headers=headers)
