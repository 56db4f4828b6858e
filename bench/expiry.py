"""Very many holds that expire in the same second, while a crowd buys the same product.

Holds are planted through the engine, in full batches, all with the same deadline; deadlines are whole seconds. A crowd
in an open loop buys for a while before the deadline, for the quiet latency, and another for the second after it. When
the units come back is read off the set of deadlines, and not asked with a STATUS: every batch, and so that one too,
returns some of them.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from statistics import median

from msgspec import Struct
from redis.asyncio import Redis

from bench import proc
from bench.crowd import run_load
from bench.load import Load
from bench.report import Target, spread
from bench.result import Result
from bench.rig import Rig
from flashsale.batching import Limits
from flashsale.domain.answers import Held
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Reserve
from flashsale.errors import FlashsaleError
from flashsale.store import keys
from flashsale.store.engine import RedisEngine

_PRODUCT_ID = "expiry"
_REHEARSAL_ID = "rehearsal"
_REHEARSAL_COUNT = 4
_BATCH_COUNT = Limits().batch_count_max
_CALL_TIMEOUT_S = 10.0
_START_S = 2.0
"""For a load generator to start and connect."""
_SECOND_END = 0.7
"""No batch of holds is sent later in a second: its deadline could be another one."""
_PLANTING_MARGINS = (2.0, 4.0, 8.0)
"""Times as long as planting should take; the next one when that was too short, on a busy machine."""
_POLL_S = 0.005
_GIVEN_UP_S = 20.0
_P99_RATIO_MAX = 5.0
_BACK_MAX_S = 1.0


class Scale(Struct, frozen=True, kw_only=True):
    """How much of it. Times in seconds."""

    round_count: int = 3
    hold_count: int = 100_000
    connection_count: int = 100
    rate_per_s: float = 2_000.0
    quiet_s: float = 2.0
    """How long the crowd before the deadline buys."""
    loud_s: float = 1.0
    """And the one after it."""


class _Clock(Struct, frozen=True):
    """The store's clock, in Unix seconds."""

    ahead_s: float
    """Of this process's monotonic clock."""

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))


class _Round(Struct, frozen=True):
    quiet: Result
    loud: Result
    back_s: float
    """From the deadline until every unit was back, or _GIVEN_UP_S."""
    store_cpu_s: float
    """Which that took the store."""


async def measure_expiry(rig: Rig, scale: Scale, progress: Callable[[str], None]) -> list[Target]:
    """Let the holds expire, round after round; return the figures beside what is wanted of them."""
    rounds = []
    async with Redis.from_url(rig.store_url) as redis, _planter(rig.store_url) as planter:
        for number in range(1, scale.round_count + 1):
            progress(f"round {number} of {scale.round_count}: {scale.hold_count:,} holds expire in one second")
            rounds.append(await _measure(rig, redis, planter, scale))
    quiet_ms = [found.quiet.latency_ms(99.0) for found in rounds]
    loud_ms = [found.loud.latency_ms(99.0) for found in rounds]
    ratios = [loud / quiet for loud, quiet in zip(loud_ms, quiet_ms, strict=True)]
    backs_s = [found.back_s for found in rounds]
    late = f" ({_GIVEN_UP_S:g}: given up)" if max(backs_s) >= _GIVEN_UP_S else ""
    cpu_us = [found.store_cpu_s * 1e6 / scale.hold_count for found in rounds]
    crowd = f"{scale.rate_per_s:,.0f}/s buy"
    what = f"{scale.hold_count:,} holds expire at once"
    return [
        Target(f"{crowd}, quiet", _told(quiet_ms, [found.quiet for found in rounds]), "", met=None),
        Target(f"{crowd}, {what}", _told(loud_ms, [found.loud for found in rounds]), "", met=None),
        Target(
            f"{what}: p99 over the quiet p99",
            spread(ratios),
            f"<= {_P99_RATIO_MAX:g}",
            met=median(ratios) <= _P99_RATIO_MAX,
        ),
        Target(
            f"{what}: until all units are back",
            f"{spread(backs_s)} s{late}",
            f"<= {_BACK_MAX_S:g} s",
            met=median(backs_s) <= _BACK_MAX_S,
        ),
        Target(f"{what}: store CPU for each, buyers included", f"{spread(cpu_us)} µs", "", met=None),
    ]


def _told(p99s_ms: list[float], results: list[Result]) -> str:
    p50_ms = median(result.latency_ms(50.0) for result in results)
    longest_ms = max(result.latency_ms(100.0) for result in results)
    return f"p50 {p50_ms:.2f}, p99 {spread(p99s_ms)}, longest {longest_ms:.0f} ms"


async def _measure(rig: Rig, redis: Redis, planter: "_Planter", scale: Scale) -> _Round:
    seconds, microseconds = await redis.time()
    clock = _Clock(seconds + microseconds / 1e6 - time.monotonic())
    for margin in _PLANTING_MARGINS:
        try:
            planting_s = margin * await planter.rehearse(rig, clock, scale.hold_count)
            deadline = int(clock.now() + planting_s + _START_S + scale.quiet_s + _START_S) + 1
            return await _expire(rig, redis, planter, scale, clock, deadline)
        except _SpoiltError:
            continue
    raise FlashsaleError("the machine is too busy: the holds cannot be made to expire all at once, before a crowd")


