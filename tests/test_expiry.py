"""The sweeper's own logic, with a calendar that says what it is told; then what the real one finds in a store.

Both together are in tests/e2e/test_expiry.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from flashsale import expiry
from flashsale.domain.answers import BUSY, NOT_EXECUTED, NOT_FOUND, UNKNOWN, Answer, Swept
from flashsale.domain.requests import Request, Sweep
from flashsale.errors import StoreUnavailableError
from flashsale.expiry import Sweeper
from flashsale.store import calendar as store_calendar
from flashsale.store import keys
from flashsale.store.calendar import RedisCalendar


class FakeCalendar:
    def __init__(self, *products: str) -> None:
        self.products = list(products)
        self.error: Exception | None = None
        self.look_count = 0

    async def due(self) -> tuple[list[str], float]:
        self.look_count += 1
        if self.error is not None:
            raise self.error
        return list(self.products), 3600.0

    async def forget(self, product_id: str) -> None:
        self.products.remove(product_id)


class Asked:
    """Where the sweeper submits; answers when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sweep, Sweeper, int]] = []

    def submit(self, request: Request, sink: object, ticket: int) -> None:
        assert isinstance(request, Sweep)
        assert isinstance(sink, Sweeper)
        self.waiting.append((request, sink, ticket))

    def answer(self, answer: Answer) -> None:
        _, sink, ticket = self.waiting.pop(0)
        sink.answer(ticket, answer)
        sink.flush()

    @property
    def products(self) -> list[str]:
        return [request.product_id for request, _, _ in self.waiting]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_LOOK_S", 0.01)


@asynccontextmanager
async def sweeping(calendar: FakeCalendar) -> AsyncIterator[Asked]:
    asked = Asked()
    task = asyncio.create_task(Sweeper(calendar, asked.submit).run())
    yield asked
    task.cancel()
    await asyncio.wait({task})


async def looks(calendar: FakeCalendar, count: int = 3) -> None:
    """Wait for so many more looks at the calendar."""
    seen = calendar.look_count
    async with asyncio.timeout(10):
        while calendar.look_count < seen + count:  # noqa: ASYNC110 - the sweeper is not to know that it is watched
            await asyncio.sleep(0.005)


async def test_each_due_product_is_asked_for_once_at_a_time() -> None:
    calendar = FakeCalendar("a", "b")
    async with sweeping(calendar) as asked:
        await looks(calendar)
        assert sorted(asked.products) == ["a", "b"]
        asked.answer(Swept(more=False))
        await looks(calendar)
        assert sorted(asked.products) == ["a", "b"], "what is due again is asked for again"


async def test_more_of_a_product_is_asked_for_at_once() -> None:
    calendar = FakeCalendar("a")
    async with sweeping(calendar) as asked:
        await looks(calendar)
        seen = calendar.look_count
        for _ in range(5):
            asked.answer(Swept(more=True))
            assert asked.products == ["a"]
        assert calendar.look_count == seen, "it does not wait for the next look"


async def test_once_cancelled_it_asks_for_no_more_so_that_draining_ends() -> None:
    calendar = FakeCalendar("a")
    async with sweeping(calendar) as asked:
        await looks(calendar)
    assert asked.products == ["a"]
    asked.answer(Swept(more=True))
    assert asked.products == []


@pytest.mark.parametrize("answer", [BUSY, UNKNOWN, NOT_EXECUTED])
async def test_a_sweep_that_failed_is_tried_again_with_the_next_look(answer: Answer) -> None:
    calendar = FakeCalendar("a")
    async with sweeping(calendar) as asked:
        await looks(calendar)
        asked.answer(answer)
        assert asked.products == []
        await looks(calendar)
        assert asked.products == ["a"]


async def test_a_product_that_is_gone_is_forgotten() -> None:
    calendar = FakeCalendar("gone", "b")
    async with sweeping(calendar) as asked:
        await looks(calendar)
        asked.waiting.sort(key=lambda item: item[0].product_id == "b")
        asked.answer(NOT_FOUND)
        await looks(calendar)
        assert calendar.products == ["b"]
        assert asked.products == ["b"]


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a bug")])
async def test_trouble_is_waited_out_and_told_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    calendar = FakeCalendar("a")
    calendar.error = error
    async with sweeping(calendar) as asked:
        await looks(calendar, 5)
        calendar.error = None
        await looks(calendar)
        assert asked.products == ["a"]
    if isinstance(error, StoreUnavailableError):
        assert [record.getMessage() for record in caplog.records] == ["holds are not swept: away"]


# What is due in a store


@pytest.fixture
async def calendar(
    store_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisCalendar]:
    monkeypatch.setattr(store_calendar, "_PAGE_COUNT", 2)
    await redis_client.delete(keys.PRODUCTS_DUE)
    it = RedisCalendar(store_url)
    yield it
    await it.close()
    await redis_client.delete(keys.PRODUCTS_DUE)


async def test_what_is_due_is_found_and_when_the_next_is(calendar: RedisCalendar, redis_client: Redis) -> None:
    assert await calendar.due() == ([], 3600.0)
    now_s = (await redis_client.time())[0]
    await redis_client.zadd(keys.PRODUCTS_DUE, {"a": now_s - 1, "b": now_s + 100})
    for _ in range(2):
        due, next_s = await calendar.due()
        assert due == ["a"]
        assert 90 < next_s <= 100
    await calendar.forget("a")
    assert (await calendar.due())[0] == []


async def test_products_that_stay_due_hide_no_others(calendar: RedisCalendar, redis_client: Redis) -> None:
    now_s = (await redis_client.time())[0]
    await redis_client.zadd(keys.PRODUCTS_DUE, {f"damaged {number}": now_s - 100 for number in range(4)})
    await redis_client.zadd(keys.PRODUCTS_DUE, {"a": now_s - 1, "b": now_s + 100})
    looks = [await calendar.due() for _ in range(4)]
    assert [due for due, _ in looks] == [["damaged 0", "damaged 1"], ["damaged 2", "damaged 3"], ["a"], looks[0][0]]
    assert looks[2][1] == 0.0, "the front is looked at again at once"
    assert looks[0][1] == looks[1][1] > 1, "but not again and again"
    await redis_client.delete(keys.PRODUCTS_DUE)
    assert await calendar.due() == ([], 0.0)
    assert await calendar.due() == ([], 3600.0)
