"""The TCP door: sockets in, answers out. It moves bytes; connection.py understands them, the batcher decides.

Flow control goes both ways: a client that does not read its answers, or has too many requests under way, is not read
from; a subscriber that takes no more is not pushed to, and the feed goes on from there once it does. Every connection
has deadlines, kept by one sweep a second rather than a timer each.
"""

import asyncio
import logging
import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, cast

from msgspec import Struct

from flashsale.connection import IN_FLIGHT_DEFAULT, ServerConnection
from flashsale.domain.answers import BUSY, NOT_EXECUTED, Answer, Failed
from flashsale.domain.requests import Request, Subscribe
from flashsale.feed import Feed
from flashsale.gating import Record, guarded
from flashsale.limiting import Gate
from flashsale.peers import client_of
from flashsale.sockets import LISTEN_BACKLOG, connection_count_allowed, keep_alive, reset
from flashsale.subscriptions import Subscriber
from flashsale.wire import PAYLOAD_SIZE_DEFAULT, SUBSCRIBER_TOO_SLOW, ClientRequest, MessageType, encode_answer

SEGMENT_SIZE_MAX = 32 * 1024
"""Bytes read from a client at once: what it is sent for them may have to wait in memory, and so may they."""

UNSENT_SIZE_MAX = 16 * 1024
"""Bytes of answers that the kernel does not take before a client is no longer read from."""

_SWEEP_S = 1.0
_SWEEP_COUNT = 512  # sessions looked at before buyers have a turn: about a millisecond
_TOO_MANY = encode_answer(MessageType.NOTICE, BUSY)

_log = logging.getLogger(__name__)

Submit = Callable[[Request, "Session", int], None]

_METHOD_BYTES = range(ord("A"), ord("Z") + 1)
"""What a connection begins with that speaks HTTP: no message type of this protocol is a capital letter."""


class Visitor(Protocol):
    """A client as the server knows it, whatever it speaks."""

    door: str
    """Which of DOORS it came in by."""

    def sweep(self, limits: "ServerLimits", /) -> None:
        """Look at the clock: part from a client that is past one of its deadlines."""
        ...

    def finish(self) -> None:
        """End as soon as everything that was asked is answered."""
        ...

    def abort(self) -> None:
        """Drop the client now."""
        ...


class HttpVisitor(Visitor, Protocol):
    """The protocol of one that speaks HTTP."""

    def connection_made(self, transport: asyncio.Transport, /) -> None:
        """Take the client in."""
        ...

    def data_received(self, data: bytes, /) -> None:
        """Take a segment."""
        ...


MakeHttp: TypeAlias = Callable[["TcpServer"], HttpVisitor]


class ServerLimits(Struct, frozen=True, kw_only=True):
    """The bounds of the TCP door. Times are kept to within two seconds."""

    connection_count_max: int = 16_384
    """Connections of one worker; beyond it a client gets BUSY and is closed."""
    payload_size_max: int = PAYLOAD_SIZE_DEFAULT
    """Bytes in one frame's payload."""
    in_flight_count_max: int = IN_FLIGHT_DEFAULT
    """Unanswered requests of one connection before it is no longer read from."""
    frame_timeout_s: float = 10.0
    """From connecting to the first whole frame, and for any frame once begun."""
    idle_timeout_s: float = 300.0
    """Without a whole frame from the client and nothing to answer; a subscriber may be silent."""
    write_timeout_s: float = 10.0
    """A client that does not read its answers, or its events, is dropped after this."""
    linger_timeout_s: float = 2.0
    """After the last answer, for the client to take it and close."""


