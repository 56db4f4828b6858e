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
from flashsale.attempts import AttemptSender, Pipe
from flashsale.backends import Store, open_admin, open_database, open_fence, open_store
from flashsale.batching import Batcher, Limits
from flashsale.config import HTTP_WORDS, Config, split_address
from flashsale.doors import Doors, Inside, Ports
from flashsale.errors import StoreUnavailableError
from flashsale.expiry import Sweeper
from flashsale.feed import Feed
from flashsale.launch import raise_descriptor_limit
from flashsale.meter import Meter, MeteredEngine
from flashsale.metrics import CONNECTS, Board, place_of
from flashsale.sampling import Sampler
from flashsale.scheduling import Scheduler
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
    from flashsale.orders.fence import Fence

_log = logging.getLogger(__name__)


class _Server(Struct, frozen=True, kw_only=True):
    """What all workers of a server have in common."""

    config: Config
    store: Store
    ports: Ports
    board: Board
    """Where they count."""
    pipe: Pipe | None
    """Takes what is answered; None when nobody records it."""


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

        pipe = Pipe() if config.record_attempts else None
        server = _Server(config=config, store=store, ports=ports, board=Board(config.workers), pipe=pipe)
        if config.workers == 1 and not (config.orders or config.record_attempts):
            uvloop.run(_work(server, 0, ready))
            return 0

        def start(number: int, told: Callable[[], None]) -> None:
            uvloop.run(_work(server, number, told))

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


async def _work(server: _Server, number: int, ready: Callable[[], None]) -> None:
    """Answer buyers until SIGTERM or SIGINT, then drain.

    Args:
        server: whose worker it is.
        number: which of them.
        ready: called once it serves.
    """
    config, store = server.config, server.store
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
    async with AsyncExitStack() as stack:
        fence = await stack.enter_async_context(open_fence(config, store)) if config.orders else None
        engine = await stack.enter_async_context(_open_engine(config, store, fence))
        slot = server.board.slots[number]
        slot.begin(os.getpid(), time.monotonic())
        sender = None
        if server.pipe is not None:
            sender = AttemptSender(server.pipe.sending, size_max=config.attempts_size_max)
            stack.push_async_callback(sender.close)
        meter = Meter(slot)
        limits = msgspec.convert(config, Limits, from_attributes=True)
        batcher = Batcher(MeteredEngine(engine, slot), limits, sender, meter)
        sampler = await stack.enter_async_context(_open_sampler(store, server.board, number))
        sampler.watch({place_of(CONNECTS): lambda: engine.connect_count})
        feed = Feed(reading=RedisLedger(store.url), following=RedisLedger(store.url))
        stack.push_async_callback(feed.close)
        calendar = RedisCalendar(store.url)
        stack.push_async_callback(calendar.close)
        schedules = RedisSchedules(store.url)
        stack.push_async_callback(schedules.close)
        scheduler = Scheduler(
            schedules, check=fence.check_due if fence else None, compare=fence.check_soon if fence else None
        )
        admin = await stack.enter_async_context(open_admin(store))
        inside = Inside(
            batcher=batcher,
            feed=feed,
            current_sale=scheduler.find,
            reopen=partial(_reopen, scheduler, admin),
            sampler=sampler,
            respond=meter.respond,
        )
        doors = Doors(config, server.ports, inside)
        await scheduler.start()
        beside = [loop.create_task(work) for work in (Sweeper(calendar, batcher.submit).run(), scheduler.run())]
        await doors.open()
        gc.freeze()  # what was made up to here stays; collections need not walk through it while buyers wait
        ready()
        await stopping.wait()
        doors.retire()
        await asyncio.sleep(config.drain_delay_s)
        _log.info("draining %d connections", doors.connection_count)
        for task in beside:
            task.cancel()
        await doors.drain(timeout_s=config.drain_timeout_s)
    _log.info("stopped")


async def _reopen(scheduler: Scheduler, admin: Admin, product_id: str | None) -> tuple[str, int]:
    """Open a product anew, or that of the current sale, or the only one; return which, and its units."""
    if product_id is None:
        sale = scheduler.find(None)
        product_id = sale.product_id if sale is not None else await admin.only_product()
    return product_id, await admin.reopen(product_id)


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
