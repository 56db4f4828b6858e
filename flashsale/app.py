"""A server's life: builds everything from one Config, serves, drains."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from msgspec import Struct

from flashsale import crash, supervisor
from flashsale.asking import Asker, Pace
from flashsale.attempts import AttemptSender, Pipe
from flashsale.backends import Store, open_admin, open_database, open_fence, open_store
from flashsale.batching import Batcher, Limits
from flashsale.breaker import State
from flashsale.config import HTTP_WORDS, Config, split_address
from flashsale.errors import ConfigError, ListenError, StoreUnavailableError
from flashsale.expiry import Sweeper
from flashsale.feed import Feed
from flashsale.gating import Record, make_gate
from flashsale.launch import raise_descriptor_limit
from flashsale.limiting import Gate
from flashsale.meter import Meter, MeteredEngine
from flashsale.metrics import (
    BREAKERS,
    CONNECTIONS,
    CONNECTS,
    LIMITED,
    QUEUE,
    QUEUE_SIZE,
    REFUSED,
    SUBSCRIBERS,
    Board,
    place_of,
)
from flashsale.peers import Proxies
from flashsale.sampling import Sampler
from flashsale.scheduling import Scheduler
from flashsale.server import ServerLimits, TcpServer
from flashsale.sockets import Port, tell_ready
from flashsale.store.admin import Admin
from flashsale.store.calendar import RedisCalendar
from flashsale.store.durability import Durability
from flashsale.store.engine import RedisEngine
from flashsale.store.ledger import RedisLedger
from flashsale.store.overview import Overview
from flashsale.store.progress import Progress
from flashsale.store.replicated import ReplicatedEngine
from flashsale.store.schedules import RedisSchedules
from flashsale.store.strict import StrictEngine

if TYPE_CHECKING:  # what is behind it takes longer to import than all else together: where it is not needed, it is not
    from flashsale.grpc.door import GrpcDoor
    from flashsale.http.door import HttpDoor
    from flashsale.orders.fence import Fence

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

    @property
    def others(self) -> str:
        """Return what the line that says where the server listens has behind all else."""
        named = {"HTTP": self.http, "gRPC": self.grpc}
        return "".join(f", {name}: {port}" for name, port in named.items() if port is not None)

    @property
    def open_to_others(self) -> list[Port]:
        """Return those that others reach than this machine."""
        return [port for port in (self.listen, self.http, self.grpc) if port is not None and not port.is_loopback]


def serve(config: Config, announce: Callable[[str], None]) -> int:
    """Run the server until a signal ends it; return the exit code.

    Args:
        config: the settings.
        announce: gets the one line that says where the server listens, once it does.

    Raises:
        FlashsaleError: the address is taken, or the store cannot be reached or keeps too little.
    """
    crash.arm()
    raise_descriptor_limit()
    with ExitStack() as stack:
        ports = Ports(
            listen=stack.enter_context(Port(*split_address(config.listen))),
            http=None if config.http in HTTP_WORDS else stack.enter_context(Port(*split_address(config.http))),
            grpc=None if config.grpc is None else stack.enter_context(Port(*split_address(config.grpc))),
        )
        store = stack.enter_context(open_store(config))

        def ready() -> None:
            line = f"Server initialized - Listening on {ports.listen}, Redis: {store}{ports.others}"
            announce(line)
            _log.info(line)
            tell_ready()
            for port in ports.open_to_others:
                _log.warning("listening beyond loopback: whoever reaches %s can buy", port)

        board = Board(config.workers)
        if config.workers == 1 and not (config.orders or config.record_attempts):
            uvloop.run(_work(config, store, None, ports, board, 0, ready))
            return 0
        pipe = Pipe() if config.record_attempts else None

        def start(number: int, told: Callable[[], None]) -> None:
            uvloop.run(_work(config, store, pipe, ports, board, number, told))

        try:
            return supervisor.supervise(
                [partial(start, number) for number in range(config.workers)],
                ready,
                beside=_work_beside(config, store, pipe),
                stop_timeout_s=config.drain_delay_s + config.drain_timeout_s + 1,
            )
        finally:
            lost_count = pipe.close() if pipe is not None else 0
            if lost_count:
                _log.error("%d attempts are not recorded: no recorder took them", lost_count)


def _work_beside(config: Config, store: Store, pipe: Pipe | None) -> list[supervisor.Work]:
    """Return what runs beside the servers, each in a process of its own."""
    if not config.orders and pipe is None:
        return []
    from flashsale import workers

    beside: list[supervisor.Work] = []
    if config.orders:
        orders = open_database(config)
        beside.append(lambda _: uvloop.run(workers.move(config, store, orders)))
    if pipe is not None:
        attempts = open_database(config)
        beside.append(lambda _: uvloop.run(workers.record(pipe, attempts)))
    return beside


@asynccontextmanager
async def _open_fence(config: Config, store: Store) -> AsyncIterator["Fence | None"]:
    """Give what compares the store with the database; None when no orders go there."""
    if not config.orders:
        yield None
        return
    async with open_fence(config, store) as fence:
        yield fence


async def _work(
    config: Config,
    store: Store,
    pipe: Pipe | None,
    ports: Ports,
    board: Board,
    number: int,
    ready: Callable[[], None],
) -> None:
    """Serve on these ports until SIGTERM or SIGINT, then drain.

    Args:
        config: the settings.
        store: where is sold.
        pipe: takes what is answered.
        ports: where the doors are.
        board: where the workers count.
        number: this worker's there.
        ready: called once it serves.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        store.give_up()

    for told in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(told, stop)

    if store.revive is not None:
        try:
            await store.revive()  # a worker started again may find that it died meanwhile
        except StoreUnavailableError:
            if stopping.is_set():
                return
            raise
    async with _open_fence(config, store) as fence, _open_engine(config, store, fence) as engine:
        sender = AttemptSender(pipe.sending, size_max=config.attempts_size_max) if pipe is not None else None
        slot = board.slots[number]
        slot.begin(os.getpid(), time.monotonic())
        meter = Meter(slot)
        limits = msgspec.convert(config, Limits, from_attributes=True)
        batcher = Batcher(MeteredEngine(engine, slot), limits, sender, meter)
        async with _open_sampler(store, board, number) as sampler:
            sampler.watch({place_of(CONNECTS): lambda: engine.connect_count})
            await _sell(config, store, batcher, fence, ports, sampler, meter.respond, ready, stopping)
        if sender is not None:
            await sender.close()


