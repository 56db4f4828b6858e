"""One HTTP client: uvicorn's protocol under this server's limits.

uvicorn parses, runs the application, keeps connections alive and minds back-pressure. What it does not know are the
limits of this server: how long a request may take to come, how large it may be, how many may wait on one connection,
and that whoever is refused shall still be able to read why.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, NoReturn, Protocol

from httptools import HttpParserError, HttpParserUpgrade
from msgspec import Struct
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from flashsale.http.replies import Reply, Send, problem
from flashsale.sockets import keep_alive, reset

HEAD_SIZE_MAX = 32 * 1024
"""Bytes of a request before its body."""
HEADER_COUNT_MAX = 100
URL_SIZE_MAX = 8 * 1024
"""Bytes; ids and codes of a few hundred bytes fit, also percent-encoded."""
SLICE_SIZE = 4 * 1024
"""Bytes parsed at once, behind which requests that came together wait for their turn."""

BAD_REQUEST = problem(400, "bad-request", "this is no request of HTTP/1.1")
BODY_TOO_LARGE = problem(413, "body-too-large", "the body is too large")
URL_TOO_LONG = problem(414, "url-too-long", "the URL is too long")
HEAD_TOO_LARGE = problem(431, "head-too-large", "the headers are too large or too many")
TOO_SLOW = problem(408, "too-slow", "the request took too long to come")
TOO_MANY = problem(503, "busy", "there is no room for another connection", retry_after_s=1)


_CLOSE = (b"connection", b"close")
_VERSIONS = frozenset({"1.0", "1.1"})


class Limits(Protocol):
    """What of the server's limits is about its HTTP clients; see flashsale.server.ServerLimits."""

    @property
    def payload_size_max(self) -> int: ...  # noqa: D102 - as there
    @property
    def frame_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def idle_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def write_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def linger_timeout_s(self) -> float: ...  # noqa: D102


class _RefusedError(Exception):
    """Ends the parsing of a request."""


class Places(Struct, frozen=True):
    """What a client takes up at the server."""

    admit: Callable[["HttpSession"], bool]
    """Whether there is room for one more."""
    forget: Callable[["HttpSession"], None]
    """He is gone."""
    respond: Callable[[int], None] = lambda status: None
    """Counts a response that no application has made."""
    draining: Callable[[], bool] = lambda: False
    """Whether the server is about to end: then each answer tells its client to come in anew, elsewhere."""


