"""Recurring sales and the database: what is over leaves the store once its orders are rows; nothing is sold twice."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import sqlalchemy as sa

from flashsale.domain.answers import Success
from flashsale.domain.batches import Defective
from flashsale.domain.requests import Cancel, Purchase, Reserve
from flashsale.domain.sale import PLAIN, Standing, Terms
from flashsale.domain.schedules import KEEP_S, CurrentSale, Schedule
from flashsale.errors import ProductNotFoundError, RefusedError
from flashsale.orders.fence import Fence
from flashsale.orders.history import read_base
from flashsale.orders.mover import Mover
from flashsale.orders.tables import orders, products
from flashsale.scheduling import Scheduler
from flashsale.store import admin as store_admin
from flashsale.store import keys, scripts
from flashsale.store import schedules as store_schedules
from flashsale.store.admin import Admin
from flashsale.store.outbox import RedisOutbox
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, Shop

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True, scope="module")

LONG_S = 7 * 86_400  # a period of this length ends during no test


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_schedules, "_STAY_S", 0)


async def opened(admin: Admin, name: str = "s") -> CurrentSale:
    """Have the sale of a schedule opened."""
    await admin.schedules.add(Schedule(name=name, every_s=LONG_S, item_count=50, limit=10, numbered=True, keep_s=0))
    for due in (await admin.schedules.look()).due:
        await admin.schedules.open(due)
    return (await admin.schedules.look()).opened[name]


async def over(shop: Shop, admin: Admin, sale: CurrentSale) -> None:
    """Have the store hold what it would hold just after the end of a sale."""
    now_s = await admin.now()
    await shop.redis.hset(f"product:{sale.product_id}:sale", "closes_at", now_s)
    await shop.redis.zadd("schedules_sales", {sale.product_id: now_s})


async def check(shop: Shop) -> list[str]:
    """Return what a fence freezes."""
    outbox = RedisOutbox(shop.embedded.url)
    frozen = await Fence(outbox, shop.database, writes=True).check()
    await outbox.close()
    return frozen


async def moved(shop: Shop) -> None:
    async with shop.mover() as mover:
        await shop.step(mover)


async def state_of(shop: Shop, product_id: str) -> str:
    async with shop.database.reading() as connection:
        return str(await connection.scalar(sa.select(products.c.state).where(products.c.product_id == product_id)))


async def keys_of(shop: Shop, product_id: str) -> list[bytes]:
    return [key async for key in shop.redis.scan_iter(f"product:{product_id}:*")]


async def test_a_sale_leaves_the_store_once_all_of_it_is_in_the_database(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    product = sale.product_id
    orders_made = await shop.buy(product, *(f"u{number % 5}" for number in range(20)))
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 0, "nothing else knows of its orders"
    async with shop.mover() as mover:
        await mover.look()
        assert await check(shop) == []
        assert await admin.schedules.retire() == 0, "they are not there yet"
        await shop.step(mover)
    rows = await plain.read(shop.database)
    assert await admin.schedules.retire() == 1
    assert await admin.schedules.retire() == 0
    assert await keys_of(shop, product) == []
    assert await admin.products() == await admin.audited_products() == []
    assert await shop.redis.keys("schedules_sales") == []

    assert await check(shop) == []
    assert await state_of(shop, product) == "reset"
    for _ in range(2):
        await moved(shop)
        assert await check(shop) == []
    assert await keys_of(shop, product) == []
    with pytest.raises(ProductNotFoundError):
        await admin.status(product)
    assert (await plain.read(shop.database))["orders"] == rows["orders"]
    async with shop.database.reading() as connection:
        assert set(await connection.scalars(sa.select(orders.c.order_id))) == set(orders_made)


async def test_what_a_relay_has_published_may_be_in_no_database(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    await shop.buy(sale.product_id, *(f"u{number}" for number in range(5)))
    relayed = RedisOutbox(shop.embedded.url, stores=False)
    [epoch] = (await relayed.epochs()).values()
    await relayed.note(sale.product_id, epoch, 6)
    await relayed.close()
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 0
    assert (await admin.status(sale.product_id)).sold == 5
    await moved(shop)
    assert await admin.schedules.retire() == 1


async def test_what_a_database_that_was_set_back_does_not_have_stays(
    shop: Shop, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = await opened(admin)
    await shop.buy(sale.product_id, "a")
    await moved(shop)
    await over(shop, admin, sale)
    rows = await plain.read(shop.database)
    await plain.clear(shop.database)
    monkeypatch.setattr(store_admin, "_MOVE_LOOKS", 1)
    async with shop.mover() as mover:
        await mover.look()
        assert await admin.schedules.retire() == 0
        with pytest.raises(RefusedError, match=r"2 changes of product .* are not in the database yet"):
            await admin.reset(sale.product_id)
        with pytest.raises(RefusedError, match=r"2 changes of product .* are not in the database yet"):
            await admin.init(sale.product_id, 5, force=True)
        await shop.step(mover)
    assert await plain.read(shop.database) == rows
    assert await admin.schedules.retire() == 1


async def test_a_sale_of_before_it_was_noted_what_is_in_the_database_is_deleted_too(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    await shop.buy(sale.product_id, "a")
    await moved(shop)
    await over(shop, admin, sale)
    await shop.redis.hdel(f"product:{sale.product_id}:sale", "stored")
    assert await admin.schedules.retire() == 0
    async with shop.mover() as mover:
        await mover.look()
    assert await admin.schedules.retire() == 1


async def test_what_is_held_is_waited_for(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    [held] = await shop.ask(sale.product_id, Reserve(sale.product_id, "a", item_id=7))
    await moved(shop)
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 0
    await shop.ask(sale.product_id, Cancel(held.code))
    await moved(shop)
    assert await admin.schedules.retire() == 1


async def test_what_an_operator_made_of_it_is_his(shop: Shop, admin: Admin) -> None:
    deleted = await opened(admin)
    await moved(shop)
    await over(shop, admin, deleted)
    await admin.reset(deleted.product_id)
    assert await admin.schedules.retire() == 0
    sale = await opened(admin, "other")
    await moved(shop)
    await over(shop, admin, sale)
    for terms in (PLAIN, Terms(closes_at=sale.ends_at)):
        await admin.init(sale.product_id, 5, terms, force=True)
        await moved(shop)
        await shop.redis.zadd("schedules_sales", {sale.product_id: 1})
        assert await admin.schedules.retire() == 0
        assert (await admin.status(sale.product_id)).remaining_stock == 5
        assert await shop.redis.keys("schedules_sales") == []


async def test_a_damaged_sale_hinders_no_other(
    shop: Shop, admin: Admin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_schedules, "_STAY_S", 60)
    damaged = await opened(admin)
    sale = await opened(admin, "other")
    await moved(shop)
    for one in (damaged, sale):
        await over(shop, admin, one)
    await shop.redis.delete(f"product:{damaged.product_id}:sale")
    await shop.redis.set(f"product:{damaged.product_id}:sale", "somebody else's")
    counts = [await admin.schedules.retire() for _ in range(2)]
    assert counts == [1, 0]
    told = [record.getMessage() for record in caplog.records if "is not deleted" in record.getMessage()]
    assert len(told) == 1, "it is left alone for a while"
    assert await keys_of(shop, damaged.product_id) != []


async def test_who_looked_too_early_deletes_nothing(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    await moved(shop)
    await over(shop, admin, sale)
    await shop.redis.zadd("schedules_sales", {sale.product_id: await admin.now() + 60})  # as another one has put it off
    names = (*keys.script_keys(sale.product_id), keys.MOVERS, keys.SCHEDULES_SALES)
    assert await admin.schedules._run(scripts.RETIRE, names, sale.product_id, 60) == 0
    assert await keys_of(shop, sale.product_id) != []


# A store that has lost a sale, and opens it once more


async def lose(shop: Shop, product_id: str) -> None:
    """Have the store hold what it held before the period; it runs on."""
    for key in [*await keys_of(shop, product_id), "schedules_opened", "schedules_sales"]:
        await shop.redis.delete(key)
    await shop.redis.srem("products", product_id)


async def move_and_lose(shop: Shop, fence: Fence, product_id: str) -> None:
    """Move what was sold into the database, a fence looking on, and have the store lose it."""
    async with shop.mover() as mover:
        await mover.look()
        assert await fence.check() == []
        await shop.step(mover)
    assert await fence.check() == []
    await lose(shop, product_id)


@asynccontextmanager
async def fenced(shop: Shop, kind: type[Fence] = Fence) -> AsyncIterator[Fence]:
    """A fence as a worker has it, which goes on from check to check."""
    outbox = RedisOutbox(shop.embedded.url)
    fence = kind(outbox, shop.database, writes=True)
    try:
        yield fence
    finally:
        await outbox.close()


@pytest.mark.parametrize("was_noted_as_reset", [False, True])
async def test_a_sale_that_the_store_has_lost_is_not_sold_a_second_time(
    shop: Shop, admin: Admin, *, was_noted_as_reset: bool
) -> None:
    sale = await opened(admin)
    product = sale.product_id
    await shop.buy(product, *(f"u{number % 5}" for number in range(45)))
    async with shop.mover() as mover:
        await mover.look()
        assert await check(shop) == []
        await shop.step(mover)
    if was_noted_as_reset:  # the store was set back to a copy from before the period
        await lose(shop, product)
        assert await check(shop) == []
        assert await state_of(shop, product) == "reset"
    else:
        await shop.redis.flushall()
    assert (await opened(admin)).product_id == product
    assert await check(shop) == [product]
    with pytest.raises(AssertionError, match="flashsale recover"):
        await shop.buy_of_each([product], "late")
    _, report = await admin.recover(product, partial(read_base, shop.database, product))
    assert report.ok, report.differences
    found = await admin.sale(product)
    assert (found.sold, found.remaining, found.state, found.terms.closes_at) == (45, 5, "open", sale.ends_at)
    answers = await shop.ask(product, *(Purchase(product, f"v{number}") for number in range(9)))
    assert sum(isinstance(answer, Success) for answer in answers) == 5
    await moved(shop)
    assert await check(shop) == []
    assert await state_of(shop, product) == "open"
    async with shop.database.reading() as connection:
        assert sorted(await connection.scalars(sa.select(orders.c.item_id))) == list(range(1, 51))


@pytest.mark.parametrize("was_noted_as_reset", [False, True])
async def test_who_opens_a_sale_asks_the_database_first(shop: Shop, admin: Admin, *, was_noted_as_reset: bool) -> None:
    sale = await opened(admin)
    product = sale.product_id
    await shop.buy(product, *(f"u{number}" for number in range(45)))
    schedules = admin.schedules
    async with fenced(shop) as fence:
        await move_and_lose(shop, fence, product)
        if was_noted_as_reset:
            assert await fence.check() == []
        await Scheduler(schedules, check=fence.check_due).start()
        assert await fence.check() == []
    assert (await schedules.look()).current == {"s": sale}
    assert await shop.redis.exists(f"product:{product}:stock") == 0
    with pytest.raises(AssertionError, match="flashsale recover"):
        await shop.buy_of_each([product], "late")
    await admin.recover(product, partial(read_base, shop.database, product))
    found = await admin.sale(product)
    assert (found.sold, found.remaining, found.state) == (45, 5, "open")


async def test_a_sale_that_was_taken_for_deleted_is_open_once_it_was_rebuilt(shop: Shop, admin: Admin) -> None:
    product = (await opened(admin)).product_id
    await shop.buy(product, "a")
    await moved(shop)
    async with fenced(shop) as fence:
        assert await fence.check() == []
        await lose(shop, product)
        assert await fence.check() == []
        assert await state_of(shop, product) == "reset"
        assert await fence.check_due([product]) == [product]
    await admin.recover(product, partial(read_base, shop.database, product))
    assert await shop.redis.hget(f"product:{product}:sale", "state") == b"open"
    await shop.buy(product, "b")
    assert (await admin.audit(product, partial(read_base, shop.database, product))).ok


async def test_what_the_database_does_not_know_is_opened(shop: Shop, admin: Admin) -> None:
    async with fenced(shop) as fence:
        await admin.schedules.add(Schedule(name="s", every_s=LONG_S, item_count=50))
        await Scheduler(admin.schedules, check=fence.check_due).start()
        [product] = await admin.products()
        await shop.buy(product, "a")
        await moved(shop)
        await admin.schedules.forget(["s"])
        await Scheduler(admin.schedules, check=fence.check_due).start()  # it is there, without a note
        assert await fence.check_due([product]) == []
    assert (await admin.sale(product)).state == "open"


async def test_a_database_that_does_not_answer_keeps_no_sale_from_being_opened(
    shop: Shop, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Fence):
        async def _freeze_known(self, product_ids: Sequence[str]) -> list[str]:
            await asyncio.sleep(PATIENCE_S)
            return []

    async with fenced(shop, Stuck) as stuck:
        scheduler = Scheduler(admin.schedules, check=stuck.check_due)
        for name in ("a", "b"):
            await admin.schedules.add(Schedule(name=name, every_s=LONG_S, item_count=50))
            async with asyncio.timeout(PATIENCE_S / 2):
                await scheduler.start()
            assert scheduler.find(name) is not None
        assert stuck._asking is not None
        stuck._asking.cancel()
    assert len(await admin.products()) == 2
    [told] = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert told.startswith("sales are opened that the database was not asked about: the database at sqlite:///")


async def test_a_sale_that_was_opened_unseen_is_known_by_its_moments(shop: Shop, admin: Admin) -> None:
    product = (await opened(admin)).product_id
    await shop.buy(product, *(f"u{number}" for number in range(5)))
    async with fenced(shop) as fence:
        await move_and_lose(shop, fence, product)
        assert await fence.check() == [], "in the same run of the store"
        await opened(admin)
        await shop.buy(product, *(f"v{number}" for number in range(20)))
        assert await fence.check() == [product], "although it has come farther than the database"
    with pytest.raises(AssertionError, match="flashsale recover"):
        await shop.buy_of_each([product], "late")


async def test_a_sale_frozen_meanwhile_is_that_of_the_period(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    await shop.buy(sale.product_id, "a")
    await moved(shop)
    assert await check(shop) == []
    await shop.redis.flushall()
    async with shop.mover() as mover:
        await mover.look()
    assert await check(shop) == [sale.product_id]
    assert await opened(admin) == sale
    with pytest.raises(AssertionError, match=Defective.__name__):
        await shop.buy_of_each([sale.product_id], "late")


async def test_a_sale_that_was_rebuilt_is_deleted_in_time(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    product = sale.product_id
    await shop.buy(product, "a")
    await moved(shop)
    assert await check(shop) == []
    await shop.redis.flushall()
    async with shop.mover() as mover:
        await mover.look()
    assert await check(shop) == [product]
    await admin.recover(product, partial(read_base, shop.database, product))
    assert await shop.redis.zscore("schedules_sales", product) == sale.ends_at + KEEP_S
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 1
    assert await keys_of(shop, product) == []


async def test_a_frozen_sale_is_deleted_once_it_was_rebuilt(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    product = sale.product_id
    await shop.buy(product, "a")
    await moved(shop)
    async with fenced(shop) as fence:
        assert await fence.check() == []
        await lose(shop, product)
        assert await fence.check_due([product]) == [product]
    await opened(admin)
    assert await shop.redis.zscore("schedules_sales", product) == sale.ends_at, "as its schedule has it"
    await shop.redis.zadd("schedules_sales", {product: 1})
    assert await admin.schedules.retire() == 0
    put_off = await shop.redis.zscore("schedules_sales", product)
    assert put_off is not None
    await admin.recover(product, partial(read_base, shop.database, product))
    assert await shop.redis.zscore("schedules_sales", product) == put_off
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 1
    assert await keys_of(shop, product) == []


async def test_what_is_no_sale_of_a_schedule_is_rebuilt_for_good(shop: Shop, admin: Admin) -> None:
    ids = ("p", "sale_1640995200_731bb28b")
    await shop.open(ids[0], 5, Terms(closes_at=await admin.now() + 60))
    await shop.open(ids[1], 5)
    await moved(shop)
    assert await check(shop) == []
    await shop.redis.flushall()
    async with shop.mover() as mover:
        await mover.look()
    assert sorted(await check(shop)) == sorted(ids)
    for product in ids:
        await admin.recover(product, partial(read_base, shop.database, product))
    assert await shop.redis.keys("schedules_sales") == []


async def test_a_look_does_not_grow_with_the_sales_that_are_gone(shop: Shop, admin: Admin) -> None:
    asked: list[str] = []

    class Counting(RedisOutbox):
        async def standings(self, product_ids: Sequence[str]) -> list[Standing]:
            asked.extend(product_ids)
            return await super().standings(product_ids)

    sale = await opened(admin)
    await moved(shop)
    past = {"epoch": "x", "version": 1, "initial": 1, "restocked": 0, "early": 0, "sold": 0, "held": 0, "opened_at": 0}
    rows = [past | {"product_id": f"past {n}", "changed_at": 0, "state": "reset"} for n in range(2_500)]
    async with shop.database.writing() as connection:
        await connection.execute(sa.insert(products), rows)
    outbox = Counting(shop.embedded.url)
    assert await Fence(outbox, shop.database, writes=True).check() == []
    await outbox.close()
    assert asked == [sale.product_id]


async def test_who_moves_orders_forgets_the_sales_that_are_gone(shop: Shop, admin: Admin) -> None:
    sale = await opened(admin)
    outbox = RedisOutbox(shop.embedded.url)
    mover = Mover(outbox, shop.database)
    await shop.step(mover)
    await over(shop, admin, sale)
    assert await admin.schedules.retire() == 1
    await shop.step(mover)
    assert (outbox._ends, outbox._noted, mover._positions) == ({}, {}, {})
    await outbox.close()