@asynccontextmanager
async def _open_engine(config: Config, store: Store, fence: "Fence | None") -> AsyncIterator[RedisEngine]:
    """Give the engine of the durability that was asked for, connected."""
    options: dict[str, Any] = {
        "durability": config.durability,
        "backlog_max": config.backlog_max,
        "compare": fence.check_soon if fence else None,
        "revive": store.revive,
    }
    async with AsyncExitStack() as stack:
        match config.durability:
            case Durability.STRICT:
                progress = await stack.enter_async_context(Progress(store.url))
                engine: RedisEngine = StrictEngine(store.url, progress, **options)
            case Durability.REPLICATED:
                engine = ReplicatedEngine(store.url, config.replicas, **options)
            case Durability.LOCAL | Durability.RELAXED:
                engine = RedisEngine(store.url, **options)
        stack.push_async_callback(engine.close)
        await engine.open()
        yield engine


@asynccontextmanager
async def _open_sampler(store: Store, board: Board, number: int) -> AsyncIterator[Sampler]:
    """Give what looks at all workers, at work."""
    overview = Overview(store.url)
    sampler = Sampler(board, board.slots[number], overview.look)
    looking = asyncio.create_task(sampler.run())
    try:
        yield sampler
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        await overview.close()


def _sources(batcher: Batcher, server: TcpServer, feed: Feed, gate: Gate | None) -> dict[int, Callable[[], float]]:
    """Return where in its slot a worker writes what is so at the moment, and what that is."""
    breakers, refused = batcher.breakers, gate.refused_counts if gate is not None else {}
    return {
        place_of(BREAKERS, "store"): lambda: breakers.store.state is not State.CLOSED,
        place_of(BREAKERS, "products"): lambda: breakers.product_count > 0,
        **{place_of(LIMITED, name): partial(refused.__getitem__, name) for name in refused},
        place_of(QUEUE): lambda: batcher.waiting_count,
        place_of(QUEUE_SIZE): lambda: batcher.waiting_size,
        place_of(CONNECTIONS, "tcp"): lambda: server.count_of("tcp"),
        place_of(CONNECTIONS, "http"): lambda: server.count_of("http"),
        place_of(REFUSED): lambda: server.refused_count,
        place_of(SUBSCRIBERS): lambda: feed.subscriber_count,
    }