class HttpSession(HttpToolsProtocol):
    """One client, from its first byte; swept by the server once a second."""

    door = "http"

    def __init__(self, config: Config, state: ServerState, places: Places, *, body_size_max: int) -> None:
        """Serve a client.

        Args:
            config: uvicorn's; its application answers.
            state: uvicorn's, shared by all clients.
            places: the server's.
            body_size_max: in bytes.
        """
        super().__init__(config, state, {"watch": self.watch}, asyncio.get_running_loop())
        self.access_log = False
        self._places = places
        self._body_size_max = body_size_max
        self._head_size = 0  # of the request that is coming: 0 unless it comes in several slices
        self._body_size = 0
        self._incomplete = True  # a request is coming, or the first one is awaited
        self._body_left = 0  # bytes that are still to come of a body that the parser knows nothing of
        self._has_cycle = False  # the request that is coming is being answered, or waits for that
        self._answering: RequestResponseCycle | None = None  # the one whose turn it is
        self._unanswered_count = 0  # of those
        self._held = b""  # waits until what came before is answered
        self._refusal: Reply | None = None
        self._peer_ended = False  # the client has shut its side
        self._ended = False  # our side is shut; what still comes is thrown away
        self._moved = 0  # grows with whatever the client does in time
        self._swept = 0
        self._still_sweeps = 0
        self._blocked_sweeps = 0
        self._task: asyncio.Task[None] | None = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the client in, or say that there is no room."""
        super().connection_made(transport)
        if not self._places.admit(self):
            self._peer_ended = True  # nobody sweeps it, so it is closed without waiting for its side
            self._refuse(TOO_MANY)

    def data_received(self, data: bytes) -> None:
        """Take a segment: parse it, or as much as may be under way at once."""
        if self._ended or self._refusal is not None:
            return
        if self._held:
            self._held += data
            self.flow.pause_reading()  # uvicorn reads on whenever a request is taken up
            return
        self._parse(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has shut its side asks for nothing more than what came."""
        self._peer_ended = True
        if self._ended:
            self.transport.close()
        elif not self._held:
            self.finish()
        return True  # what is under way is answered first

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what was asked stands."""
        self._ended = True
        self._held = b""
        if self._answering is not None:  # uvicorn tells the one that came last
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        self._places.forget(self)

    # Called by the parser

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._incomplete, self._has_cycle = True, False
        self._moved += 1  # its own time begins, however long the client was idle
        self._head_size = self._body_size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Refuse one that is too long."""
        super().on_url(url)
        if len(self.url) > URL_SIZE_MAX:
            self._give_up(URL_TOO_LONG)

    def on_headers_complete(self) -> None:
        """Refuse what the parser lets pass, and a body that is announced to be too large."""
        if len(self.headers) > HEADER_COUNT_MAX or (self._head_size and self._known_head_size() > HEAD_SIZE_MAX):
            self._give_up(HEAD_TOO_LARGE)
        body_size = self._check_headers()
        if self.parser.should_upgrade():  # what follows is to the parser what is spoken next
            if body_size is None:
                self._give_up(BAD_REQUEST)
            self._body_left = body_size
        super().on_headers_complete()
        if self._places.draining():
            self.cycle.keep_alive = False
        self.headers = []  # trailers come later, and are no headers of the request
        self._has_cycle = True
        self._unanswered_count += 1

    def on_body(self, body: bytes) -> None:
        """Refuse one that turns out to be too large."""
        self._body_size += len(body)
        if self._body_size > self._body_size_max:
            self._give_up(BODY_TOO_LARGE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        if self._body_left:  # to the parser a request that would rather speak something else ends with its head
            return
        self._incomplete = False
        self._moved += 1
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the request, behind the answers to those before it, and end."""
        self._refusal = self._refusal or BAD_REQUEST
        if self._has_cycle and self._incomplete:
            if self.pipeline:
                self.pipeline.popleft()  # the one that came last
                self._unanswered_count -= 1
                self._incomplete = False
            else:
                self._refuse(None if self.cycle.response_started else self._refusal)
                return
        if not self._unanswered_count:
            self._refuse(self._refusal)

    def on_response_complete(self) -> None:
        """Go on with what waits; how long one may be idle is kept by the sweep: a timer for each answer costs more."""
        self._moved += 1
        self._unanswered_count -= 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            Context().run(self._start_asgi_task, *self.pipeline.pop())  # not in that of the one before it
        if not self.pipeline:
            self.flow.resume_reading()
        if self._refusal is not None and not self._unanswered_count:
            self._refuse(self._refusal)
        elif self._held and not self.pipeline:
            self.loop.call_soon(self._resume, context=Context())

    # Called by the server

    def finish(self) -> None:
        """End as soon as what was asked is answered."""
        if not self._unanswered_count:
            self._refuse(None)  # what is on its way here is thrown away, not reset: it was not executed
        elif self._refusal is None:  # which ends it too
            self.cycle.keep_alive = False

    def sweep(self, limits: Limits) -> None:
        """Look at the clock, once a second: part from a client that is past one of its deadlines."""
        self._still_sweeps = self._still_sweeps + 1 if self._moved == self._swept else 0
        self._swept = self._moved
        self._blocked_sweeps = self._blocked_sweeps + 1 if self.flow.write_paused else 0
        if self._ended:
            if self._still_sweeps > limits.linger_timeout_s:
                self.abort()
        elif self._blocked_sweeps > limits.write_timeout_s:
            self.abort()
        elif self._incomplete and self._refusal is None and self._still_sweeps > limits.frame_timeout_s:
            self._refusal = TOO_SLOW
            self.send_400_response("")
        elif not self._incomplete and not self._unanswered_count and self._still_sweeps > limits.idle_timeout_s:
            self.transport.close()

    def abort(self) -> None:
        """Drop the client now."""
        reset(self.transport)

    # Called by the application, which finds it in the state of a request

    def watch(self) -> None:
        """Have the kernel find out when a client is gone that only listens."""
        keep_alive(self.transport)

    # Within

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer a request; the task is kept here, as there is one at a time and the loop would let go of it."""
        self._answering = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))

    def _parse(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE_SIZE):
            if self.pipeline:
                self._held = data[start:]
                self.flow.pause_reading()
                return
            part, body_size = data[start : start + SLICE_SIZE], self._body_size
            self._feed(part)
            if self._ended or self._refusal is not None:
                return
            if self._incomplete and self._body_size == body_size:  # headers come, or what is behind the body
                self._head_size += len(part)
                if self._head_size > HEAD_SIZE_MAX:
                    self._refusal = HEAD_TOO_LARGE
                    self.send_400_response("")
                    return

    def _feed(self, data: bytes) -> None:
        """Parse. Whoever would rather speak something else than HTTP/1.1 is answered all the same."""
        while data:
            if self._body_left:
                body, data = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(body)
                self.on_body(body)
                if not self._body_left:
                    self.on_message_complete()
                continue
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as turned:
                data = data[turned.args[0] :]
            except HttpParserError:
                self.send_400_response("")
                return
            else:
                return

    def _check_headers(self) -> int | None:
        """Return the size of the body that the headers announce; None when its chunks will tell."""
        host_count = 0
        body_size: int | None = 0
        for name, value in self.headers:
            if name == b"host":
                host_count += 1
            elif name == b"content-length":
                body_size = int(value)
                if body_size > self._body_size_max:
                    self._give_up(BODY_TOO_LARGE)
            elif name == b"transfer-encoding":
                body_size = None
                if value.lower() != b"chunked":
                    self._give_up(BAD_REQUEST)
        version = self.parser.get_http_version()
        if version not in _VERSIONS or (host_count != 1 and version != "1.0"):
            self._give_up(BAD_REQUEST)
        return body_size

    def _known_head_size(self) -> int:
        return sum(len(name) + len(value) for name, value in self.headers)

    def _resume(self) -> None:
        data, self._held = self._held, b""
        if data and not self._ended:
            self._parse(data)
        if self._peer_ended and not self._held:
            self.finish()

    def _give_up(self, refusal: Reply) -> NoReturn:
        self._refusal = refusal
        raise _RefusedError

    def _refuse(self, reply: Reply | None) -> None:
        """Send a last answer, if there is one, shut our side, and let the client read it."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        self._still_sweeps = 0
        if self._unanswered_count:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if reply is not None:
            self._places.respond(reply.status)
            self.transport.write(reply.as_bytes(_CLOSE))
        self.flow.resume_reading()
        if self._peer_ended:
            self.transport.close()
        else:
            self.transport.write_eof()


async def answer(reply: Reply, send: Send) -> None:
    """Send a reply, whole when uvicorn is asked for it directly: it writes head and body apart, a system call each."""
    cycle = getattr(send, "__self__", None)
    if (
        isinstance(cycle, RequestResponseCycle)
        and cycle.keep_alive
        and not (
            cycle.response_started or cycle.disconnected or cycle.flow.write_paused or cycle.transport.is_closing()
        )
        and cycle.scope["method"] != "HEAD"
    ):
        cycle.transport.write(reply.as_bytes(*cycle.default_headers))
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
    else:
        await reply.send(send)


def make_config(application: Callable[..., Any]) -> Config:
    """Return uvicorn's settings for that ASGI application."""
    config = Config(
        application,
        http=HttpSession,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    return config
