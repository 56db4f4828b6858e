"""The sampler: what it writes down, what those who look get, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from flashsale import sampling
from flashsale.live import ProductView
from flashsale.metrics import CONNECTS, QUEUE, REQUESTS, Board, place_of
from flashsale.sampling import Sampler

PRODUCT = ProductView(product_id="p", units=1, remaining=1, sold=0, held=0, state="open", lag=0)
SOLD = place_of(REQUESTS, "purchase", "SUCCESS")


class Scene:
    """A board, a clock, and a store that may be away."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.products: list[ProductView] | None = [PRODUCT]
        self.look_count = 0
        self.board = Board(2)
        for number, slot in enumerate(self.board.slots):
            slot.begin(number + 1, 100.0)
        self.sampler = Sampler(self.board, self.board.slots[0], self.look, lambda: self.now_s)

    async def look(self) -> list[ProductView] | None:
        self.look_count += 1
        return self.products

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.sampler.run())
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10):
                yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_gauges_are_written_down_and_counters_go_on() -> None:
    scene = Scene()
    words = scene.board.slots[0].words
    words[place_of(CONNECTS)] = 5  # of the worker before
    waiting, connects = [7], [1]
    scene.sampler.watch({place_of(QUEUE): lambda: waiting[0], place_of(CONNECTS): lambda: connects[0]})
    first, other = scene.sampler.read()
    assert (first.value(QUEUE), first.value(CONNECTS)) == (7, 6)
    assert (other.value(QUEUE), other.value(CONNECTS)) == (0, 0)
    waiting[0], connects[0] = 3, 2
    first, _ = scene.sampler.read()
    assert (first.value(QUEUE), first.value(CONNECTS)) == (3, 7)
    assert await scene.sampler.products() == [PRODUCT]


async def test_a_look_is_about_the_time_since_the_beat_before_the_last_and_is_shared() -> None:
    scene = Scene()
    scene.board.slots[1].words[SOLD] += 10
    scene.now_s += 2
    found = await scene.sampler.look()
    assert (found.rate, found.totals, found.store_up) == (5.0, {"SUCCESS": 10}, True)
    scene.board.slots[0].words[SOLD] += 100
    scene.now_s += 0.4
    assert await scene.sampler.look() is found
    assert scene.look_count == 1
    scene.products = None
    scene.now_s += 0.1
    found = await scene.sampler.look()
    assert (found.rate, found.totals, found.store_up) == (44.0, {"SUCCESS": 110}, False)


async def test_nothing_is_looked_at_while_nobody_looks_and_all_who_do_see_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "BEAT_S", 0.01)
    scene = Scene()
    async with scene.running():
        for _ in range(3):
            scene.now_s += 1
            await asyncio.sleep(0.02)
        assert scene.look_count == 0
        listeners = [asyncio.create_task(scene.sampler.next()) for _ in range(5)]
        await asyncio.sleep(0)
        scene.board.slots[1].words[SOLD] += 10
        scene.now_s += 1
        first, *others = await asyncio.gather(*listeners)
        assert all(other is first for other in others)
        assert first.totals == {"SUCCESS": 10}
        assert first.rate > 0
        assert scene.look_count == 1


async def test_a_bug_leaves_nobody_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sampling, "BEAT_S", 0.01)

    async def broken() -> list[ProductView] | None:
        raise ValueError("a bug")

    scene = Scene()
    scene.sampler = Sampler(scene.board, scene.board.slots[0], broken, lambda: scene.now_s)
    async with scene.running():
        scene.now_s += 1
        with pytest.raises(ValueError, match="a bug"):
            await scene.sampler.next()
    assert "the sampler failed" in caplog.text