async def _sell(
    config: Config,
    store: Store,
    batcher: Batcher,
    fence: "Fence | None",
    ports: Ports,
    sampler: Sampler,
    respond: Callable[[int], None],
    ready: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Answer buyers until told to stop, then drain."""
    asker, draining = Asker(batcher.submit), asyncio.Event()
    async with AsyncExitStack() as stack:
        feed = Feed(reading=RedisLedger(store.url), following=RedisLedger(store.url))
        stack.push_async_callback(feed.close)
        calendar = RedisCalendar(store.url)
        stack.push_async_callback(calendar.close)
        schedules = RedisSchedules(store.url)
        stack.push_async_callback(schedules.close)
        admin = await stack.enter_async_context(open_admin(store))
        scheduler = Scheduler(
            schedules, check=fence.check_due if fence else None, compare=fence.check_soon if fence else None
        )
        gate = make_gate(time.monotonic, user=config.rate_user, client=config.rate_client, routes=config.rate_route)
        http = None
        if config.http != "off":
            http = _open_http(config, asker, feed, scheduler, admin, draining, gate, batcher.record, sampler, respond)
        pace = Pace(batcher.submit, pause_s=_GRPC_PAUSE_S)
        grpc_asker = Asker(pace.submit)
        grpc = None if ports.grpc is None else _open_grpc(config, grpc_asker, feed, gate, batcher.record)
        limits = msgspec.convert(config, ServerLimits, from_attributes=True)
        make_http = http.make_session if http else None
        server = TcpServer(batcher.submit, limits, feed, make_http, gate, batcher.record)
        sampler.watch(_sources(batcher, server, feed, gate))
        await scheduler.start()
        beside = [asyncio.create_task(work) for work in (Sweeper(calendar, batcher.submit).run(), scheduler.run())]
        try:
            await server.start(ports.listen.bind(), ports.http.bind() if ports.http else None)
        except OSError as error:
            raise ListenError(f"cannot listen on {config.listen}: {error.strerror}") from error
        if grpc is not None and ports.grpc is not None:
            await grpc.start(ports.grpc.bind())
        gc.freeze()  # what was made up to here stays; collections need not walk through it while buyers wait
        ready()
        await stopping.wait()
        draining.set()
        if grpc is not None:
            grpc.retire()
        await asyncio.sleep(config.drain_delay_s)
        _log.info("draining %d connections", server.connection_count)
        for task in beside:
            task.cancel()
        asker.refuse()
        pace.flush()
        grpc_asker.refuse()
        ends = [server.drain(batcher.drain(), timeout_s=config.drain_timeout_s)]
        if grpc is not None:
            ends.append(grpc.drain(batcher.drain(), timeout_s=config.drain_timeout_s))
        await asyncio.gather(*ends)
    _log.info("stopped")


def _open_http(
    config: Config,
    asker: Asker,
    feed: Feed,
    scheduler: Scheduler,
    admin: Admin,
    draining: asyncio.Event,
    gate: Gate | None,
    record: Record,
    sampler: Sampler,
    respond: Callable[[int], None],
) -> "HttpDoor | None":
    """Return the HTTP door; None when what it is made of is not installed and nobody asked for it by its address.

    Raises:
        ConfigError: it is not installed, and has an address of its own.
    """
    try:
        from flashsale.http.door import HttpDoor
        from flashsale.http.services import Services
    except ModuleNotFoundError as error:
        if config.http != "shared":
            raise ConfigError(f"HTTP needs {error.name}: install 'flashsale[http]'") from error
        _log.warning("HTTP is not spoken here: it needs %s, which 'flashsale[http]' installs", error.name)
        return None

    async def reopen(product_id: str | None) -> tuple[str, int]:
        if product_id is None:
            sale = scheduler.find(None)
            product_id = sale.product_id if sale is not None else await admin.only_product()
        return product_id, await admin.reopen(product_id)

    services = Services(
        ask=asker.ask,
        feed=feed,
        current_sale=scheduler.find,
        reopen=reopen,
        draining=draining,
        operator_token=config.operator_token,
        lottery=config.lottery,
        gate=gate,
        proxies=Proxies(config.trusted_proxies or ""),
        record=record,
        sampler=sampler,
        respond=respond,
    )
    return HttpDoor(services, body_size_max=config.payload_size_max)


def _open_grpc(config: Config, asker: Asker, feed: Feed, gate: Gate | None, record: Record) -> "GrpcDoor":
    """Return the gRPC door; raise ConfigError when what it is made of is not installed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what clients do wrong fills no log; read when it is imported
    try:
        from flashsale.grpc.door import GrpcDoor, GrpcLimits
        from flashsale.grpc.rates import Rates
    except ModuleNotFoundError as error:
        raise ConfigError(f"gRPC needs {error.name}: install 'flashsale[grpc]'") from error
    rates = Rates(gate, Proxies(config.trusted_proxies or ""), record) if gate is not None else None
    return GrpcDoor(asker.ask, feed, msgspec.convert(config, GrpcLimits, from_attributes=True), rates)
