"""All routes of the HTTP door, as one ASGI application."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flashsale import __version__
from flashsale.http.asks import GoneError, RefusedError
from flashsale.http.current import Current
from flashsale.http.events import Streams
from flashsale.http.following import Following
from flashsale.http.health import Health
from flashsale.http.identity import TOLD, Application, Teller
from flashsale.http.live import Live
from flashsale.http.openapi import make_document
from flashsale.http.operator import Operator
from flashsale.http.orders import Orders
from flashsale.http.page import WatchPage
from flashsale.http.products import Products
from flashsale.http.prometheus import Prometheus
from flashsale.http.replies import JSON, Receive, Reply, Scope, Send, problem
from flashsale.http.services import Services
from flashsale.http.session import answer

Endpoint: TypeAlias = Callable[[Scope, Receive], Awaitable[Reply]]

_NOT_FOUND = problem(404, "not-found", "there is nothing at this URL")
_NOT_ALLOWED = problem(405, "method-not-allowed", "this URL takes another method")
HOT = ("/api/purchase", "/checkout", "/purchase")
"""What a crowd asks, always by POST."""
_RAW = "/v1/"
"""Below it the path is matched as it was sent: an id may have a slash, which is percent-encoded."""


class _Page:
    """What answers at a URL, by method, as an ASGI application."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.methods = sorted(endpoints)
        self.respond: Callable[[int], None] = lambda status: None
        """Counts a reply by its status."""
        self._teller = Teller()
        self._endpoints = dict(endpoints)
        if "GET" in endpoints:
            self._endpoints["HEAD"] = endpoints["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._endpoints[scope["method"]](scope, receive)
        except RefusedError as refused:
            reply = refused.reply
        except GoneError:
            return
        if reply.status in TOLD:
            reply = self._teller.tell(scope, reply)
        self.respond(reply.status)
        await answer(reply, send)


class Site:
    """The application: what is asked most is found ahead of the router."""

    def __init__(self, services: Services) -> None:
        orders, current, products = Orders(services), Current(services), Products(services)
        health, operator = Health(services), Operator(services)
        streams = Streams(services.draining, respond=services.respond)
        following, metrics = Following(services), Prometheus(services.sampler)
        pages = {
            "/": _Page({"GET": WatchPage().read}),
            "/api/purchase": _Page({"POST": orders.purchase}),
            "/checkout": _Page({"POST": current.checkout}),
            "/purchase": _Page({"POST": current.purchase}),
            "/stats": _Page({"GET": current.stats}),
            "/items/{number}.svg": _Page({"GET": current.picture}),
            "/items/{number}": _Page({"GET": current.item}),
            "/v1/products/{product_id}": _Page({"GET": products.status}),
            "/v1/products/{product_id}/purchases": _Page({"POST": products.purchase}),
            "/v1/products/{product_id}/holds": _Page({"POST": products.hold}),
            "/v1/holds/{code}": _Page({"PATCH": products.extend, "DELETE": products.cancel}),
            "/v1/holds/{code}/confirm": _Page({"POST": products.confirm}),
            "/reset": _Page({"POST": operator.reset}),
            "/health": _Page({"GET": health.health}),
            "/livez": _Page({"GET": health.livez}),
            "/readyz": _Page({"GET": health.readyz}),
            "/openapi.json": _Page({"GET": _Fixed(make_document(__version__)).read}),
            "/metrics": _Page({"GET": metrics.read}),
        }
        for page in pages.values():
            page.respond = services.respond
        self._hot = {("POST", path): pages[path] for path in HOT}
        followed: dict[str, Application] = {
            "/live": Live(services.sampler, streams),
            "/stream": streams.endpoint(following.the_present),
            "/v1/products/{product_id}/events": streams.endpoint(following.every_change),
        }
        self._router = Starlette(
            routes=[
                *(Route(path, page, methods=page.methods) for path, page in pages.items()),
                *(Route(path, events, methods=["GET"]) for path, events in followed.items()),
            ],
            exception_handlers={HTTPException: self._refuse},
        )
        self._respond = services.respond
        self._router.router.redirect_slashes = False
        self.routes = self._router.routes
        """What the router knows."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request, once that is awaited."""
        page = self._hot.get((scope["method"], scope["path"]))
        if page is not None:
            return page(scope, receive, send)
        if scope["path"].startswith(_RAW):
            scope["path"] = scope["raw_path"].decode("ascii")
        return self._router(scope, receive, send)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Answer what the router does not know."""
        assert isinstance(error, HTTPException)
        reply = _NOT_ALLOWED if error.status_code == _NOT_ALLOWED.status else _NOT_FOUND
        self._respond(reply.status)
        headers = {name.decode(): value.decode() for name, value in reply.headers} | dict(error.headers or {})
        return Response(reply.body, status_code=reply.status, headers=headers)


class _Fixed:
    """JSON that is always the same."""

    def __init__(self, body: bytes) -> None:
        self._reply = Reply(200, [JSON, (b"content-length", b"%d" % len(body))], body)

    async def read(self, scope: Scope, receive: Receive) -> Reply:
        """Return it."""
        return self._reply
