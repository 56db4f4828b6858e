"""The doors of one server: opened together, closed together, all before the same batcher.

What HTTP and gRPC are made of is imported only where they are opened: it takes longer to import than all else, and may
not be installed.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from flashsale.asking import Asker, Pace
from flashsale.batching import Batcher
from flashsale.breaker import State
from flashsale.config import Config
from flashsale.domain.schedules import CurrentSale
from flashsale.errors import ConfigError, ListenError
from flashsale.feed import Feed
from flashsale.gating import make_gate
from flashsale.metrics import BREAKERS, CONNECTIONS, LIMITED, QUEUE, QUEUE_SIZE, REFUSED, SUBSCRIBERS, place_of
from flashsale.peers import Proxies
from flashsale.sampling import Sampler
from flashsale.server import MakeHttp, ServerLimits, TcpServer
from flashsale.sockets import Port

if TYPE_CHECKING:
    from flashsale.grpc.door import GrpcDoor

_log = logging.getLogger(__name__)

_GRPC_PAUSE_S = 0.002
"""Calls over gRPC take this server so long each that hardly two would share a round trip to the store, a third of what
a call costs; so those share one that come within so many seconds."""


class Ports(Struct, frozen=True, kw_only=True):
    """Where the doors are."""

    listen: Port
    http: Port | None
    """Of its own; None when HTTP is spoken on the first one, or not at all."""
    grpc: Port | None

    def __post_init__(self) -> None:
        """Refuse two that are one: the system would send each client to either; raises ListenError."""
        named = {"--listen": self.listen, "--http": self.http, "--grpc": self.grpc}
        ports = [(name, port) for name, port in named.items() if port is not None]
        for (first, one), (second, other) in combinations(ports, 2):
            if one.overlaps(other):
                raise ListenError(f"cannot listen on {other} for {second}: {first} is there")

    @property
    def others(self) -> str:
        """Return what the line that says where the server listens has behind all else."""
        named = {"HTTP": self.http, "gRPC": self.grpc}
        return "".join(f", {name}: {port}" for name, port in named.items() if port is not None)

    @property
    def open_to_others(self) -> list[Port]:
        """Return those that others reach than this machine."""
        return [port for port in (self.listen, self.http, self.grpc) if port is not None and not port.is_loopback]


class Inside(Struct, frozen=True, kw_only=True):
    """What the doors lead to."""

    batcher: Batcher
    feed: Feed
    current_sale: Callable[[str | None], CurrentSale | None]
    """See flashsale.http.services, also for those below."""
    reopen: Callable[[str | None], Awaitable[tuple[str, int]]]
    sampler: Sampler
    respond: Callable[[int], None]


class Doors:
    """The doors of one server process. Belongs to one event loop."""

    def __init__(self, config: Config, ports: Ports, inside: Inside) -> None:
        """Open none yet.

        Raises:
            ConfigError: what one of them is made of is not installed, or the descriptor limit allows no client.
        """
        self._ports = ports
        self._listen = config.listen
        self._batcher = batcher = inside.batcher
        self._draining = asyncio.Event()
        self._gate = make_gate(
            time.monotonic, user=config.rate_user, client=config.rate_client, routes=config.rate_route
        )
        self._proxies = Proxies(config.trusted_proxies or "")
        self._http_asker = Asker(batcher.submit)
        self._pace = Pace(batcher.submit, pause_s=_GRPC_PAUSE_S)
        self._grpc_asker = Asker(self._pace.submit)
        self._grpc = self._make_grpc(config, inside) if ports.grpc is not None else None
        self._tcp = TcpServer(
            batcher.submit,
            msgspec.convert(config, ServerLimits, from_attributes=True),
            inside.feed,
            self._make_http(config, inside) if config.http != "off" else None,
            self._gate,
            batcher.record,
        )
        inside.sampler.watch(self._sources(inside.feed))

    @property
    def connection_count(self) -> int:
        """How many clients are connected over TCP and HTTP."""
        return self._tcp.connection_count

    async def open(self) -> None:
        """Accept clients; raise ListenError when the address is taken."""
        ports = self._ports
        try:
            await self._tcp.start(ports.listen.bind(), ports.http.bind() if ports.http else None)
        except OSError as error:
            raise ListenError(f"cannot listen on {self._listen}: {error.strerror}") from error
        if self._grpc is not None and ports.grpc is not None:
            await self._grpc.start(ports.grpc.bind())

    def retire(self) -> None:
        """Tell those who ask that this server is about to end; everybody is still served."""
        self._draining.set()
        if self._grpc is not None:
            self._grpc.retire()

    async def drain(self, *, timeout_s: float) -> None:
        """Accept nobody and nothing more, answer what is in flight, part from the clients; from all in that time."""
        self._http_asker.refuse()
        self._pace.flush()
        self._grpc_asker.refuse()
        ends = [self._tcp.drain(self._batcher.drain(), timeout_s=timeout_s)]
        if self._grpc is not None:
            ends.append(self._grpc.drain(self._batcher.drain(), timeout_s=timeout_s))
        await asyncio.gather(*ends)

    def _make_http(self, config: Config, inside: Inside) -> MakeHttp | None:
        """Return what makes the protocol of a client; None when HTTP is not installed and has no address of its own."""
        try:
            from flashsale.http.door import HttpDoor
            from flashsale.http.services import Services
        except ModuleNotFoundError as error:
            if config.http != "shared":
                raise ConfigError(f"HTTP needs {error.name}: install 'flashsale[http]'") from error
            _log.warning("HTTP is not spoken here: it needs %s, which 'flashsale[http]' installs", error.name)
            return None
        services = Services(
            ask=self._http_asker.ask,
            feed=inside.feed,
            current_sale=inside.current_sale,
            reopen=inside.reopen,
            draining=self._draining,
            operator_token=config.operator_token,
            lottery=config.lottery,
            gate=self._gate,
            proxies=self._proxies,
            record=self._batcher.record,
            sampler=inside.sampler,
            respond=inside.respond,
        )
        return HttpDoor(services, body_size_max=config.payload_size_max).make_session

    def _make_grpc(self, config: Config, inside: Inside) -> "GrpcDoor":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what clients do wrong fills no log; read when it is imported
        try:
            from flashsale.grpc.door import GrpcDoor, GrpcLimits
            from flashsale.grpc.rates import Rates
        except ModuleNotFoundError as error:
            raise ConfigError(f"gRPC needs {error.name}: install 'flashsale[grpc]'") from error
        rates = Rates(self._gate, self._proxies, self._batcher.record) if self._gate is not None else None
        limits = msgspec.convert(config, GrpcLimits, from_attributes=True)
        return GrpcDoor(self._grpc_asker.ask, inside.feed, limits, rates)

    def _sources(self, feed: Feed) -> dict[int, Callable[[], float]]:
        """Return where in its slot a worker writes what is so at the moment, and what that is."""
        batcher, tcp, refused = self._batcher, self._tcp, self._gate.refused_counts if self._gate is not None else {}
        return {
            place_of(BREAKERS, "store"): lambda: batcher.breakers.store.state is not State.CLOSED,
            place_of(BREAKERS, "products"): lambda: batcher.breakers.product_count > 0,
            **{place_of(LIMITED, name): partial(refused.__getitem__, name) for name in refused},
            place_of(QUEUE): lambda: batcher.waiting_count,
            place_of(QUEUE_SIZE): lambda: batcher.waiting_size,
            place_of(CONNECTIONS, "tcp"): lambda: tcp.count_of("tcp"),
            place_of(CONNECTIONS, "http"): lambda: tcp.count_of("http"),
            place_of(REFUSED): lambda: tcp.refused_count,
            place_of(SUBSCRIBERS): lambda: feed.subscriber_count,
        }
