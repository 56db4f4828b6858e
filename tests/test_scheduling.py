"""Recurring sales: on a real store, with periods of a second or two, which no command allows but the store does."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import structs
from redis.asyncio import Redis

from flashsale import scheduling
from flashsale.domain.answers import Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Purchase
from flashsale.domain.schedules import Due, Schedule, period_begin
from flashsale.errors import ProductNotFoundError, RefusedError, ScheduleNotFoundError
from flashsale.scheduling import Scheduler
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from flashsale.store.schedules import Overview, RedisSchedules

LONG_S = 7 * 86_400  # a period of this length ends during no test
WEEKLY = Schedule(name="weekly", every_s=LONG_S, item_count=10_000, limit=10, numbered=True, hold_s=60)


@pytest.fixture
async def redis(embedded: EmbeddedStore) -> AsyncIterator[Redis]:
    """A client of a store of this module's own, which is empty."""
    async with Redis.from_url(embedded.url, decode_responses=True) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def admin(embedded: EmbeddedStore, redis: Redis) -> AsyncIterator[Admin]:
    async with Admin(embedded.url) as operator:
        yield operator


async def open_due(schedules: RedisSchedules) -> Overview:
    """Have opened what is due; return what there is then."""
    for due in (await schedules.look()).due:
        await schedules.open(due)
    return await schedules.look()


@asynccontextmanager
async def scheduler(url: str) -> AsyncIterator[Scheduler]:
    """A scheduler that does not run yet."""
    schedules = RedisSchedules(url)
    try:
        yield Scheduler(schedules)
    finally:
        await schedules.close()


# What an operator says


async def test_the_sale_of_the_period_is_opened_on_the_terms_of_its_schedule(admin: Admin, redis: Redis) -> None:
    await admin.schedules.add(WEEKLY)
    look = await open_due(admin.schedules)
    sale = look.current["weekly"]
    assert sale.begins_at == period_begin(LONG_S, int(look.now_s))
    assert (sale.ends_at - sale.begins_at, sale.item_count, sale.numbered) == (LONG_S, 10_000, True)
    found = await admin.sale(sale.product_id)
    assert (found.remaining, found.version, found.state) == (10_000, 1, "open")
    terms = found.terms
    assert (terms.opens_at, terms.closes_at) == (sale.begins_at, sale.ends_at)
    assert (terms.limit, terms.hold_s, terms.hold_total_s, terms.numbered) == (10, 60, 3_600, True)
    assert (await admin.audit(sale.product_id)).ok
    assert look.due == []
    assert await redis.zscore("schedules_sales", sale.product_id) == sale.ends_at + WEEKLY.keep_s


async def test_a_schedule_is_added_once_and_changed_only_when_that_is_meant(admin: Admin) -> None:
    other = structs.replace(WEEKLY, item_count=500)
    assert await admin.schedules.add(WEEKLY) is None
    assert await admin.schedules.add(WEEKLY) == WEEKLY
    with pytest.raises(RefusedError, match="'weekly' has other terms: --replace changes them"):
        await admin.schedules.add(other)
    assert (await admin.schedules.look()).schedules == {"weekly": WEEKLY}
    assert await admin.schedules.add(other, replace=True) == WEEKLY
    assert await admin.schedules.add(WEEKLY, replace=True) == other
    assert (await admin.schedules.look()).schedules == {"weekly": WEEKLY}


async def test_of_two_who_add_a_name_at_once_one_is_first(admin: Admin, embedded: EmbeddedStore) -> None:
    wanted = [structs.replace(WEEKLY, item_count=number) for number in range(1, 9)]
    async with AsyncExitStack() as stack:
        admins = [await stack.enter_async_context(Admin(embedded.url)) for _ in wanted]
        results = await asyncio.gather(
            *(one.schedules.add(schedule) for one, schedule in zip(admins, wanted, strict=True)), return_exceptions=True
        )
    first = results.index(None)
    assert all(isinstance(result, RefusedError) for n, result in enumerate(results) if n != first)
    assert (await admin.schedules.look()).schedules == {"weekly": wanted[first]}


async def test_a_removed_schedule_has_no_further_sale_but_the_one_that_goes_on(admin: Admin) -> None:
    await admin.schedules.add(WEEKLY)
    before = (await open_due(admin.schedules)).current
    await admin.schedules.remove("weekly")
    after = await open_due(admin.schedules)
    assert (after.current, after.schedules) == (before, {})
    with pytest.raises(ScheduleNotFoundError, match=r"^Schedule 'weekly' not found$"):
        await admin.schedules.remove("weekly")
    await admin.schedules.add(WEEKLY)
    assert (await open_due(admin.schedules)).current == before