async def _expire(rig: Rig, redis: Redis, planter: "_Planter", scale: Scale, clock: _Clock, deadline: int) -> _Round:
    stock = scale.hold_count + round(scale.rate_per_s * (scale.quiet_s + scale.loud_s))
    await rig.admin.init(_PRODUCT_ID, stock, force=True)
    await planter.plant(_PRODUCT_ID, clock, scale.hold_count, deadline)
    watching: list[asyncio.Task[float]] = []
    cpu_s = 0.0

    def load(duration_s: float) -> Load:
        return Load(
            host=rig.server.host,
            port=rig.server.port,
            product_id=_PRODUCT_ID,
            connection_count=scale.connection_count,
            duration_s=duration_s,
            rate_per_s=scale.rate_per_s,
        ).with_timeout()

    async def at_deadline() -> None:
        nonlocal cpu_s
        if clock.now() > deadline:
            raise _SpoiltError
        await clock.sleep_until(deadline)
        cpu_s = proc.cpu_s(rig.store_pid)
        watching.append(asyncio.create_task(_watch(redis, clock, deadline)))

    quiet = await run_load(load(scale.quiet_s))
    await clock.sleep_until(deadline - 2 * _START_S)  # the server closes connections that are silent for too long
    loud = await run_load(load(scale.loud_s), signal=at_deadline)
    back_s = await watching[0]
    cpu_s = proc.cpu_s(rig.store_pid) - cpu_s
    for result in (quiet, loud):
        if result.success_count != result.request_count:
            raise FlashsaleError(f"only SUCCESS was expected of '{_PRODUCT_ID}', not {dict(result.counts)}")
    status = await rig.admin.status(_PRODUCT_ID)
    bought = quiet.success_count + loud.success_count
    if back_s < _GIVEN_UP_S and (status.held, status.sold, status.remaining_stock) != (0, bought, stock - bought):
        raise FlashsaleError(f"{bought} of {stock} units were bought and all holds expired, but the store has {status}")
    return _Round(quiet, loud, back_s, cpu_s)


async def _watch(redis: Redis, clock: _Clock, deadline: int) -> float:
    """Return how long after the deadline no hold was left; _GIVEN_UP_S when some stayed too long."""
    deadlines_key = keys.key(_PRODUCT_ID, "deadlines")
    while clock.now() < deadline + _GIVEN_UP_S:
        if not await redis.zcard(deadlines_key):
            return clock.now() - deadline
        await asyncio.sleep(_POLL_S)
    return _GIVEN_UP_S


class _SpoiltError(Exception):
    """The deadline came before everything was ready for it, or not all holds have the same."""


class _Planter:
    """Makes holds, a full batch at a time."""

    def __init__(self, engine: RedisEngine) -> None:
        self._engine = engine
        self._sequence = 0

    async def rehearse(self, rig: Rig, clock: _Clock, count: int) -> float:
        """Plant some on a product of its own; return how long so many should take."""
        planted = min(count, _REHEARSAL_COUNT * _BATCH_COUNT)
        await rig.admin.init(_REHEARSAL_ID, planted, force=True)
        await clock.sleep_until(int(clock.now()) + 1)  # so that it need not wait for a second to pass
        begun = clock.now()
        await self.plant(_REHEARSAL_ID, clock, planted, int(begun) + 600)
        took_s = clock.now() - begun
        await rig.admin.reset(_REHEARSAL_ID)
        return took_s * count / planted

    async def plant(self, product_id: str, clock: _Clock, count: int, deadline: int) -> None:
        """Hold as many units, one each, until the deadline."""
        for first in range(0, count, _BATCH_COUNT):
            if clock.now() % 1 > _SECOND_END:
                await clock.sleep_until(int(clock.now()) + 1.01)
            hold_seconds = deadline - math.ceil(clock.now())
            if hold_seconds < 1:
                raise _SpoiltError
            last = min(first + _BATCH_COUNT, count)
            holds = [
                Reserve(product_id, f"holder_{number}", hold_seconds=hold_seconds) for number in range(first, last)
            ]
            self._sequence += 1
            [outcome] = await self._engine.commit([Batch(product_id, holds, self._sequence)], timeout_s=_CALL_TIMEOUT_S)
            if not isinstance(outcome, list):
                raise FlashsaleError(f"the holds could not be planted: {outcome}")
            if any(not isinstance(answer, Held) for answer in outcome):
                raise FlashsaleError(f"the holds could not be planted: {outcome[0]}")
            if any(isinstance(answer, Held) and answer.expires_at != deadline for answer in outcome):
                raise _SpoiltError


@asynccontextmanager
async def _planter(store_url: str) -> AsyncIterator["_Planter"]:
    engine = RedisEngine(store_url)
    await engine.open()
    try:
        yield _Planter(engine)
    finally:
        await engine.close()
