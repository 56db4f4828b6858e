"""How fast orders get into a database: a backlog drained, the lag of a row behind its buyer's answer, and strict.

The drain is of a ledger that lies there, by one worker, PostgreSQL and SQLite as they ship: each commit is on the disk.
The lag is measured beside a server with its worker, while a crowd buys: how far the tables are is read every few
milliseconds, and when the answers to some of the purchases came is compared with when their versions were there. The
product is known to the worker by then. Strict is measured beside local, in turns, both with a worker.
"""

import asyncio
import gc
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from statistics import median

import uvloop
from msgspec import Struct
from redis.asyncio import Redis

from bench.crowd import run_load
from bench.databases import PostgresServer
from bench.load import Load
from bench.report import Target, spread
from bench.rig import open_rig
from bench.stage import SERVE, temporary_home, temporary_store
from flashsale.backends import Store, open_admin
from flashsale.client import Client
from flashsale.domain.answers import Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Purchase
from flashsale.domain.sale import Terms
from flashsale.orders.database import Database, database_url
from flashsale.orders.mover import Mover
from flashsale.orders.moving import positions
from flashsale.store import keys
from flashsale.store.engine import RedisEngine
from flashsale.store.outbox import RedisOutbox

_PRODUCT_ID = "orders"
_DRAIN_MIN = {"sqlite": 30_000, "postgresql": 25_000}
_LAG_MAX_MS = 100.0
_STRICT_RATIO_MIN = 0.25
_BATCH_COUNT = 200
_LOOK_S = 0.005
_PROBED_ONE_IN = 50
_SETTLE_S = 30.0

Progress = Callable[[str], None]


class Scale(Struct, frozen=True, kw_only=True):
    """How much of it."""

    round_count: int = 3
    order_count: int = 100_000
    """In the ledger that is drained."""
    rate_per_s: float = 5_000.0
    duration_s: float = 3.0
    """Of each run of buyers."""
    connection_count: int = 200
    dialects: tuple[str, ...] = ("sqlite", "postgresql")


def measure(scale: Scale, progress: Progress) -> list[Target]:
    """Return each figure beside what it has to be.

    Raises:
        FlashsaleError: something fails.
    """
    return uvloop.run(_measure(scale, progress))


async def _measure(scale: Scale, progress: Progress) -> list[Target]:
    targets: list[Target] = []
    async with AsyncExitStack() as stack:
        home = stack.enter_context(temporary_home())
        urls: dict[str, Callable[[], str]] = {}
        numbers = count(1)
        if "sqlite" in scale.dialects:
            urls["sqlite"] = lambda: f"sqlite:///{home / f'{next(numbers)}.db'}"
        if "postgresql" in scale.dialects:
            postgres = await asyncio.to_thread(PostgresServer, home.parent, durable=True)
            stack.callback(postgres.close)
            urls["postgresql"] = postgres.make_database
        for named in (False, True):
            found = await _drains(scale, urls, progress, named=named)
            for dialect, rates in found.items():
                what = "each with a request id" if named else "plain"
                name = f"{scale.order_count:,} orders into {dialect}, {what}"
                wanted = "" if named else f">= {_DRAIN_MIN[dialect]:,}/s"
                met = None if named else median(rates) >= _DRAIN_MIN[dialect]
                targets.append(Target(name, f"{median(rates):,.0f}/s ({_rates(rates)})", wanted, met))
        for dialect, make_url in urls.items():
            progress(f"lag of a row behind its answer, {dialect}")
            targets.append(await _lag(scale, dialect, make_url()))
        for dialect, make_url in urls.items():
            targets += await _strict(scale, dialect, make_url, progress)
    return targets


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:,.0f}" for rate in rates)


# A backlog drained


