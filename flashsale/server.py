"""The TCP door: sockets in, answers out. It moves bytes; connection.py understands them, the batcher decides.

Flow control goes both ways: a client that does not read its answers, or has too many requests under way, is not read
from; a subscriber that takes no more is not pushed to, and the feed goes on from there once it does. Every connection
has deadlines, kept by one sweep a second rather than a timer each.
"""

import asyncio
import logging
import math
import resource
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import cast

from msgspec import Struct

from flashsale.connection import IN_FLIGHT_DEFAULT, ServerConnection
from flashsale.domain.answers import BUSY, NOT_EXECUTED, Answer, Failed
from flashsale.domain.requests import Request, Subscribe
from flashsale.errors import ConfigError, ListenError
from flashsale.feed import Feed
from flashsale.subscriptions import Subscriber
from flashsale.wire import PAYLOAD_SIZE_DEFAULT, SUBSCRIBER_TOO_SLOW, ClientRequest, MessageType, encode_answer

LISTEN_BACKLOG = 65_535
"""Asked for; the kernel cuts it to net.core.somaxconn. With uvloop's default of 100, 10,000 clients at once hang."""

SEGMENT_SIZE_MAX = 32 * 1024
"""Bytes read from a client at once: what it is sent for them may have to wait in memory, and so may they."""

UNSENT_SIZE_MAX = 16 * 1024
"""Bytes of answers that the kernel does not take before a client is no longer read from."""

_SWEEP_S = 1.0
_SWEEP_COUNT = 512  # sessions looked at before buyers have a turn: about a millisecond
_DESCRIPTORS_KEPT = 64  # for the store, the listeners, files
_NO_LINGER = struct.pack("ii", 1, 0)
_TOO_MANY = encode_answer(MessageType.NOTICE, BUSY)

# A subscriber may send nothing for as long as it likes, so the kernel asks whether it is still there.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

_log = logging.getLogger(__name__)

Submit = Callable[[Request, "Session", int], None]


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
        "_listening",
        "_peer_ended",
        "_reading",
        "_resuming",
        "_server",
        "_still_sweeps",
        "_swept",
        "_transport",
        "answer",
        "has_answered",
    )

    def __init__(self, server: "TcpServer") -> None:
        limits = server.limits
        self._server = server
        self._connection = ServerConnection(
            payload_size_max=limits.payload_size_max, in_flight_count_max=limits.in_flight_count_max
        )
        self.answer: Callable[[int, Answer], None] = self._connection.answer
        self.has_answered: Callable[[int], bool] = self._connection.has_answered
        self._listening = False
        self._transport: asyncio.Transport | None = None
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

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next segment is to be put: one place for all, as each is taken out at once."""
        return self._server.segment

    def buffer_updated(self, nbytes: int) -> None:
        """Take the segment out."""
        self.receive(bytes(self._server.segment[:nbytes]))

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
            _keep_alive(self._transport)
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
            link = self._transport.get_extra_info("socket")
            if link is not None:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()

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

    def __init__(self, submit: Submit, limits: ServerLimits | None = None, feed: Feed | None = None) -> None:
        """Serve nothing yet.

        Args:
            submit: takes (request, sink, ticket); the batcher's.
            limits: the bounds; the connection cap is lowered to what the descriptor limit allows.
            feed: serves subscribers; without it they are told UNAVAILABLE.

        Raises:
            ConfigError: the descriptor limit allows no connection at all.
        """
        self.submit = submit
        self.subscribe = feed.subscribe if feed is not None else _refuse
        self.feed = feed
        self.limits = limits or ServerLimits()
        self.segment = memoryview(bytearray(SEGMENT_SIZE_MAX))
        self._sessions: set[Session] = set()
        self._empty = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._connection_count_max = _connection_count_allowed(self.limits.connection_count_max)

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._sessions)

    async def start(self, listening: socket.socket) -> None:
        """Accept clients on a bound socket."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Session(self), sock=listening, backlog=LISTEN_BACKLOG)
        self._sweeping = loop.create_task(self._sweep())

    async def drain(self, answered: Awaitable[None], *, timeout_s: float) -> None:
        """Stop accepting, refuse new requests, answer what is in flight, part from the clients.

        Args:
            answered: done when every submitted request has its answer.
            timeout_s: after so many seconds the clients that are left are dropped.
        """
        if self._listener is not None:
            self._listener.close()
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

    def admit(self, session: Session) -> bool:
        """Whether there is room for one more client; it counts from now on if so."""
        if len(self._sessions) >= self._connection_count_max:
            return False
        self._sessions.add(session)
        return True

    def forget(self, session: Session) -> None:
        """Count the client no more."""
        self._sessions.discard(session)
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

    def _look_at(self, sessions: list[Session]) -> None:
        for session in sessions:
            try:
                session.sweep(self.limits)
            except Exception:  # noqa: BLE001 - a bug that one connection meets must not end the deadlines of all
                _log.exception("the deadlines of a connection are not kept")


def _refuse(request: ClientRequest | Request, session: Subscriber, ticket: int) -> None:
    session.answer(ticket, NOT_EXECUTED)


def _connection_count_allowed(wanted: int) -> int:
    """Return how many connections this process may have; raise ConfigError if that is none."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or wanted <= limit - _DESCRIPTORS_KEPT:
        return wanted
    if limit <= _DESCRIPTORS_KEPT:
        raise ConfigError(f"the descriptor limit of {limit} leaves none for connections: raise it with `ulimit -n`")
    allowed = limit - _DESCRIPTORS_KEPT
    _log.warning("at most %d connections at once instead of %d: the descriptor limit is %d", allowed, wanted, limit)
    return allowed


def _keep_alive(transport: asyncio.Transport) -> None:
    """Have the kernel find out when the client is gone without a word."""
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):  # not everywhere under this name
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to the address, not yet listening; an empty host means all interfaces.

    Args:
        host: a name or an address.
        port: 0 lets the kernel choose.
        shared: let several processes bind it, each with a socket of its own (SO_REUSEPORT).

    Raises:
        ListenError: the address cannot be had.
    """
    last_error: OSError | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    # for all interfaces prefer the IPv6 socket, which takes IPv4 clients too
    found.sort(key=lambda entry: entry[0] != socket.AF_INET6 if not host else 0)
    for family, kind, protocol, _, address in found:
        listening = None
        try:
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
            listening.setblocking(False)  # noqa: FBT003 - the socket API has no keyword for it
            listening.bind(address)
        except OSError as error:
            last_error = error
            if listening is not None:
                listening.close()
            continue
        return listening
    reason = last_error.strerror if last_error else "no such address"
    raise ListenError(f"cannot listen on {host}:{port}: {reason}")