class Session(asyncio.BufferedProtocol):
    """One client: the shell around a ServerConnection, the sink of its answers, perhaps a subscriber."""

    __slots__ = (
        "_blocked_sweeps",
        "_connection",
        "_ended",
        "_finishing",
        "_fresh",
        "_listening",
        "_peer_ended",
        "_reading",
        "_resuming",
        "_server",
        "_still_sweeps",
        "_swept",
        "_transport",
        "answer",
        "client",
        "has_answered",
    )
    door = "tcp"

    def __init__(self, server: "TcpServer") -> None:
        limits = server.limits
        self._server = server
        self._connection = ServerConnection(
            payload_size_max=limits.payload_size_max, in_flight_count_max=limits.in_flight_count_max
        )
        self.answer: Callable[[int, Answer], None] = self._connection.answer
        self.has_answered: Callable[[int], bool] = self._connection.has_answered
        self._listening = False
        self.client = ""
        """Who it is, as the limits know it; empty when there are none."""
        self._transport: asyncio.Transport | None = None
        self._fresh = server.make_http is not None  # its first byte says what it speaks
        self._reading = True
        self._resuming = False  # requests that wait have their next turn soon
        self._finishing = False  # end as soon as everything is answered
        self._peer_ended = False  # the client has shut its side
        self._ended = False  # our side is shut; what still comes is thrown away
        self._swept = (0, False)  # frames received, and whether one was begun, at the last sweep
        self._still_sweeps = 0  # since that changed, or since our side was shut
        self._blocked_sweeps = -1  # since the client stopped taking answers; -1: it takes them

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the client in, or answer BUSY and close when there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNSENT_SIZE_MAX)
        if not self._server.admit(self):
            self._transport.write(_TOO_MANY)
            self._transport.close()
        elif self._server.is_gated:
            peer = self._transport.get_extra_info("peername")
            self.client = client_of(peer[0]) if peer else ""

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next segment is to be put: one place for all, as each is taken out at once."""
        return self._server.segment

    def buffer_updated(self, nbytes: int) -> None:
        """Take the segment out."""
        data = bytes(self._server.segment[:nbytes])
        if self._fresh:
            self._fresh = False
            if data[0] in _METHOD_BYTES:
                self._hand_over(data)
                return
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Hand a segment to the connection and its requests to the batcher."""
        if not self._ended:
            self._submit(self._connection.receive(data))
            self.flush()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open until its answers are out."""
        self._peer_ended = True
        self.finish()
        return not self._ended

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; answers that come later are dropped, their sales stand."""
        self._transport = None
        self._ended = True
        self._server.forget(self)
        if self._server.feed is not None:
            self._server.feed.forget(self)

    def pause_writing(self) -> None:
        """Stop reading from a client that does not take its answers."""
        self._blocked_sweeps = 0
        self._set_reading(reading=False)

    def resume_writing(self) -> None:
        """Read on: the client has caught up."""
        self._blocked_sweeps = -1
        self.flush()

    # Called by the batcher and the feed

    def flush(self) -> None:
        """Send the answers whose turn has come, then read on or end as the connection's state says."""
        transport, connection = self._transport, self._connection
        if self._ended or transport is None or transport.is_closing():
            return
        data = connection.data_to_send()
        if data:
            transport.write(data)
        if self._listening and self._server.feed is not None:
            self._server.feed.pump(self)
        if connection.closing or self._finishing:
            if not connection.unanswered_count and not connection.saturated:
                self._end(transport)
        elif connection.saturated or not self._reading:
            self._set_reading(reading=not connection.saturated and self._blocked_sweeps < 0)
        if connection.saturated and not self._resuming and self._blocked_sweeps < 0 and connection.resumable:
            self._resuming = True
            asyncio.get_running_loop().call_soon(self._resume)  # everybody else has a turn before

    # Called by the feed

    @property
    def listening(self) -> bool:
        """Whether it has subscriptions."""
        return self._listening

    @listening.setter
    def listening(self, listening: bool) -> None:
        if listening and not self._listening and self._transport is not None:
            keep_alive(self._transport)
        self._listening = listening

    @property
    def connected(self) -> bool:
        """Whether the client is still there."""
        return not self._ended and self._transport is not None

    @property
    def writable(self) -> bool:
        """Whether events may be pushed: the client takes what it is sent, and nobody has said that this is the end."""
        transport = self._transport
        return (
            not self._ended
            and not self._finishing
            and self._blocked_sweeps < 0
            and transport is not None
            and not transport.is_closing()
        )

    def push(self, frames: bytes) -> None:
        """Send events, behind what has been answered so far."""
        if self._transport is not None and not self._transport.is_closing():
            self._connection.push(frames)
            self._transport.write(self._connection.data_to_send())

    def dismiss(self, answer: Answer) -> None:
        """Tell a subscriber why it is parted from, and end; what it is sent no more it can ask for again."""
        transport = self._transport
        if transport is not None and not self._ended and not transport.is_closing():
            self.push(encode_answer(MessageType.NOTICE, answer))
            self._end(transport)

    # Called by the server

    def finish(self) -> None:
        """End as soon as everything that was asked is answered."""
        self._finishing = True
        self.flush()

    def sweep(self, limits: ServerLimits) -> None:
        """Look at the clock, once every _SWEEP_S seconds: drop a client that is past one of its deadlines."""
        connection = self._connection
        swept = (connection.received_count, connection.incomplete)
        if swept != self._swept and swept != (0, True):  # the clock of the first frame began with the connection
            self._still_sweeps = 0
        self._swept = swept
        self._still_sweeps += 1
        if self._blocked_sweeps >= 0:
            self._blocked_sweeps += 1
        if self._ended:
            writing = self._transport is not None and self._transport.get_write_buffer_size() > 0
            still_max_s = limits.write_timeout_s if writing else limits.linger_timeout_s
        elif connection.unanswered_count:
            self._still_sweeps = 0
            still_max_s = limits.idle_timeout_s
        elif connection.received_count == 0 or connection.incomplete:
            still_max_s = limits.frame_timeout_s
        else:
            still_max_s = math.inf if self._listening else limits.idle_timeout_s
        if (self._still_sweeps - 1) * _SWEEP_S > still_max_s:
            self.abort()
        elif self._blocked_sweeps * _SWEEP_S > limits.write_timeout_s:
            if self._listening and not self._ended:
                self._blocked_sweeps = 0  # as long again for what it was sent before, and for the reason
                self.dismiss(Failed(SUBSCRIBER_TOO_SLOW))
            else:
                self.abort()

    def abort(self) -> None:
        """Drop the client now, with a reset: the kernel need not keep for it what it does not take."""
        if self._transport is not None:
            reset(self._transport)

    def _hand_over(self, data: bytes) -> None:
        """Have the client served by the one who speaks HTTP, from its first byte on."""
        transport, make_http = self._transport, self._server.make_http
        if self._ended or transport is None or transport.is_closing() or make_http is None:
            return
        self._ended = True
        self._server.forget(self)
        session = make_http(self._server)
        transport.pause_reading()  # uvloop chooses how to read when reading begins
        transport.set_protocol(cast(asyncio.BaseProtocol, session))
        transport.resume_reading()
        session.connection_made(transport)
        session.data_received(data)

    def _resume(self) -> None:
        """Take up what waits, unless the client does not take what it was answered so far."""
        self._resuming = False
        transport = self._transport
        if not self._ended and self._blocked_sweeps < 0 and transport is not None and not transport.is_closing():
            self._submit(self._connection.resume())
            self.flush()

    def _submit(self, requests: list[tuple[int, ClientRequest]]) -> None:
        for ticket, request in requests:
            if isinstance(request, Subscribe):
                self._server.subscribe(request, self, ticket)
            else:
                self._server.submit(request, self, ticket)

    def _end(self, transport: asyncio.Transport) -> None:
        """Shut our side and let the client close.

        Closing with unread bytes in the socket would make the kernel send a reset, and the last answers could be lost.
        """
        self._ended = True
        self._still_sweeps = 0
        self._set_reading(reading=True)
        if self._peer_ended:
            transport.close()
        else:
            transport.write_eof()

    def _set_reading(self, *, reading: bool) -> None:
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()