async def _drains(
    scale: Scale, urls: dict[str, Callable[[], str]], progress: Progress, *, named: bool
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {dialect: [] for dialect in urls}
    with temporary_store() as (_, store):
        await _sell(store, scale.order_count, named=named)
        for number in range(scale.round_count):
            for dialect, make_url in urls.items():
                progress(f"drain {number + 1} of {scale.round_count} into {dialect}")
                rates[dialect].append(await _drain(store, make_url(), scale.order_count))
    return rates


async def _sell(store: Store, order_count: int, *, named: bool) -> None:
    """Write a ledger of so many sales, in batches as a busy server makes them."""
    engine = RedisEngine(store.url)
    async with open_admin(store) as admin:
        await admin.init(_PRODUCT_ID, order_count, Terms())
    for first in range(0, order_count, _BATCH_COUNT):
        requests = [
            Purchase(_PRODUCT_ID, f"user-{number:08}", request_id=f"request-{number:08}" if named else None)
            for number in range(first, min(first + _BATCH_COUNT, order_count))
        ]
        await engine.commit([Batch(_PRODUCT_ID, requests, first + 1)], timeout_s=10)
    await engine.close()


async def _drain(store: Store, url: str, order_count: int) -> float:
    """Move the whole ledger into an empty database; return orders a second, from the first reading to the last row."""
    database, outbox = Database(database_url(url, Path())), RedisOutbox(store.url)
    mover = Mover(outbox, database)
    await database.upgrade()
    await mover.look()
    begun, moved = time.monotonic(), 0
    while moved < order_count + 1:
        moved += await mover.step(0.5)
    elapsed_s = time.monotonic() - begun
    await outbox.close()
    await database.close()
    return order_count / elapsed_s


# The lag


async def _lag(scale: Scale, dialect: str, url: str) -> Target:
    stock = round(2 * scale.rate_per_s * scale.duration_s)
    gc.collect()
    gc.freeze()  # or a collection here would pass for a lag there
    database = Database(database_url(url, Path()))
    await database.upgrade()
    async with open_rig((*SERVE, "--orders", "--database", url)) as rig:
        await rig.admin.init(_PRODUCT_ID, stock)
        seen: list[tuple[int, float]] = []
        watching = asyncio.create_task(_watch(database, seen))
        async with Client(rig.server.host, rig.server.port) as client, asyncio.timeout(_SETTLE_S):
            await client.purchase(_PRODUCT_ID, "first")
            while not seen:  # noqa: ASYNC110 - a worker learns of a new product within half a second
                await asyncio.sleep(0.01)
        told = await _buy_at_rate(rig.server.host, rig.server.port, scale)
        last = max(version for version, _ in told)
        async with asyncio.timeout(_SETTLE_S):
            while not seen or seen[-1][0] < last:  # noqa: ASYNC110 - it is there in another process
                await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.wait([watching])
    await database.close()
    lags = sorted(max(0.0, seen[bisect_left(seen, (version, 0.0))][1] - at) for version, at in told)
    p50, p99 = (1e3 * lags[int(len(lags) * share)] for share in (0.5, 0.99))
    name = f"lag of the row at {scale.rate_per_s:,.0f} sales/s, {dialect}"
    told_s = f"p99 {p99:.0f} ms, p50 {p50:.0f} ms, worst {1e3 * lags[-1]:.0f} ms of {len(told):,} probed"
    return Target(name, told_s, f"p99 < {_LAG_MAX_MS:.0f} ms", p99 < _LAG_MAX_MS)


async def _watch(database: Database, seen: list[tuple[int, float]]) -> None:
    """Note when the tables have come to which version."""
    while True:
        async with database.reading() as connection:
            _, version = (await positions(connection, [_PRODUCT_ID])).get(_PRODUCT_ID, ("", 0))
        if not seen or seen[-1][0] < version:
            seen.append((version, time.monotonic()))
        await asyncio.sleep(_LOOK_S)


async def _buy_at_rate(host: str, port: int, scale: Scale) -> list[tuple[int, float]]:
    """Have a crowd buy at that rate, one in so many by ourselves; return version and time of each answer to these."""
    told: list[tuple[int, float]] = []
    probe_rate_per_s = scale.rate_per_s / _PROBED_ONE_IN
    load = Load(
        host=host,
        port=port,
        product_id=_PRODUCT_ID,
        connection_count=20,
        duration_s=scale.duration_s,
        rate_per_s=scale.rate_per_s - probe_rate_per_s,
    )
    crowd = asyncio.create_task(run_load(load.with_timeout(), process_count=1))
    async with Client(host, port) as client:
        number = 0
        while not crowd.done():
            answer = await client.purchase(_PRODUCT_ID, f"probe-{number}")
            if isinstance(answer, Success):
                told.append((answer.version, time.monotonic()))
            number += 1
            await asyncio.sleep(1 / probe_rate_per_s)
    await crowd
    return told


# Strict beside local


async def _strict(scale: Scale, dialect: str, make_url: Callable[[], str], progress: Progress) -> list[Target]:
    rates: dict[str, list[float]] = {"local": [], "strict": []}
    async with AsyncExitStack() as stack:
        rigs = {
            level: await stack.enter_async_context(
                open_rig((*SERVE, "--orders", "--database", make_url(), "--durability", level))
            )
            for level in rates
        }
        for number in range(scale.round_count):
            for level, rig in rigs.items():
                progress(f"{level} {number + 1} of {scale.round_count}, {dialect}")
                load = Load(
                    host=rig.server.host,
                    port=rig.server.port,
                    product_id=f"{level}-{number}",
                    connection_count=scale.connection_count,
                    duration_s=scale.duration_s,
                )
                result = await rig.run(load, stock=1_000_000_000)
                rates[level].append(result.throughput_per_s)
                await _until_moved(rig.store_url, load.product_id)
    ratios = [strict / local for strict, local in zip(rates["strict"], rates["local"], strict=True)]
    told = f"{spread(ratios)}; {median(rates['strict']):,.0f}/s and {median(rates['local']):,.0f}/s"
    name = f"strict / local, {scale.connection_count} x 1 selling, {dialect}"
    return [Target(name, told, f">= {_STRICT_RATIO_MIN}", median(ratios) >= _STRICT_RATIO_MIN)]


async def _until_moved(store_url: str, product_id: str) -> None:
    """Wait until a run is in the database, so that the next one does not pay for it."""
    async with Redis.from_url(store_url) as redis, asyncio.timeout(_SETTLE_S):
        while len(set(await redis.hmget(keys.key(product_id, "sale"), "version", "moved"))) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
