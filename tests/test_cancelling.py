"""What runs beside the doors ends when it is cancelled, in whatever step of a call to the store that comes.

One that goes on keeps the server from ending, for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import pytest

from flashsale.expiry import Sweeper
from flashsale.metrics import Board
from flashsale.sampling import Sampler
from flashsale.scheduling import Scheduler
from flashsale.store.calendar import RedisCalendar
from flashsale.store.overview import Overview
from flashsale.store.schedules import RedisSchedules

STEP_COUNT = 40
"""Turns of the event loop after which one is cancelled; a look has some thirty."""
PATIENCE_S = 0.3
"""Less than the pause after which one that goes on does something again."""


class Running(Protocol):
    async def run(self) -> None: ...


@asynccontextmanager
async def make_sweeper(url: str) -> AsyncIterator[Running]:
    calendar = RedisCalendar(url)
    yield Sweeper(calendar, lambda *_: None)
    await calendar.close()


@asynccontextmanager
async def make_scheduler(url: str) -> AsyncIterator[Running]:
    schedules = RedisSchedules(url)
    yield Scheduler(schedules)
    await schedules.close()


@asynccontextmanager
async def make_sampler(url: str) -> AsyncIterator[Running]:
    overview, board = Overview(url), Board(1)
    board.slots[0].begin(1, 0.0)
    sampler = Sampler(board, board.slots[0], overview.look)
    looking = asyncio.create_task(sampler.next())
    await asyncio.sleep(0)  # only for one who waits does it ask the store
    yield sampler
    looking.cancel()
    await asyncio.wait({looking})
    await overview.close()


@pytest.mark.parametrize("make", [make_sweeper, make_scheduler, make_sampler])
async def test_it_ends_whenever_it_is_cancelled(store_url: str, make: object) -> None:
    async with AsyncExitStack() as stack:
        tasks = []
        for step_count in range(STEP_COUNT):
            running = await stack.enter_async_context(make(store_url))  # type: ignore[operator]
            task = asyncio.create_task(running.run())
            for _ in range(step_count):
                await asyncio.sleep(0)
            task.cancel()
            tasks.append(task)
        _, going_on = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in going_on:
            task.cancel()
        assert not going_on