class TcpServer:
    """Accepts clients on one listening socket and keeps their deadlines."""

    def __init__(
        self,
        submit: Submit,
        limits: ServerLimits | None = None,
        feed: Feed | None = None,
        make_http: MakeHttp | None = None,
        gate: Gate | None = None,
        record: Record = lambda requests, answers: None,
    ) -> None:
        """Serve nothing yet.

        Args:
            submit: takes (request, sink, ticket); the batcher's.
            limits: the bounds; the connection cap is lowered to what the descriptor limit allows.
            feed: serves subscribers; without it they are told UNAVAILABLE.
            make_http: makes the protocol of a client that speaks HTTP; without it they are answered as if they spoke
                the other one.
            gate: refuses who comes too often; without it nobody is asked who he is.
            record: is told whom it refused.

        Raises:
            ConfigError: the descriptor limit allows no connection at all.
        """
        self.submit = submit
        self.subscribe: Callable[[Subscribe, Any, int], None] = feed.subscribe if feed is not None else _refuse
        self.is_gated = gate is not None
        if gate is not None:
            self.submit = guarded(submit, gate, record)
            self.subscribe = guarded(self.subscribe, gate, record)
        self.feed = feed
        self.limits = limits or ServerLimits()
        self.make_http = make_http
        self.segment = memoryview(bytearray(SEGMENT_SIZE_MAX))
        self._sessions: set[Visitor] = set()
        self._counts: Counter[str] = Counter()  # of them, by door
        self.refused_count = 0
        """Clients for whom there was no room, so far."""
        self._empty = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._connection_count_max = connection_count_allowed(self.limits.connection_count_max)

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._sessions)

    def count_of(self, door: str) -> int:
        """Return how many clients came in by that door and are connected."""
        return self._counts[door]

    async def start(self, listening: socket.socket, http: socket.socket | None = None) -> None:
        """Accept clients on a bound socket, and on another one those that speak HTTP, who have it for themselves."""
        loop = asyncio.get_running_loop()
        makers: list[tuple[socket.socket, Callable[[], asyncio.BaseProtocol]]] = [(listening, lambda: Session(self))]
        make_http = self.make_http
        if http is not None and make_http is not None:
            self.make_http = None  # here
            makers.append((http, lambda: cast(asyncio.BaseProtocol, make_http(self))))
        for bound, make in makers:
            self._listeners.append(await loop.create_server(make, sock=bound, backlog=LISTEN_BACKLOG))
        self._sweeping = loop.create_task(self._sweep())

    async def drain(self, answered: Awaitable[None], *, timeout_s: float) -> None:
        """Stop accepting, refuse new requests, answer what is in flight, part from the clients.

        Args:
            answered: done when every submitted request has its answer.
            timeout_s: after so many seconds the clients that are left are dropped.
        """
        for listener in self._listeners:
            listener.close()
        self.submit = self.subscribe = _refuse
        try:
            async with asyncio.timeout(timeout_s):
                for session in list(self._sessions):
                    session.finish()
                await answered
                if self._sessions:
                    self._empty.clear()
                    async with asyncio.timeout(self.limits.linger_timeout_s):
                        await self._empty.wait()
        except TimeoutError:
            for session in list(self._sessions):
                session.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def admit(self, session: Visitor) -> bool:
        """Whether there is room for one more client; it counts from now on if so."""
        if len(self._sessions) >= self._connection_count_max:
            self.refused_count += 1
            return False
        self._sessions.add(session)
        self._counts[session.door] += 1
        return True

    def forget(self, session: Visitor) -> None:
        """Count the client no more."""
        if session in self._sessions:  # or it was not admitted
            self._sessions.remove(session)
            self._counts[session.door] -= 1
        if not self._sessions:
            self._empty.set()

    async def _sweep(self) -> None:
        """Keep the deadlines: look at all sessions once every _SWEEP_S seconds, some at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        while True:
            due_at = max(due_at + _SWEEP_S, loop.time())
            await asyncio.sleep(due_at - loop.time())
            sessions = list(self._sessions)
            for start in range(0, len(sessions), _SWEEP_COUNT):
                self._look_at(sessions[start : start + _SWEEP_COUNT])
                await asyncio.sleep(0)

    def _look_at(self, sessions: list[Visitor]) -> None:
        for session in sessions:
            try:
                session.sweep(self.limits)
            except Exception:  # noqa: BLE001 - a bug that one connection meets must not end the deadlines of all
                _log.exception("the deadlines of a connection are not kept")


def _refuse(request: ClientRequest | Request, session: Subscriber, ticket: int) -> None:
    session.answer(ticket, NOT_EXECUTED)
