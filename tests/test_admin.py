"""What the operator does, on a real store: each thing wholly or not at all, also while the crowd buys."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from itertools import count

import pytest
from msgspec import structs
from redis.asyncio import Redis
from redis.exceptions import WatchError

from flashsale.domain.answers import Answer, Held, ProductStatus, Success
from flashsale.domain.batches import Batch
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.events import ChangeEvent, PurchaseEvent, SoldOutEvent
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
)
from flashsale.domain.sale import PLAIN, Kind, Terms
from flashsale.errors import (
    OutcomeUnknownError,
    ProductExistsError,
    ProductNotFoundError,
    RefusedError,
    StoreUnavailableError,
)
from flashsale.store import admin as admin_module
from flashsale.store.admin import Admin
from flashsale.store.engine import RedisEngine
from flashsale.store.records import Sale


@pytest.fixture
async def admin(store_url: str) -> AsyncIterator[Admin]:
    async with Admin(store_url) as operator:
        yield operator


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(store_url)
    yield engine
    await engine.close()


sequences = count(1)


async def decide(engine: RedisEngine, product_id: str, *requests: Request) -> list[Answer]:
    """Have requests decided as one batch."""
    [answers] = await engine.commit([Batch(product_id, requests, next(sequences))], timeout_s=30)
    assert isinstance(answers, list), answers
    return answers


async def sell(engine: RedisEngine, product_id: str, *users: str) -> list[Answer]:
    """Sell a unit to each."""
    return await decide(engine, product_id, *(Purchase(product_id, user) for user in users))


async def buyers_of(admin: Admin, product_id: str) -> list[str]:
    return [buyer async for buyer in admin.buyers(product_id)]


# init and reset


async def test_init_opens_a_sale(admin: Admin, product_id: str, redis_client: Redis) -> None:
    await admin.init(product_id, 100)
    assert await redis_client.get(f"product:{product_id}:stock") == "100"
    assert await admin.status(product_id) == ProductStatus(100, 0, version=1)
    await admin.init(product_id, 7)  # nobody has bought yet
    assert await admin.status(product_id) == ProductStatus(7, 0, version=2)
    await admin.init(product_id, STOCK_MAX)
    assert await redis_client.get(f"product:{product_id}:stock") == str(STOCK_MAX)
    assert await admin.status(product_id) == ProductStatus(STOCK_MAX, 0, version=3)


async def test_init_spares_a_sale_with_buyers_unless_forced(admin: Admin, product_id: str, engine: RedisEngine) -> None:
    await admin.init(product_id, 5)
    await sell(engine, product_id, "a", "b")
    with pytest.raises(ProductExistsError, match=f"Product '{product_id}' already has 2 buyers; --force"):
        await admin.init(product_id, 9)
    assert await admin.status(product_id) == ProductStatus(3, 2, version=3)
    await admin.init(product_id, 9, force=True)
    assert await admin.status(product_id) == ProductStatus(9, 0, version=4)
    assert await buyers_of(admin, product_id) == []


async def test_reset_deletes_every_key_of_the_product_and_of_no_other(
    admin: Admin, product_id: str, redis_client: Redis, engine: RedisEngine
) -> None:
    other = f"{product_id}-other"
    for name in (product_id, other):
        await admin.init(name, 5)
        await sell(engine, name, "a")
    await admin.reset(product_id)
    assert await redis_client.keys(f"product:{product_id}:*") == []
    assert await admin.status(other) == ProductStatus(4, 1, version=2)
    with pytest.raises(ProductNotFoundError, match=f"^Product '{product_id}' not found$"):
        await admin.reset(product_id)


async def test_init_and_reset_are_seen_wholly_or_not_at_all_while_the_sale_goes_on(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    done = asyncio.Event()
    stock, buyers = f"product:{product_id}:stock", f"product:{product_id}:buyers"

    async def buy() -> None:
        while not done.is_set():
            async with redis_client.pipeline(transaction=True) as step:
                with suppress(WatchError):
                    await step.watch(stock)
                    left = await step.get(stock)
                    if left is not None and int(left) > 0:
                        step.multi()
                        step.decr(stock)
                        step.lpush(buyers, "u")
                        await step.execute()

    async def look() -> set[int | None]:
        seen: set[int | None] = set()
        while not done.is_set():
            async with redis_client.pipeline(transaction=True) as step:
                step.get(stock)
                step.llen(buyers)
                left, sold = await step.execute()
            assert left is not None or sold == 0, "buyers of a sale that is deleted"
            seen.add(None if left is None else int(left) + sold)
        return seen

    buyer, watcher = asyncio.create_task(buy()), asyncio.create_task(look())
    for _ in range(150):
        await admin.init(product_id, 10, force=True)
        await asyncio.sleep(0.001)
        await admin.init(product_id, 10, force=True)
        with suppress(ProductExistsError):
            await admin.init(product_id, 10)
        await asyncio.sleep(0)
        await admin.reset(product_id)
    done.set()
    await buyer
    assert await watcher <= {10, None}


async def test_of_many_inits_at_once_every_one_is_whole(admin: Admin, product_id: str) -> None:
    await asyncio.gather(*(admin.init(product_id, stock) for stock in range(1, 51)))
    status = await admin.status(product_id)
    assert 1 <= status.remaining_stock <= 50


async def test_keys_of_the_wrong_kind_are_reported_and_can_be_reset(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "many")
    with pytest.raises(StoreUnavailableError, match="not a number"):
        await admin.status(product_id)
    await redis_client.set(f"product:{product_id}:stock", 5)
    await redis_client.set(f"product:{product_id}:buyers", "nobody")
    for call in (admin.status(product_id), buyers_of(admin, product_id), admin.init(product_id, 9)):
        with pytest.raises(StoreUnavailableError, match="wrong kind"):
            await call
    assert await redis_client.get(f"product:{product_id}:stock") == "5", "half an init"
    await admin.init(product_id, 9, force=True)
    assert await admin.status(product_id) == ProductStatus(9, 0, version=1)
    await redis_client.set(f"product:{product_id}:requests", "nothing")
    await admin.reset(product_id)
    await admin.init(product_id, 9)
    assert await admin.status(product_id) == ProductStatus(9, 0, version=1)


# What changes a sale, and what it looks like then


async def test_each_change_is_made_once_and_stands_in_the_ledger(
    admin: Admin, engine: RedisEngine, product_id: str, redis_client: Redis
) -> None:
    await admin.init(product_id, 5)
    [sold] = await sell(engine, product_id, "a")
    assert isinstance(sold, Success)
    refund = Refund(sold.order_id)
    for request, version, duplicate in (
        (Restock(product_id, 3), 3, False),
        (Restock(product_id, 3), 4, False),
        (refund, 5, False),
        (refund, 5, True),
        (Resume(product_id), 5, True),
        (Pause(product_id), 6, False),
        (Pause(product_id), 6, True),
        (Resume(product_id), 7, False),
        (Close(product_id), 8, False),
        (Close(product_id), 8, True),
    ):
        changed = await admin.change(request)
        assert (changed.version, changed.duplicate) == (version, duplicate), request
    for refused, reason in (
        (Resume(product_id), "the sale is closed"),
        (Restock(product_id, STOCK_MAX), "the stock would be too large"),
        (Refund(sold.order_id.replace("-0000000002-", "-0000000003-")), "order not found"),
    ):
        with pytest.raises(RefusedError, match=f"^{reason}$"):
            await admin.change(refused)
    with pytest.raises(ProductNotFoundError):
        await admin.change(Pause(f"{product_id}-none"))
    assert await redis_client.xlen(f"product:{product_id}:orders") == 8


async def test_a_sale_is_shown_with_its_terms(admin: Admin, engine: RedisEngine, product_id: str) -> None:
    now_s = await admin.now()
    terms = Terms(limit=3, opens_at=now_s - 10, closes_at=now_s + 500, hold_s=60, hold_total_s=90, numbered=True)
    await admin.init(product_id, 9, terms)
    await decide(engine, product_id, Purchase(product_id, "a"), Reserve(product_id, "b"), Purchase(product_id, "b"))
    sale = Sale(initial=9, remaining=6, sold=2, held=1, buyer_count=2, terms=terms, state="open", version=4)
    assert await admin.sale(product_id) == sale
    await admin.change(Pause(product_id))
    assert await admin.sale(product_id) == structs.replace(sale, state="paused", version=5)
    for terms, state in (
        (Terms(opens_at=now_s + 500), "not_open"),
        (Terms(opens_at=now_s - 500, closes_at=now_s - 1), "closed"),
    ):
        await admin.init(product_id, 9, terms, force=True)
        assert (await admin.sale(product_id)).state == state == (await admin.status(product_id)).state
        await admin.change(Pause(product_id) if state == "not_open" else Close(product_id))
        assert (await admin.sale(product_id)).state == (await admin.status(product_id)).state
    with pytest.raises(ProductNotFoundError):
        await admin.sale(f"{product_id}-none")


async def test_a_sale_set_by_hand_is_shown_as_one_without_terms(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    await redis_client.set(f"product:{product_id}:stock", 4)
    await redis_client.lpush(f"product:{product_id}:buyers", "a", "b")
    assert await admin.sale(product_id) == Sale(
        initial=6, remaining=4, sold=2, held=0, buyer_count=2, terms=PLAIN, state="open", version=0
    )


@pytest.mark.parametrize("page_count", [1, 2, 3, 1_000])
async def test_holds_come_by_deadline_page_by_page(
    admin: Admin,
    engine: RedisEngine,
    product_id: str,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    page_count: int,
) -> None:
    monkeypatch.setattr(admin_module, "_HOLDS_PAGE_COUNT", page_count)
    await admin.init(product_id, 100)
    seconds = [50, 10, 50, 90, 10, 50, 50]
    held = await decide(
        engine, product_id, *(Reserve(product_id, f"u{n}", n + 1, hold_seconds=s) for n, s in enumerate(seconds))
    )
    await redis_client.zadd(f"product:{product_id}:deadlines", {"nothing": 2**40})
    found = [row async for row in admin.holds(product_id)]
    assert {code for code, _, _ in found} == {answer.code for answer in held if isinstance(answer, Held)}
    assert [expires_at for _, _, expires_at in found] == sorted(expires_at for _, _, expires_at in found)
    assert {hold.user_id: hold.quantity for _, hold, _ in found} == {f"u{n}": n + 1 for n in range(7)}
    assert all(expires_at - hold.created_at == seconds[int(hold.user_id[1:])] for _, hold, expires_at in found)
    with pytest.raises(ProductNotFoundError):
        [row async for row in admin.holds(f"{product_id}-none")]


# status and buyers


async def test_there_is_no_status_and_there_are_no_buyers_of_no_product(admin: Admin, product_id: str) -> None:
    for call in (admin.status(product_id), buyers_of(admin, product_id), admin.reset(product_id)):
        with pytest.raises(ProductNotFoundError) as raised:
            await call
        assert raised.value.product_id == product_id


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 10_001, 25_000])
async def test_buyers_come_in_order_of_purchase_and_only_those_up_to_now(
    admin: Admin, product_id: str, redis_client: Redis, count: int
) -> None:
    users = [f"u{number}" for number in range(count)]
    await redis_client.set(f"product:{product_id}:stock", 1_000_000)
    for first in range(0, count, 5_000):
        await redis_client.lpush(f"product:{product_id}:buyers", *users[first : first + 5_000])
    found: list[str] = []
    async for buyer in admin.buyers(product_id):
        if len(found) % 1_000 == 0:
            await redis_client.lpush(f"product:{product_id}:buyers", "late-1", "late-2")  # meanwhile the sale goes on
        found.append(buyer)
    assert found == users


async def test_a_reset_while_buyers_are_listed_ends_the_list(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    await redis_client.set(f"product:{product_id}:stock", 0)
    for _ in range(3):
        await redis_client.lpush(f"product:{product_id}:buyers", *["u"] * 5_000)
    found = 0
    async for _ in admin.buyers(product_id):
        if not found:
            await admin.reset(product_id)
        found += 1
    assert 0 < found <= 15_000


# products


async def test_products_are_listed_sorted_also_those_set_by_hand(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    await admin.init(f"{product_id}-b", 1)
    await redis_client.set(f"product:{product_id}-a:stock", 1)
    await redis_client.set(f"product:{product_id}:with:colons:stock", 1)
    await redis_client.set(f"product:{product_id}-é:stock", 1)
    await redis_client.set(f"product:{product_id}-none:other", 1)
    await redis_client.lpush(f"product:{product_id}-gone:buyers", "u")
    found = [name for name in await admin.products() if name.startswith(product_id)]
    assert found == [f"{product_id}-a", f"{product_id}-b", f"{product_id}-é", f"{product_id}:with:colons"]


async def test_thousands_of_products_are_each_listed_once(admin: Admin, product_id: str, redis_client: Redis) -> None:
    names = [f"{product_id}-{number:05}" for number in range(5_000)]
    await redis_client.mset({f"product:{name}:stock": 1 for name in names})
    try:
        assert [name for name in await admin.products() if name.startswith(product_id)] == names
    finally:
        await redis_client.delete(*(f"product:{name}:stock" for name in names))


# events


async def test_events_are_told_as_they_come_and_other_messages_are_not(
    admin: Admin, product_id: str, redis_client: Redis
) -> None:
    purchase = {"event": "purchase", "product_id": product_id, "buyer": "ü", "remaining": 0, "timestamp": 5}
    sold_out = {"event": "sold_out", "product_id": product_id, "timestamp": 6}
    async with asyncio.timeout(20), aclosing(admin.events()) as events:
        assert await anext(events) is None
        deep = b'{"event":"sold_out","product_id":"p","timestamp":1,"more":' + b"[" * 100_000
        told = json.dumps(purchase).encode(), json.dumps(sold_out).encode()
        for message in ("hello", "{}", '{"event":"other"}', b"\xff", deep, *told):
            await redis_client.publish("flashsale_events", message)
        assert await anext(events) == (PurchaseEvent(product_id, "ü", 0, 5), told[0])
        assert await anext(events) == (SoldOutEvent(product_id, 6), told[1])


async def test_every_kind_of_change_is_an_event(admin: Admin, engine: RedisEngine, product_id: str) -> None:
    async with asyncio.timeout(20), aclosing(admin.events()) as events:
        assert await anext(events) is None
        await admin.init(product_id, 5)
        held = await decide(engine, product_id, Reserve(product_id, "a", 2), Reserve(product_id, "b"))
        codes = [answer.code for answer in held if isinstance(answer, Held)]
        await decide(engine, product_id, Extend(codes[0], 1_000), Confirm(codes[0]), Cancel(codes[1]))
        await admin.change(Restock(product_id, 3))
        await admin.change(Pause(product_id))
        told = [heard[0] for heard in [await anext(events) for _ in range(8)] if heard is not None]
    assert [event.event if isinstance(event, ChangeEvent) else type(event) for event in told] == [
        Kind.OPENED,
        Kind.HELD,
        Kind.HELD,
        Kind.EXTENDED,
        PurchaseEvent,
        Kind.CANCELLED,
        Kind.RESTOCKED,
        Kind.PAUSED,
    ]
    assert {event.product_id for event in told} == {product_id}


async def test_a_broken_subscription_is_told_and_made_again(admin: Admin, product_id: str, redis_client: Redis) -> None:
    message = json.dumps({"event": "sold_out", "product_id": product_id, "timestamp": 6}).encode()
    async with asyncio.timeout(20), aclosing(admin.events()) as events:
        assert await anext(events) is None
        for _ in range(3):
            await redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            assert await anext(events) is None
            await redis_client.publish("flashsale_events", message)
            assert await anext(events) == (SoldOutEvent(product_id, 6), message)


async def test_who_may_not_subscribe_is_told_so(store_url: str, redis_client: Redis) -> None:
    await redis_client.execute_command("ACL", "SETUSER", "deaf", "reset", "on", ">secret", "~product*", "+@all")
    try:
        async with Admin(store_url.replace("unix://", "unix://deaf:secret@")) as admin, asyncio.timeout(20):
            with pytest.raises(StoreUnavailableError, match=r"refused: .*channel"):
                await anext(admin.events())
    finally:
        await redis_client.execute_command("ACL", "DELUSER", "deaf")


async def test_a_sale_where_nothing_happens_is_no_broken_subscription(
    store_url: str, product_id: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_module, "ANSWER_TIMEOUT_S", 0.3)
    message = json.dumps({"event": "sold_out", "product_id": product_id, "timestamp": 6}).encode()
    async with Admin(store_url) as admin, asyncio.timeout(20), aclosing(admin.events()) as events:
        assert await anext(events) is None
        told = asyncio.create_task(anext(events))
        await asyncio.sleep(1)
        assert not told.done()
        await redis_client.publish("flashsale_events", message)
        assert await told == (SoldOutEvent(product_id, 6), message)


# A store that is away


async def test_a_store_that_is_away_is_said_so_without_its_password(product_id: str) -> None:
    async with Admin("redis://user:s3cret@127.0.0.1:1/0") as admin:
        for call in (
            admin.init(product_id, 1),
            admin.reset(product_id),
            admin.status(product_id),
            buyers_of(admin, product_id),
            admin.products(),
        ):
            with pytest.raises(StoreUnavailableError, match=r"cannot reach Redis at .*127\.0\.0\.1:1") as raised:
                await call
            assert "s3cret" not in str(raised.value)


async def test_a_command_that_gets_no_answer_may_have_been_done(
    store_url: str, product_id: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_module, "ANSWER_TIMEOUT_S", 0.3)
    async with Admin(store_url) as admin, Admin(store_url) as other:
        await admin.init(product_id, 5)
        await admin.status(product_id)
        await other.status(product_id)
        await redis_client.client_pause(2_000, all=False)  # writes wait, and scripts
        unknown = "did not answer; it is not known whether the command was done$"
        with pytest.raises(OutcomeUnknownError, match=unknown):
            await admin.change(Restock(product_id, 5))
        with pytest.raises(OutcomeUnknownError, match=unknown):
            await admin.init(product_id, 7)
        with pytest.raises(OutcomeUnknownError, match=unknown):
            await admin.reset(product_id)
        with pytest.raises(StoreUnavailableError, match=r"did not answer$"):
            await other.status(product_id)
        await redis_client.client_unpause()


async def test_a_store_without_memory_refuses_an_init_wholly(
    admin: Admin, product_id: str, redis_client: Redis, engine: RedisEngine
) -> None:
    await admin.init(product_id, 5)
    await sell(engine, product_id, "a")
    await redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailableError, match=r"refused: .*memory"):
            await admin.init(product_id, 9, force=True)
        assert await admin.status(product_id) == ProductStatus(4, 1, version=2)
    finally:
        await redis_client.config_set("maxmemory", 0)
    await admin.init(product_id, 9, force=True)
