"""The gRPC door as the server opens it: grpc.aio in the worker's event loop, its limits, and its end."""

import asyncio
import logging
import socket
from collections.abc import Awaitable
from typing import Any

import grpc
from msgspec import Struct

from flashsale.feed import Feed
from flashsale.grpc.borrowed import Borrowed
from flashsale.grpc.core import Core
from flashsale.grpc.orders import Ask, Means, make_handlers
from flashsale.grpc.orders_pb2 import DESCRIPTOR
from flashsale.grpc.rates import Rates
from flashsale.grpc.watching import Watching

SERVICE = DESCRIPTOR.services_by_name["OrderService"].full_name
_OLDER_PURCHASES = (".OrderService/Purchase", "/OrderService/Purchase")
"""How the path of that call ends for clients whose proto file has another package."""

METADATA_SIZE_MAX = 8 * 1024
"""Bytes of a call's metadata; the ids are not in there."""
KEEPALIVE_S = 60
"""A connection that says nothing for so long is asked whether it is still there."""
KEEPALIVE_ANSWER_S = 20
CONNECTION_AGE_S = 30 * 60
"""Then a connection gets no new calls, which the client's library makes on another one."""
CONNECTION_GRACE_S = 60
"""After that it is closed: else who takes no responses could hold the room of their calls for ever."""
PING_PAUSE_S = 10
"""A client may ask that every so many seconds; one that does so more often is parted from."""
_LINGER_S = 1.0
"""At the end, for answers to get out, behind which only streams of health and reflection are left."""
_WINDOW_SIZE_MIN = 16 * 1024
"""Bytes that a client may send for one call before they are read."""
_IDENTITY_ONLY = 1
"""No compression: what is small on the wire could be a thousand times as large in memory."""

_log = logging.getLogger(__name__)


class GrpcLimits(Struct, frozen=True, kw_only=True):
    """The bounds of the gRPC door, for one worker."""

    payload_size_max: int
    """Bytes of one message of a client."""
    connection_count_max: int
    in_flight_count_max: int
    """Calls under way on one connection."""
    idle_timeout_s: float
    """A connection without a call is closed after so long."""
    frame_timeout_s: float
    """From connecting to the end of HTTP/2's preface and settings, and from the beginning of a call to its message."""
    write_timeout_s: float
    """A watcher that does not take its events is parted from after so long."""
    call_count_max: int = 16_384
    """Calls under way in all; one beyond them is told RESOURCE_EXHAUSTED."""
    watcher_count_max: int = 1_024
    """Streams of Watch; one beyond them is told UNAVAILABLE."""
    borrowed_count_max: int = 256
    """Streams of health and reflection; likewise."""


class Methods:
    """Finds the handler of a call by its path; gRPC's own way asks one service after the other."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers

    def service(self, call: Any) -> Any:
        """Return the handler of a call; None when there is none. Called by gRPC."""
        handler = self._handlers.get(call.method)
        if handler is None and call.method.endswith(_OLDER_PURCHASES):
            handler = self._handlers[f"/{SERVICE}/Purchase"]
        return handler


class GrpcDoor:
    """OrderService, health and reflection on one port. Belongs to one event loop."""

    def __init__(self, ask: Ask, feed: Feed, limits: GrpcLimits, rates: Rates | None = None) -> None:
        """Serve nothing yet.

        Args:
            ask: has a request decided.
            feed: serves those who follow a sale.
            limits: the bounds.
            rates: refuses who comes too often.
        """
        logging.getLogger("grpc").setLevel(logging.CRITICAL)  # what clients do wrong fills no log
        self._limits = limits
        self._watching = Watching(
            feed,
            rates,
            watcher_count_max=limits.watcher_count_max,
            frame_timeout_s=limits.frame_timeout_s,
            write_timeout_s=limits.write_timeout_s,
        )
        self._borrowed = Borrowed(
            SERVICE,
            stream_count_max=limits.borrowed_count_max,
            frame_timeout_s=limits.frame_timeout_s,
            write_timeout_s=limits.write_timeout_s,
        )
        once, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        orders = make_handlers(Means(ask, limits.frame_timeout_s, rates))
        handlers = {f"/{SERVICE}/{name}": once(handler) for name, handler in orders.items()}
        handlers[f"/{SERVICE}/Watch"] = stream(self._watching.watch)
        methods = Methods(handlers | self._borrowed.handlers)
        self._core = Core(methods, _options(limits), call_count_max=limits.call_count_max)

    async def start(self, listening: socket.socket) -> None:
        """Serve on the address of a bound socket, which is closed: gRPC makes one of its own that shares the port.

        Raises:
            ListenError: the address cannot be had.
        """
        host, port = listening.getsockname()[:2]
        listening.close()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self._core.start(address)

    def retire(self) -> None:
        """Have health say NOT_SERVING, so that buyers are sent elsewhere; calls are answered as before."""
        self._borrowed.retire()

    async def drain(self, answered: Awaitable[None], *, timeout_s: float) -> None:
        """Take no new calls, end the streams, answer what is under way.

        Args:
            answered: done when every submitted request has its answer.
            timeout_s: after so many seconds the calls that are left are cancelled.
        """
        self.retire()
        self._watching.drain()
        stopping = asyncio.get_running_loop().create_task(self._core.stop(timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                await answered
        except TimeoutError:
            _log.warning("calls over gRPC are cancelled: they took too long")
            await stopping
        else:
            await self._core.stop(min(_LINGER_S, timeout_s))
            stopping.cancel()  # it waits for what is left, if there is anything


def _options(limits: GrpcLimits) -> list[tuple[str, int]]:
    """Return what gRPC's core is told; times in milliseconds."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.payload_size_max),
        ("grpc.max_metadata_size", METADATA_SIZE_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_SIZE_MAX),  # else more is refused at random only
        ("grpc.per_message_decompression", 0),
        ("grpc.per_message_compression", 0),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ("grpc.max_allowed_incoming_connections", limits.connection_count_max),
        ("grpc.max_concurrent_streams", limits.in_flight_count_max),
        ("grpc.server.max_pending_requests", limits.call_count_max),  # else a burst of a thousand is refused
        ("grpc.server.max_pending_requests_hard_limit", limits.call_count_max),
        ("grpc.http2.lookahead_bytes", max(limits.payload_size_max, _WINDOW_SIZE_MIN)),  # else 4 MiB for each call
        ("grpc.http2.bdp_probe", 0),  # which would make more of that
        ("grpc.server_handshake_timeout_ms", round(limits.frame_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_timeout_s * 1000)),
        ("grpc.max_connection_age_ms", round(CONNECTION_AGE_S * 1000)),
        ("grpc.max_connection_age_grace_ms", round(CONNECTION_GRACE_S * 1000)),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_PAUSE_S * 1000),
    ]
