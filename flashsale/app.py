"""A server's life: builds everything from one Config, serves, drains."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from flashsale import crash, supervisor
from flashsale.attempts import AttemptSender, Pipe
from flashsale.backends import Store, open_database, open_store
from flashsale.batching import Batcher, Limits
from flashsale.config import Config, split_address
from flashsale.errors import ListenError, StoreUnavailableError
from flashsale.expiry import Sweeper
from flashsale.feed import Feed
from flashsale.launch import raise_descriptor_limit
from flashsale.server import ServerLimits, TcpServer, bind
from flashsale.store.calendar import RedisCalendar
from flashsale.store.durability import Durability
from flashsale.store.engine import RedisEngine
from flashsale.store.ledger import RedisLedger
from flashsale.store.outbox import RedisOutbox
from flashsale.store.progress import Progress
from flashsale.store.replicated import ReplicatedEngine
from flashsale.store.strict import StrictEngine

if TYPE_CHECKING:  # what is behind it takes longer to import than all else together: where it is not needed, it is not
    from flashsale.orders.fence import Fence

_log = logging.getLogger(__name__)


def serve(config: Config, announce: Callable[[str], None]) -> int:
    """Run the server until a signal ends it; return the exit code.

    Args:
        config: the settings.
        announce: gets the one line that says where the server listens, once it does.

    Raises:
        FlashsaleError: the address is taken, or the store cannot be reached or keeps too little.
    """
    crash.arm()
    host, port = split_address(config.listen)
    raise_descriptor_limit()
    # Taken alone, also by several workers: sharing a port is refused to whoever already has it for himself, but would
    # quietly succeed with another server of several workers.
    listening = bind(host, port)
    port = listening.getsockname()[1]
    shown_host = f"[{host}]" if ":" in host else host

    with open_store(config) as store:

        def ready() -> None:
            line = f"Server initialized - Listening on {shown_host}:{port}, Redis: {store}"
            announce(line)
            _log.info(line)
            if host not in {"127.0.0.1", "::1", "localhost"}:
                _log.warning("listening beyond loopback: whoever reaches %s:%d can buy", shown_host, port)

        if config.workers == 1 and not (config.orders or config.record_attempts):
            uvloop.run(_work(config, store, None, listening, ready))
            return 0
        pipe = Pipe() if config.record_attempts else None
        listening.close()
        reserved = bind(host, port, shared=True)  # never listens; it keeps the port ours while workers come and go
        try:
            return supervisor.supervise(
                config.workers,
                lambda told: uvloop.run(_work(config, store, pipe, bind(host, port, shared=True), told)),
                ready,
                beside=_work_beside(config, store, pipe),
                stop_timeout_s=config.drain_timeout_s + 1,
            )
        finally:
            reserved.close()
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
    from flashsale.orders.fence import Fence

    outbox, database = RedisOutbox(store.url), open_database(config)
    fence = Fence(outbox, database)
    try:
        yield fence
    finally:
        await fence.settle()
        await outbox.close()
        await database.close()


async def _work(
    config: Config, store: Store, pipe: Pipe | None, listening: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then drain; what is answered goes into the pipe."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        store.give_up()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    if store.revive is not None:
        try:
            await store.revive()  # a worker started again may find that it died meanwhile
        except StoreUnavailableError:
            if stopping.is_set():
                return
            raise
    async with _open_fence(config, store) as fence, _open_engine(config, store, fence) as engine:
        sender = AttemptSender(pipe.sending, size_max=config.attempts_size_max) if pipe is not None else None
        batcher = Batcher(engine, msgspec.convert(config, Limits, from_attributes=True), sender)
        await _sell(config, store, batcher, listening, ready, stopping)
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


async def _sell(
    config: Config,
    store: Store,
    batcher: Batcher,
    listening: socket.socket,
    ready: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Answer buyers until told to stop, then drain."""
    feed = Feed(reading=RedisLedger(store.url), following=RedisLedger(store.url))
    server = TcpServer(batcher.submit, msgspec.convert(config, ServerLimits, from_attributes=True), feed)
    calendar = RedisCalendar(store.url)
    sweeping = asyncio.create_task(Sweeper(calendar, batcher.submit).run())
    try:
        await server.start(listening)
    except OSError as error:
        raise ListenError(f"cannot listen on {config.listen}: {error.strerror}") from error
    gc.freeze()  # what was made up to here stays; collections need not walk through it while buyers wait
    ready()
    await stopping.wait()
    _log.info("draining %d connections", server.connection_count)
    sweeping.cancel()
    await server.drain(batcher.drain(), timeout_s=config.drain_timeout_s)
    await feed.close()
    await calendar.close()
    _log.info("stopped")