async def test_there_are_so_many_schedules_and_no_more(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashsale.store.schedules.SCHEDULE_COUNT_MAX", 2)
    for name in ("a", "b"):
        await admin.schedules.add(structs.replace(WEEKLY, name=name))
    with pytest.raises(RefusedError, match="There are 2 schedules already"):
        await admin.schedules.add(WEEKLY)
    assert await admin.schedules.add(structs.replace(WEEKLY, name="b")) is not None


# One sale for each period


async def test_what_was_opened_once_is_not_opened_again(admin: Admin) -> None:
    await admin.schedules.add(WEEKLY)
    seen = await admin.schedules.look()
    sale = (await open_due(admin.schedules)).current["weekly"].product_id
    assert [await admin.schedules.open(due) for due in seen.due] == [False]  # whoever looked before
    await admin.reset(sale)
    assert (await open_due(admin.schedules)).due == []
    await admin.schedules.remove("weekly")
    await admin.schedules.add(WEEKLY)
    assert (await open_due(admin.schedules)).due == []
    for ask in (admin.status, admin.reopen):
        with pytest.raises(ProductNotFoundError):
            await ask(sale)


async def test_what_is_opened_anew_is_still_the_sale_of_the_period(admin: Admin) -> None:
    await admin.schedules.add(WEEKLY)
    before = (await open_due(admin.schedules)).current
    [sale] = before.values()
    assert await admin.reopen(sale.product_id) == WEEKLY.item_count
    after = await open_due(admin.schedules)
    assert (after.due, after.current) == ([], before)


async def test_a_sale_that_is_there_without_a_note_is_that_of_the_period(admin: Admin, redis: Redis) -> None:
    await admin.schedules.add(WEEKLY)
    sale = (await open_due(admin.schedules)).current["weekly"]
    await admin.schedules.forget(["weekly"])
    look = await admin.schedules.look()
    assert [await admin.schedules.open(due) for due in look.due] == [False]
    assert (await admin.schedules.look()).current == {"weekly": sale}
    assert await redis.xlen(f"product:{sale.product_id}:orders") == 1


async def test_a_schedule_that_was_removed_and_comes_with_other_terms_finds_its_sale_as_it_is(
    admin: Admin, redis: Redis
) -> None:
    await admin.schedules.add(WEEKLY)
    before = (await open_due(admin.schedules)).current["weekly"]
    await admin.schedules.remove("weekly")
    await admin.schedules.forget(["weekly"])
    await admin.schedules.add(structs.replace(WEEKLY, item_count=7, numbered=False))
    assert (await open_due(admin.schedules)).current["weekly"] == before
    await admin.schedules.remove("weekly")
    await admin.schedules.forget(["weekly"])
    await admin.schedules.add(structs.replace(WEEKLY, every_s=LONG_S // 7))
    other = (await open_due(admin.schedules)).current["weekly"]
    assert other.product_id != before.product_id
    assert (await admin.sale(other.product_id)).terms.closes_at == other.ends_at


async def test_nothing_is_opened_for_whoever_saw_another_store_or_another_time(admin: Admin, redis: Redis) -> None:
    await admin.schedules.add(WEEKLY)
    [due] = (await admin.schedules.look()).due
    for shift_s in (-LONG_S, LONG_S, 1):
        assert not await admin.schedules.open(structs.replace(due, begins_at=due.begins_at + shift_s))
    assert await redis.keys() == ["schedules"]
    await redis.flushall()
    assert not await admin.schedules.open(due)
    assert await redis.keys() == []


async def test_a_sale_that_a_wrong_clock_has_opened_keeps_none_from_being_opened(
    admin: Admin, embedded: EmbeddedStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "_RETIRE_S", 0)
    hourly = structs.replace(WEEKLY, name="hourly", every_s=3_600)
    for schedule in (WEEKLY, hourly):
        await admin.schedules.add(schedule)
    for before in (
        await open_due(admin.schedules)
    ).current.values():  # then the clock was far ahead, and is right again
        ends_at = before.ends_at + 9 * LONG_S
        ahead = structs.replace(before, product_id="x", begins_at=before.begins_at + 9 * LONG_S, ends_at=ends_at)
        await redis.hset("schedules_opened", before.schedule, msgspec.json.encode(ahead).decode())
    await admin.schedules.remove("hourly")
    look = await admin.schedules.look()
    assert look.current == {}
    assert [due.schedule for due in look.due] == [WEEKLY]
    async with scheduler(embedded.url) as it:
        await it.start()
        assert it.current is not None
        assert await admin.sale(it.current.product_id)
        assert (it.current.schedule, it.current.begins_at) == ("weekly", period_begin(LONG_S, int(look.now_s)))
    assert await redis.hkeys("schedules_opened") == ["weekly"]
    assert await redis.xlen(f"product:{it.current.product_id}:orders") == 1, "it is the one that there was"


async def test_while_a_sale_goes_on_there_is_no_other_one(admin: Admin) -> None:
    await admin.schedules.add(WEEKLY)
    sale = (await open_due(admin.schedules)).current["weekly"]
    shorter = structs.replace(WEEKLY, every_s=1)
    await admin.schedules.add(shorter, replace=True)
    for _ in range(3):  # in case that a second ends just then
        assert not await admin.schedules.open(Due(shorter, await admin.now()))
    assert await admin.products() == [sale.product_id]


async def test_other_terms_hold_from_the_next_sale_on(admin: Admin) -> None:
    await admin.schedules.add(structs.replace(WEEKLY, every_s=2))
    before = (await open_due(admin.schedules)).current["weekly"]
    await admin.schedules.add(structs.replace(WEEKLY, every_s=1, item_count=7), replace=True)
    async with asyncio.timeout(10):
        while (after := (await open_due(admin.schedules)).current.get("weekly", before)) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the store's clock goes on by itself
    assert after.begins_at >= before.ends_at
    assert (await admin.status(after.product_id)).remaining_stock == after.item_count == 7


async def test_three_race_over_the_boundaries_while_the_crowd_buys(
    admin: Admin, embedded: EmbeddedStore, redis: Redis
) -> None:
    item_count, limit = 40, 3
    await admin.schedules.add(
        Schedule(name="each", every_s=1, item_count=item_count, limit=limit, numbered=True, keep_s=60)
    )
    sold: Counter[tuple[str, int | None]] = Counter()

    async def buy(ours: Scheduler, enough: asyncio.Event) -> None:
        engine = RedisEngine(embedded.url)
        for number in count():
            sale = ours.current
            if sale is not None:
                ask = Purchase(sale.product_id, f"user {number % 20}", item_id=1 + number % item_count)
                [answers] = await engine.commit([Batch(sale.product_id, [ask], number + 1)], timeout_s=30)
                assert isinstance(answers, list), answers
                [answer] = answers
                if isinstance(answer, Success):
                    sold[sale.product_id, answer.item_id] += 1
            await asyncio.sleep(0.005)
            if enough.is_set():
                break
        await engine.close()

    async with AsyncExitStack() as stack:
        three = [await stack.enter_async_context(scheduler(embedded.url)) for _ in range(3)]
        for running_s, pause_s in ((2.2, 2.1), (0.2, 0)):  # nobody looks for more than a period, which is missed
            enough = asyncio.Event()
            running = [asyncio.create_task(one.run()) for one in three]
            buying = asyncio.gather(*(buy(one, enough) for one in three))
            await asyncio.wait([buying], timeout=running_s)
            enough.set()
            await buying
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            stopped_at = (await redis.time())[0]
            await asyncio.sleep(pause_s)
    sales = sorted(await redis.smembers("products"))
    begins = [int(sale.split("_")[1]) for sale in sales]
    assert len(set(begins)) == len(begins) >= 4
    assert begins[-1] - begins[0] >= len(begins), "at least one period was missed, and not made up"
    assert stopped_at in begins
    for sale, begins_at in zip(sales, begins, strict=True):
        entries = await redis.xrange(f"product:{sale}:orders")
        assert entries[0][1]["changes"] == f'[["opened",{item_count},"",{item_count}]]'
        if begins_at - 1 in begins:
            assert 0 <= int(entries[0][1]["at"]) / 1000 - begins_at < 1
        assert (await admin.audit(sale)).ok
        assert (await admin.sale(sale)).sold == sum(n for (of, _), n in sold.items() if of == sale) <= item_count
        assert max(map(int, await redis.hvals(f"product:{sale}:users")), default=0) <= limit
    assert set(sold.values()) == {1}, "each item has one owner"
    assert len(sold) > 2 * item_count


@pytest.mark.parametrize(("left_s", "pause_s", "is_tidied"), [(1.5, 1.0, False), (0.4, 0.4, False), (3.0, 0.7, True)])
async def test_what_is_not_urgent_keeps_no_sale_from_being_opened_in_time(
    admin: Admin,
    embedded: EmbeddedStore,
    monkeypatch: pytest.MonkeyPatch,
    left_s: float,
    pause_s: float,
    *,
    is_tidied: bool,
) -> None:
    monkeypatch.setattr(scheduling, "_RETIRE_S", 0)

    class Slow(RedisSchedules):
        tidied = False

        async def look(self) -> Overview:
            found = await super().look()
            return structs.replace(found, now_s=period_begin(LONG_S, int(found.now_s)) + LONG_S - left_s)

        async def retire(self) -> int:
            self.tidied = True
            await asyncio.sleep(0.3)
            return await super().retire()

    await admin.schedules.add(WEEKLY)
    await open_due(admin.schedules)
    schedules = Slow(embedded.url)
    assert await Scheduler(schedules)._step() == pytest.approx(pause_s, abs=0.25)
    assert schedules.tidied == is_tidied
    await schedules.close()


# What it knows, and what it does in trouble


async def test_the_first_by_name_is_the_current_one(admin: Admin, embedded: EmbeddedStore) -> None:
    async with scheduler(embedded.url) as it:
        await it.start()
        assert it.current is it.find() is it.find("weekly") is None
        for name in ("weekly", "b", "a"):
            await admin.schedules.add(structs.replace(WEEKLY, name=name))
        await it.start()
        assert it.current is not None
        assert [it.current.schedule, it.find("b").schedule] == ["a", "b"]  # type: ignore[union-attr]
        assert it.find("c") is None


async def test_a_store_that_dies_is_waited_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    try:
        async with Admin(store.url) as admin, scheduler(store.url) as it:
            await admin.schedules.add(WEEKLY)
            await it.start()
            sale = it.current
            assert sale is not None
            async with Redis.from_url(store.url) as client:
                await client.shutdown(nosave=True, now=True)
            for _ in range(3):
                await it.start()
                assert it.current == sale
            told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert 1 <= len(told) == len(set(told)) <= 2  # once the link broke, and then there is none
            assert all(line.startswith("schedules are not looked at: cannot reach Redis at unix:") for line in told)
            await asyncio.to_thread(store.acquire)
            await it.start()
            assert it.current == sale
            assert await admin.products() == [sale.product_id]
    finally:
        store.release()


async def test_a_schedule_that_cannot_be_opened_hinders_no_other(
    admin: Admin, embedded: EmbeddedStore, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        await admin.schedules.add(structs.replace(WEEKLY, name=name))
    [due, _] = (await admin.schedules.look()).due
    await redis.sadd(f"product:{due.product_id}:sale", "somebody else's")
    await redis.set(f"product:{due.product_id}:stock", "x")
    await redis.hset("schedules_opened", "a", "somebody else's")
    await redis.hset("schedules", cast("Any", b"\xff"), "{}")
    await redis.hset("schedules", mapping={"c": "{}", "d": '{"name":"d","every_s":0,"item_count":1}'})
    async with scheduler(embedded.url) as it:
        await it.start()
        assert it.current is not None
        assert it.current.schedule == "b"
        await it.start()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("the sale of schedule 'a' is not opened: ")
    assert (await redis.get(f"product:{due.product_id}:stock")) == "x"


async def test_a_bug_ends_no_scheduler(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = asyncio.Event()

    class Broken(RedisSchedules):
        look_count = 0

        async def look(self) -> Overview:
            self.look_count += 1
            if self.look_count == 3:
                looks.set()
            raise RuntimeError("a bug")

    monkeypatch.setattr(scheduling, "_LOOK_S", 0.01)
    task = asyncio.create_task(Scheduler(Broken("redis://127.0.0.1:1")).run())
    async with asyncio.timeout(10):
        await looks.wait()
    task.cancel()
    await asyncio.wait([task])
    assert "the scheduler failed" in caplog.text


async def test_what_is_known_of_removed_schedules_is_forgotten_in_the_end(
    admin: Admin, embedded: EmbeddedStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.schedules.add(WEEKLY)
    await admin.schedules.add(structs.replace(WEEKLY, name="gone", every_s=1))
    async with scheduler(embedded.url) as it:
        await it.start()
        await admin.schedules.remove("gone")
        gone = it.find("gone")
        assert gone is not None
        async with asyncio.timeout(10):
            while (await admin.schedules.look()).now_s < gone.ends_at:  # noqa: ASYNC110 - it is the store's clock
                await asyncio.sleep(0.05)
    async with scheduler(embedded.url) as another:
        await another.start()
        assert another.find("gone") is None
        assert await redis.hlen("schedules_opened") == 2, "nothing is tidied up with the first look"
        monkeypatch.setattr(scheduling, "_RETIRE_S", 0)
        await another.start()
    assert await redis.hkeys("schedules_opened") == ["weekly"]


async def test_what_was_opened_is_compared_with_the_database(admin: Admin, embedded: EmbeddedStore) -> None:
    calls = 0

    async def compare() -> None:
        nonlocal calls
        calls += 1

    await admin.schedules.add(WEEKLY)
    schedules = RedisSchedules(embedded.url)
    for _ in range(2):
        await Scheduler(schedules, compare=compare).start()
    await schedules.close()
    assert calls == 1
