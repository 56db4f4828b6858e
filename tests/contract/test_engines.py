"""One contract, two engines: the rules in plain Python, and the script in a real Valkey.

Whatever MemoryEngine answers, the Redis engine answers too, for any sequence of batches.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, Protocol

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from flashsale.domain.answers import NOT_FOUND, SOLD_OUT, Answer, Held, ProductStatus, Success
from flashsale.domain.batches import Ambiguous, Batch, Defective, NotExecuted, Outcome
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.ids import parse_order_id
from flashsale.domain.requests import (
    Close,
    Confirm,
    GetStatus,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
)
from flashsale.engine import Engine
from flashsale.errors import ProductNotFoundError, StoreRefusedError
from flashsale.memory import MemoryEngine
from flashsale.store.admin import Admin
from flashsale.store.durability import Durability
from flashsale.store.engine import RedisEngine

TIMEOUT_S = 10.0
"""Patience with a busy machine; no promise is measured here."""

_sequences = count(1)


class Subject(Protocol):
    """An engine, and the operator's hands on its products."""

    engine: Engine

    async def create(self, product_id: str, stock: int) -> None: ...

    async def delete(self, product_id: str) -> None: ...

    async def buyers(self, product_id: str) -> list[str]: ...


class MemorySubject:
    def __init__(self) -> None:
        self.engine = MemoryEngine()

    async def create(self, product_id: str, stock: int) -> None:
        self.engine.create(product_id, stock)

    async def delete(self, product_id: str) -> None:
        self.engine.delete(product_id)

    async def buyers(self, product_id: str) -> list[str]:
        return self.engine.buyers(product_id)


class RedisSubject:
    def __init__(self, engine: RedisEngine, admin: Admin) -> None:
        self.engine = engine
        self._admin = admin

    async def create(self, product_id: str, stock: int) -> None:
        await self._admin.init(product_id, stock, force=True)

    async def delete(self, product_id: str) -> None:
        with suppress(ProductNotFoundError):
            await self._admin.reset(product_id)

    async def buyers(self, product_id: str) -> list[str]:
        return [buyer async for buyer in self._admin.buyers(product_id)]


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(store_url)
    await engine.open()
    yield engine
    await engine.close()


@pytest.fixture
async def in_redis(store_url: str, engine: RedisEngine) -> AsyncIterator[RedisSubject]:
    async with Admin(store_url) as admin:
        yield RedisSubject(engine, admin)


@pytest.fixture(params=["memory", "redis"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return MemorySubject() if request.param == "memory" else request.getfixturevalue("in_redis")


def batch(product_id: str, *users: str | None, sequence: int = 0, fenced: bool = False) -> Batch:
    """Return a batch of purchases; None stands for a STATUS."""
    requests: list[Request] = [GetStatus(product_id) if user is None else Purchase(product_id, user) for user in users]
    return Batch(product_id, requests, sequence or next(_sequences), fenced=fenced)


async def commit(engine: Engine, batches: Sequence[Batch], *, timeout_s: float = TIMEOUT_S) -> list[Outcome]:
    """Return the outcomes, without what names a change: order ids and versions, which test_rules.py compares."""
    outcomes = await engine.commit(batches, timeout_s=timeout_s)
    return [
        [unnamed(batch, answer) for answer in outcome] if isinstance(outcome, list) else outcome
        for batch, outcome in zip(batches, outcomes, strict=True)
    ]


def unnamed(batch: Batch, answer: Answer) -> Answer:
    match answer:
        case Success(remaining, order_id, version):
            order = parse_order_id(order_id)
            assert order is not None
            assert (order.product_id, order.version) == (batch.product_id, version)
            return Success(remaining)
        case ProductStatus(remaining, sold):
            assert answer == ProductStatus(remaining, sold, version=answer.version)
            return ProductStatus(remaining, sold)
        case _:
            return answer


async def decide(subject: Subject, item: Batch) -> Outcome:
    [outcome] = await commit(subject.engine, [item])
    return outcome


# For both engines


async def test_each_sale_takes_one_unit_in_order_of_arrival(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 100)
    assert await decide(subject, batch(product_id, "a")) == [Success(99)]
    assert await decide(subject, batch(product_id, "b", "c", "a")) == [Success(98), Success(97), Success(96)]
    assert await subject.buyers(product_id) == ["a", "b", "c", "a"]


async def test_last_unit_goes_to_the_first_and_nobody_after_gets_one(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 2)
    assert await decide(subject, batch(product_id, "a", "b", "c", "d")) == [Success(1), Success(0), SOLD_OUT, SOLD_OUT]
    assert await decide(subject, batch(product_id, "e")) == [SOLD_OUT]
    assert await subject.buyers(product_id) == ["a", "b"]
    assert await decide(subject, batch(product_id, None)) == [ProductStatus(0, 2)]


async def test_last_unit_exactly(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 1)
    assert await decide(subject, batch(product_id, "a")) == [Success(0)]
    assert await decide(subject, batch(product_id, "a")) == [SOLD_OUT]


async def test_sale_of_nothing_is_sold_out_from_the_start(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 0)
    assert await decide(subject, batch(product_id, None, "a")) == [ProductStatus(0, 0), SOLD_OUT]
    assert await subject.buyers(product_id) == []


async def test_status_sees_the_sales_before_it_in_its_batch(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 3)
    assert await decide(subject, batch(product_id, None, "a", None, "b", "c", None, "d", None)) == [
        ProductStatus(3, 0),
        Success(2),
        ProductStatus(2, 1),
        Success(1),
        Success(0),
        ProductStatus(0, 3),
        SOLD_OUT,
        ProductStatus(0, 3),
    ]


async def test_product_that_is_not_there(subject: Subject, product_id: str) -> None:
    assert await decide(subject, batch(product_id, "a", None)) == [NOT_FOUND, NOT_FOUND]
    await subject.create(product_id, 1)
    await subject.delete(product_id)
    assert await decide(subject, batch(product_id, "a")) == [NOT_FOUND]


async def test_batch_sent_again_gets_the_same_answers_and_sells_nothing(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 3)
    item = batch(product_id, None, "a", "b", None)
    first = await decide(subject, item)
    assert first == [ProductStatus(3, 0), Success(2), Success(1), ProductStatus(1, 2)]
    for fenced in (False, True, True):
        again = Batch(product_id, item.requests, item.sequence, fenced=fenced)
        assert await decide(subject, again) == first
    assert await subject.buyers(product_id) == ["a", "b"]
    assert await decide(subject, batch(product_id, "c")) == [Success(0)]


async def test_batch_that_took_the_last_unit_gets_it_again(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 1)
    item = batch(product_id, "a", "b")
    assert await decide(subject, item) == [Success(0), SOLD_OUT]
    assert await decide(subject, item) == [Success(0), SOLD_OUT]
    assert await subject.buyers(product_id) == ["a"]


async def test_overtaken_batch_sells_nothing(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 5)
    late = batch(product_id, "late")
    assert await decide(subject, batch(product_id, "a")) == [Success(4)]
    assert isinstance(await decide(subject, late), Ambiguous)
    assert isinstance(await decide(subject, Batch(product_id, late.requests, late.sequence, fenced=True)), Ambiguous)
    assert await subject.buyers(product_id) == ["a"]


async def test_batch_without_effect_is_not_remembered(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 0)
    early, item = batch(product_id, "early"), batch(product_id, "a")
    assert await decide(subject, item) == [SOLD_OUT]
    await subject.create(product_id, 1)
    assert await decide(subject, early) == [Success(0)]  # nothing stood in its way


async def test_fenced_batch_without_effect_is_remembered(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 0)
    early, item = batch(product_id, "early"), batch(product_id, "a", None, fenced=True)
    assert await decide(subject, item) == [SOLD_OUT, ProductStatus(0, 0)]
    await subject.create(product_id, 2)
    assert await decide(subject, item) == [SOLD_OUT, ProductStatus(0, 0)]
    assert isinstance(await decide(subject, early), Ambiguous)
    assert await decide(subject, batch(product_id, "b")) == [Success(1)]
    assert await subject.buyers(product_id) == ["b"]


async def test_fenced_status_is_remembered(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 2)
    early, item = batch(product_id, "early"), batch(product_id, None, fenced=True)
    assert await decide(subject, item) == [ProductStatus(2, 0)]
    assert isinstance(await decide(subject, early), Ambiguous)


async def test_fenced_not_found_is_remembered(subject: Subject, product_id: str) -> None:
    early, item = batch(product_id, "early"), batch(product_id, "a", fenced=True)
    assert await decide(subject, item) == [NOT_FOUND]
    await subject.create(product_id, 2)
    assert await decide(subject, item) == [NOT_FOUND]
    assert isinstance(await decide(subject, early), Ambiguous)


async def test_sequences_of_one_product_do_not_concern_another(subject: Subject, product_id: str) -> None:
    other = product_id + "-other"
    await subject.create(product_id, 5)
    await subject.create(other, 5)
    early = batch(other, "a")
    assert await decide(subject, batch(product_id, "a")) == [Success(4)]
    assert await decide(subject, early) == [Success(4)]


async def test_two_products_in_one_round_are_decided_apart(subject: Subject, product_id: str) -> None:
    other, missing = product_id + "-other", product_id + "-missing"
    await subject.create(product_id, 1)
    await subject.create(other, 5)
    batches = [batch(product_id, "a", "b"), batch(missing, "a"), batch(other, "c", None)]
    outcomes = await commit(subject.engine, batches)
    assert outcomes == [[Success(0), SOLD_OUT], [NOT_FOUND], [Success(4), ProductStatus(4, 1)]]
    assert await commit(subject.engine, batches) == outcomes


async def test_products_opened_again_start_anew_but_remember_their_batches(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 5)
    item = batch(product_id, "a")
    assert await decide(subject, item) == [Success(4)]
    await subject.create(product_id, 9)
    assert await decide(subject, item) == [Success(4)]
    assert await subject.buyers(product_id) == []
    assert await decide(subject, batch(product_id, None)) == [ProductStatus(9, 0)]


@pytest.mark.parametrize("user", ["Zoë 😀", 'quo"te\\', "\x00\n\x7f", "a" * 60_000, "{}", "%s", "1"])
async def test_any_user_id_is_kept_as_it_is(subject: Subject, product_id: str, user: str) -> None:
    await subject.create(product_id, 1)
    assert await decide(subject, batch(product_id, user)) == [Success(0)]
    assert await subject.buyers(product_id) == [user]


@pytest.mark.parametrize("name", ["Zoë 😀", 'quo"te\\', "a:b", "{a}{b}", "*", "a" * 256])
async def test_any_product_id_is_a_product_of_its_own(subject: Subject, product_id: str, name: str) -> None:
    await subject.create(product_id + name, 1)
    assert await decide(subject, batch(product_id + name, "a")) == [Success(0)]
    assert await decide(subject, batch(product_id, "a")) == [NOT_FOUND]


@pytest.mark.parametrize("stock", [STOCK_MAX, 10_000_000, 2**31, 2**32 + 1])
async def test_large_stock_is_counted_exactly(subject: Subject, product_id: str, stock: int) -> None:
    await subject.create(product_id, stock)
    assert await decide(subject, batch(product_id, "a", None, "b")) == [
        Success(stock - 1),
        ProductStatus(stock - 1, 1),
        Success(stock - 2),
    ]
    assert await decide(subject, batch(product_id, None)) == [ProductStatus(stock - 2, 2)]


async def test_batch_of_five_thousand(subject: Subject, product_id: str) -> None:
    await subject.create(product_id, 4_990)
    users = [f"user_{number}" for number in range(5_000)]
    item = batch(product_id, *users)
    expected: list[Answer] = [Success(4_989 - number) for number in range(4_990)]
    assert await decide(subject, item) == expected + [SOLD_OUT] * 10
    assert await decide(subject, item) == expected + [SOLD_OUT] * 10
    assert await subject.buyers(product_id) == users[:4_990]


async def test_round_of_no_batches(subject: Subject) -> None:
    assert await commit(subject.engine, []) == []


# Any sequence of operations

requests = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=5)
products = st.integers(0, 1)
operations = st.one_of(
    st.tuples(st.just("create"), products, st.integers(0, 6)),
    st.tuples(st.just("delete"), products),
    st.tuples(
        st.just("round"), st.dictionaries(products, st.tuples(requests, st.booleans()), min_size=1).map(dict.items)
    ),
    st.tuples(st.just("again"), st.integers(0, 3), st.booleans()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operations, max_size=25))
async def test_engines_agree_on_any_sequence_of_operations(in_redis: RedisSubject, plan: list[Any]) -> None:
    prefix = secrets.token_hex(6)
    subjects: list[Subject] = [MemorySubject(), in_redis]
    for subject in subjects:
        await subject.create(f"{prefix}-0", 4)
    sent: list[Batch] = []
    for operation in plan:
        match operation:
            case ("create", product, stock):
                for subject in subjects:
                    await subject.create(f"{prefix}-{product}", stock)
                continue
            case ("delete", product):
                for subject in subjects:
                    await subject.delete(f"{prefix}-{product}")
                continue
            case ("round", items):
                batches = [
                    batch(f"{prefix}-{product}", *users, fenced=fenced) for product, (users, fenced) in sorted(items)
                ]
                sent += batches
            case (_, age, fenced):  # a resend, or one that comes late
                batches = [
                    Batch(old.product_id, old.requests, old.sequence, fenced=fenced)
                    for old in sent[-1 - age : len(sent) - age or None][:1]
                ]
        ours, theirs = [await commit(subject.engine, batches) for subject in subjects]
        assert [shape(outcome) for outcome in ours] == [shape(outcome) for outcome in theirs]
    for product in (0, 1):
        ending = [await end_state(subject, f"{prefix}-{product}") for subject in subjects]
        assert ending[0] == ending[1]


def shape(outcome: Outcome) -> object:
    """Return what must be the same: every answer, or the kind of failure whatever its words."""
    return outcome if isinstance(outcome, list) else type(outcome)


async def end_state(subject: Subject, product_id: str) -> object:
    outcome = await decide(subject, batch(product_id, None))
    return outcome if outcome == [NOT_FOUND] else (outcome, await subject.buyers(product_id))


# For the store alone: keys


async def test_stock_key_set_by_hand_sells(engine: RedisEngine, redis_client: Redis, product_id: str) -> None:
    await redis_client.set(f"product:{product_id}:stock", "2")
    [outcome] = await commit(engine, [batch(product_id, "a", "b", "c")])
    assert outcome == [Success(1), Success(0), SOLD_OUT]
    assert await redis_client.get(f"product:{product_id}:stock") == "0"
    assert await redis_client.lrange(f"product:{product_id}:buyers", 0, -1) == ["b", "a"]  # LPUSH: the newest first


async def test_negative_stock_set_by_hand_is_sold_out(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "-3")
    [outcome] = await commit(engine, [batch(product_id, "a", None)])
    assert outcome == [SOLD_OUT, ProductStatus(0, 0)]
    assert await redis_client.get(f"product:{product_id}:stock") == "-3"


async def test_stock_deleted_by_hand_is_a_defect_and_not_sold_out(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "5")
    await commit(engine, [batch(product_id, "a")])
    await redis_client.delete(f"product:{product_id}:stock")
    assert await commit(engine, [batch(product_id, "b", None)]) == [Defective("its stock is gone")]


async def test_order_of_buyers_holds_across_batches_and_chunks(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "10000")
    users = [f"u{number}" for number in range(2_500)]
    for part in (users[:1], users[1:1_001], users[1_001:2_002], users[2_002:]):
        await commit(engine, [batch(product_id, *part)])
    assert await redis_client.lrange(f"product:{product_id}:buyers", 0, -1) == users[::-1]
    assert await redis_client.get(f"product:{product_id}:stock") == "7500"


async def test_no_key_is_written_but_those_of_the_product(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "1")
    await commit(engine, [batch(product_id, "a", "b", None)])
    await commit(engine, [batch(product_id + "-missing", "a")])
    found = {key async for key in redis_client.scan_iter(match=f"*{product_id}*")}
    assert found == {f"product:{product_id}:{name}" for name in ("stock", "buyers", "sessions", "sale", "orders")}


async def test_sold_out_and_status_write_nothing(engine: RedisEngine, redis_client: Redis, product_id: str) -> None:
    await redis_client.set(f"product:{product_id}:stock", "0")
    await commit(engine, [batch(product_id, "a", None)])
    assert {key async for key in redis_client.scan_iter(match=f"*{product_id}*")} == {f"product:{product_id}:stock"}


# Two servers


async def test_two_sessions_sell_one_stock_and_know_their_own_batches(
    store_url: str, engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "3")
    other = RedisEngine(store_url)  # connects with its first batch
    try:
        first, second = batch(product_id, "a", sequence=1), batch(product_id, "b", "c", "d", sequence=1)
        assert await commit(engine, [first]) == [[Success(2)]]
        assert await commit(other, [second]) == [[Success(1), Success(0), SOLD_OUT]]
        assert await commit(engine, [first]) == [[Success(2)]]
        assert await commit(other, [second]) == [[Success(1), Success(0), SOLD_OUT]]
    finally:
        await other.close()
    assert await redis_client.llen(f"product:{product_id}:buyers") == 3


async def test_sessions_silent_for_a_day_are_forgotten_once_there_are_many(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    sessions, now_s = f"product:{product_id}:sessions", int(datetime.now(UTC).timestamp())
    await redis_client.set(f"product:{product_id}:stock", "3")
    for name, number, written_s in (("old", 60, now_s - 90_000), ("new", 5, now_s - 80_000)):
        await redis_client.hset(sessions, mapping={f"{name}-{n}": f"1 {written_s}" for n in range(number)})
        await redis_client.hset(sessions, mapping={f"{name}-{n}:reply": "a reply" for n in range(number)})
    await commit(engine, [batch(product_id, "a")])
    kept = await redis_client.hkeys(sessions)
    assert sorted(kept)[-10::2] == [f"new-{n}" for n in range(5)]
    assert len(kept) == 2 * 6


# Events


class Listener:
    """What is published on the channel about one product."""

    def __init__(self, pubsub: Any, product_id: str) -> None:
        self._pubsub = pubsub
        self._product_id = product_id

    async def hear(self, expected_count: int) -> list[dict[str, Any]]:
        """Return what came; waits for as many as expected, and a moment for one more."""
        heard: list[dict[str, Any]] = []
        while True:
            patience_s = TIMEOUT_S if len(heard) < expected_count else 0.05
            message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=patience_s)
            if message is None:
                return heard
            event = json.loads(message["data"])
            if event["product_id"] == self._product_id:
                heard.append(event)


@pytest.fixture
async def listener(redis_client: Redis, product_id: str) -> AsyncIterator[Listener]:
    pubsub = redis_client.pubsub()
    await pubsub.subscribe("flashsale_events")
    await pubsub.get_message(timeout=TIMEOUT_S)  # the subscription itself
    yield Listener(pubsub, product_id)
    await pubsub.aclose()


async def test_each_sale_is_published_in_order_and_the_end_once(
    engine: RedisEngine, redis_client: Redis, listener: Listener, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "3")
    before_s = int(datetime.now(UTC).timestamp()) - 1
    await commit(engine, [batch(product_id, "a")])
    item = batch(product_id, None, "b", "c", "d", "e")
    await commit(engine, [item])
    await commit(engine, [item])  # a resend is no news
    await commit(engine, [batch(product_id, "f", None)])
    heard = await listener.hear(4)
    times = [event["timestamp"] for event in heard]
    assert all(type(moment) is int and before_s <= moment <= before_s + 60 for moment in times)
    assert times == sorted(times)
    expected: list[dict[str, Any]] = [
        {"event": "purchase", "product_id": product_id, "buyer": buyer, "remaining": 2 - i, "timestamp": times[i]}
        | {"quantity": 1, "version": 2 + i}
        for i, buyer in enumerate("abc")
    ]
    expected.append({"event": "sold_out", "product_id": product_id, "timestamp": times[3]})
    assert heard == expected
    assert [list(event) for event in heard] == [list(event) for event in expected]  # the order of fields, too


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1_001])
async def test_batch_of_any_size_is_published_whole(
    engine: RedisEngine, redis_client: Redis, listener: Listener, product_id: str, size: int
) -> None:
    await redis_client.set(f"product:{product_id}:stock", str(size))
    users = [f"u{number}" for number in range(size)]
    await commit(engine, [batch(product_id, *users, "late")])
    heard = await listener.hear(size + 1)
    assert [event["event"] for event in heard] == ["purchase"] * size + ["sold_out"]
    assert [event["buyer"] for event in heard[:-1]] == users
    assert [event["remaining"] for event in heard[:-1]] == list(range(size))[::-1]


async def test_each_change_is_published(
    engine: RedisEngine, redis_client: Redis, listener: Listener, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "2")
    [[held]] = await engine.commit([Batch(product_id, [Reserve(product_id, "a", 2)], 1)], timeout_s=TIMEOUT_S)
    assert isinstance(held, Held)
    [[sold]] = await engine.commit([Batch(product_id, [Confirm(held.code)], 2)], timeout_s=TIMEOUT_S)
    assert isinstance(sold, Success)
    requests = [Refund(sold.order_id), Restock(product_id, 1), Pause(product_id), Resume(product_id), Close(product_id)]
    await engine.commit([Batch(product_id, requests, 3)], timeout_s=TIMEOUT_S)
    heard = await listener.hear(8)
    assert [(event["event"], event.get("buyer"), event.get("remaining"), event.get("version")) for event in heard] == [
        ("held", "a", 0, 2),
        ("sold_out", None, None, None),
        ("purchase", "a", 0, 3),
        ("refunded", "a", 2, 4),
        ("restocked", None, 3, 5),
        ("paused", None, 3, 6),
        ("resumed", None, 3, 7),
        ("closed", None, 3, 8),
    ]


async def test_listener_by_pattern_hears_it_too(engine: RedisEngine, redis_client: Redis, product_id: str) -> None:
    await redis_client.set(f"product:{product_id}:stock", "10")
    pubsub = redis_client.pubsub()
    await pubsub.psubscribe("flashsale_*")
    await pubsub.get_message(timeout=TIMEOUT_S)
    await commit(engine, [batch(product_id, *"abcdefghijk")])
    heard = await Listener(pubsub, product_id).hear(11)
    assert [event.get("buyer") for event in heard] == [*"abcdefghij", None]
    await pubsub.aclose()


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("name", [' "/\\ é😀', "%s%d%%1", "\x7f"])
async def test_event_tells_names_as_they_are(
    engine: RedisEngine, redis_client: Redis, product_id: str, name: str, size: int
) -> None:
    name = product_id + name
    user = 'a"b\\c/\n\x00\x7f Zoë 😀 %s %%' + "x" * 10_000
    pubsub = redis_client.pubsub()
    await pubsub.subscribe("flashsale_events")
    await pubsub.get_message(timeout=TIMEOUT_S)
    await redis_client.set(f"product:{name}:stock", str(STOCK_MAX))
    await commit(engine, [batch(name, *[user] * size)])
    heard = await Listener(pubsub, name).hear(size)
    expected = [(user, STOCK_MAX - 1 - number) for number in range(size)]
    assert [(event["buyer"], event["remaining"]) for event in heard] == expected
    await pubsub.aclose()


async def test_nothing_is_published_when_nothing_is_sold(
    engine: RedisEngine, redis_client: Redis, listener: Listener, product_id: str
) -> None:
    await commit(engine, [batch(product_id, "a")])
    await redis_client.set(f"product:{product_id}:stock", "0")
    await commit(engine, [batch(product_id, "a", None, fenced=True)])
    assert await listener.hear(0) == []


# Keys that are not what they should be


async def plant_list(client: Redis, key: str) -> None:
    await client.rpush(key, "5")


def plant_text(text: str) -> Callable[[Redis, str], Any]:
    async def plant(client: Redis, key: str) -> None:
        await client.set(key, text)

    return plant


PLANTED = {
    "stock abc": ("stock", plant_text("abc")),
    "stock 1.5": ("stock", plant_text("1.5")),
    "stock empty": ("stock", plant_text("")),
    "stock with a space": ("stock", plant_text(" 5")),
    "stock 1e3": ("stock", plant_text("1e3")),
    "stock 0x10": ("stock", plant_text("0x10")),
    "stock with a leading zero": ("stock", plant_text("007")),
    "stock 2^53": ("stock", plant_text(str(STOCK_MAX + 1))),
    "stock beyond 64 bits": ("stock", plant_text("9" * 30)),
    "stock a list": ("stock", plant_list),
    "buyers a string": ("buyers", plant_text("a")),
    "sessions a string": ("sessions", plant_text("a")),
    "sessions a list": ("sessions", plant_list),
}


@pytest.mark.parametrize(("name", "plant"), PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("fenced", [False, True], ids=["first", "again"])
async def test_wrong_key_is_a_defect_and_nothing_is_half_applied(
    engine: RedisEngine,
    redis_client: Redis,
    listener: Listener,
    product_id: str,
    name: str,
    plant: Callable[[Redis, str], Any],
    fenced: bool,
) -> None:
    names = [f"product:{product_id}:{part}" for part in ("stock", "buyers", "sessions")]
    await redis_client.set(names[0], "5")
    await redis_client.delete(f"product:{product_id}:{name}")
    await plant(redis_client, f"product:{product_id}:{name}")
    before = [await dump(redis_client, key) for key in names]
    healthy = product_id + "-healthy"
    await redis_client.set(f"product:{healthy}:stock", "1")

    [outcome, other] = await commit(engine, [batch(product_id, "a", None, fenced=fenced), batch(healthy, "a")])

    assert isinstance(outcome, Defective), outcome
    assert other == [Success(0)]  # the other product of the round is sold
    assert [await dump(redis_client, key) for key in names] == before
    assert await listener.hear(0) == []
    await redis_client.delete(f"product:{product_id}:{name}")
    await redis_client.set(names[0], "5")
    assert await commit(engine, [batch(product_id, "a")]) == [[Success(4)]]  # mended


async def dump(client: Redis, key: str) -> object:
    match await client.type(key):
        case "string":
            return await client.get(key)
        case "list":
            return await client.lrange(key, 0, -1)
        case "hash":
            return await client.hgetall(key)
    return None


# The script and the link


async def test_flushed_scripts_are_not_noticed(engine: RedisEngine, redis_client: Redis, product_id: str) -> None:
    other = product_id + "-other"
    for name in (product_id, other):
        await redis_client.set(f"product:{name}:stock", "10")
    for left in (9, 8, 7):
        await redis_client.script_flush()
        outcomes = await commit(engine, [batch(product_id, "a"), batch(other, "b")])
        assert outcomes == [[Success(left)], [Success(left)]]


async def test_link_cut_between_batches_is_perhaps_executed_then_made_again(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "10")
    await commit(engine, [batch(product_id, "a")])
    await redis_client.client_kill_filter(_type="normal", skipme=True)
    item = batch(product_id, "b")
    [outcome] = await commit(engine, [item])
    assert isinstance(outcome, Ambiguous)
    again = Batch(product_id, item.requests, item.sequence, fenced=True)
    assert await commit(engine, [again]) == [[Success(8)]]
    assert await redis_client.lrange(f"product:{product_id}:buyers", 0, -1) == ["b", "a"]


async def test_time_out_is_perhaps_executed_and_the_resend_tells(
    engine: RedisEngine, redis_client: Redis, product_id: str
) -> None:
    await redis_client.set(f"product:{product_id}:stock", "10")
    item = batch(product_id, "a", "b")
    await redis_client.client_pause(250)  # takes requests, answers nobody
    [outcome] = await commit(engine, [item], timeout_s=0.05)
    assert isinstance(outcome, Ambiguous)
    again = Batch(product_id, item.requests, item.sequence, fenced=True)
    outcomes: Sequence[Outcome] = [outcome]
    while not isinstance(outcomes[0], list):
        outcomes = await commit(engine, [again])
    assert outcomes == [[Success(9), Success(8)]]
    await asyncio.sleep(0.05)  # were the first send still to come, it would find the door shut
    assert await redis_client.lrange(f"product:{product_id}:buyers", 0, -1) == ["b", "a"]


async def test_store_that_is_not_there_executes_nothing(short_dir: Any, product_id: str) -> None:
    engine = RedisEngine(f"unix://{short_dir}/nobody.sock")
    [outcome] = await commit(engine, [batch(product_id, "a")])
    assert isinstance(outcome, NotExecuted)
    await engine.close()


async def test_out_of_memory_executes_nothing(engine: RedisEngine, redis_client: Redis, product_id: str) -> None:
    await redis_client.set(f"product:{product_id}:stock", "10")
    await redis_client.config_set("maxmemory", "1")
    try:
        [outcome] = await commit(engine, [batch(product_id, "a")])
        assert isinstance(outcome, NotExecuted), outcome
    finally:
        await redis_client.config_set("maxmemory", "0")
    assert await redis_client.get(f"product:{product_id}:stock") == "10"
    assert not await redis_client.exists(f"product:{product_id}:buyers")
    assert await commit(engine, [batch(product_id, "a")]) == [[Success(9)]]


# A user who may not do everything


@pytest.fixture
async def limited_user(store_url: str, redis_client: Redis) -> AsyncIterator[Callable[..., Awaitable[RedisEngine]]]:
    """Give an engine that logs in as a user with these rules."""
    engines: list[RedisEngine] = []

    async def make(*rules: str) -> RedisEngine:
        await redis_client.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", "~product*", *rules)
        engine = RedisEngine(store_url.replace("unix://", "unix://shop:secret@"))
        engines.append(engine)
        await engine.open()
        return engine

    yield make
    for engine in engines:
        await engine.close()
    await redis_client.execute_command("ACL", "DELUSER", "shop")


@pytest.mark.parametrize("sale_count", [1, 20])
async def test_user_without_channels_sells_all_the_same(
    limited_user: Callable[..., Awaitable[RedisEngine]], redis_client: Redis, product_id: str, sale_count: int
) -> None:
    engine = await limited_user("+@all")  # a new user may use no channel unless that is said
    await redis_client.set(f"product:{product_id}:stock", sale_count)
    users = [f"u{number}" for number in range(sale_count)]
    sold = [Success(sale_count - 1 - number) for number in range(sale_count)]
    assert await commit(engine, [batch(product_id, *users)]) == [sold]


ANY_WRITE = ["xadd", "hset", "lpush"]


@pytest.mark.parametrize(
    ("kind", "command"),
    [(Purchase, command) for command in [*ANY_WRITE, "decrby"]]
    + [
        (Reserve, command)
        for command in [
            *ANY_WRITE,
            "set",
            "lrem",
            "hdel",
            "zadd",
            "zrem",
            "zremrangebyrank",
            "bitfield",
            "rename",
        ]
    ],
)
async def test_user_who_may_not_write_sells_nothing(
    limited_user: Callable[..., Awaitable[RedisEngine]],
    redis_client: Redis,
    product_id: str,
    kind: type[Purchase | Reserve],
    command: str,
) -> None:
    engine = await limited_user("+@all", f"-{command}")
    await redis_client.set(f"product:{product_id}:stock", "5")
    for fenced in (False, True):
        item = Batch(product_id, [kind(product_id, "a")], next(_sequences), fenced=fenced)
        [outcome] = await engine.commit([item], timeout_s=TIMEOUT_S)
        assert isinstance(outcome, NotExecuted)
    assert await redis_client.get(f"product:{product_id}:stock") == "5"
    assert {key async for key in redis_client.scan_iter(match=f"*{product_id}*")} == {f"product:{product_id}:stock"}


async def test_user_who_may_not_use_the_keys_of_all_products_sells_nothing(
    limited_user: Callable[..., Awaitable[RedisEngine]], redis_client: Redis, product_id: str
) -> None:
    engine = await limited_user("+@all", "resetkeys", "~product:*")
    await redis_client.set(f"product:{product_id}:stock", "5")
    [outcome] = await commit(engine, [batch(product_id, "a")])
    assert isinstance(outcome, NotExecuted)
    assert await redis_client.get(f"product:{product_id}:stock") == "5"


# A store that starts while it is asked


def reply_of(sequence: int, stock: int) -> bytes:
    """The script's reply to the purchase of one unit."""
    return f"*7\r\n:{sequence}\r\n:0\r\n:{stock}\r\n:1\r\n:1\r\n:1000\r\n$8\r\n0123abcd\r\n".encode()


async def test_refusal_of_one_batch_says_nothing_of_the_next(short_dir: Any) -> None:
    """The end of loading may fall between two calls; redis-py gives up the link at the first LOADING."""
    executed = 0
    gone = asyncio.Event()
    answers = {b"CONFIG": b"*2\r\n$1\r\nx\r\n$1\r\nx\r\n", b"ROLE": b"*1\r\n$6\r\nmaster\r\n"}
    decided = [b"-LOADING Redis is loading the dataset in memory\r\n", reply_of(2, stock=1)]

    async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal executed
        commands = hiredis.Reader()
        while data := await reader.read(65_536):
            commands.feed(data)
            while (command := commands.gets()) is not False:
                if command[0] == b"EVALSHA":
                    writer.write(decided[executed])
                    executed += 1
                else:
                    writer.write(answers.get(command[0], b"+OK\r\n"))
        writer.close()
        await writer.wait_closed()
        gone.set()

    path = short_dir / f"stand-in-{secrets.token_hex(3)}.sock"
    server = await asyncio.start_unix_server(store, path)
    engine = RedisEngine(f"unix://{path}", durability=Durability.RELAXED)
    try:
        outcomes = await commit(engine, [batch("p", "a", sequence=1), batch("q", "b", sequence=2)])
    finally:
        await engine.close()
        await gone.wait()
        server.close()
    assert executed == 2
    assert [type(outcome) for outcome in outcomes] == [NotExecuted, Ambiguous]


@pytest.mark.parametrize(
    ("name", "value"), [("appendfsync", "everysec"), ("no-appendfsync-on-rewrite", "yes"), ("appendonly", "no")]
)
async def test_store_that_keeps_too_little_is_refused_on_connecting(
    store_url: str, redis_client: Redis, name: str, value: str
) -> None:
    kept = (await redis_client.config_get(name))[name]
    await redis_client.config_set(name, value)
    try:
        with pytest.raises(StoreRefusedError, match=f"{name} {value}.*--durability relaxed"):
            await RedisEngine(store_url).open()
    finally:
        await redis_client.config_set(name, kept)


async def test_reply_to_another_batch_is_nobodys_and_ends_the_link(short_dir: Any) -> None:
    links = 0
    gone = asyncio.Semaphore(0)

    async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal links
        links += 1
        commands = hiredis.Reader()
        while data := await reader.read(65_536):
            commands.feed(data)
            while (command := commands.gets()) is not False:
                if command[0] == b"ROLE":
                    writer.write(b"*1\r\n$6\r\nmaster\r\n")
                elif command[0] == b"EVALSHA":
                    sequence = int(command[3 + int(command[2]) + 1])
                    writer.write(reply_of(sequence - (links == 1), stock=9))  # the first link is one reply behind
                else:
                    writer.write(b"+OK\r\n")
        writer.close()
        await writer.wait_closed()
        gone.release()

    path = short_dir / f"stand-in-{secrets.token_hex(3)}.sock"
    server = await asyncio.start_unix_server(store, path)
    engine = RedisEngine(f"unix://{path}", durability=Durability.RELAXED)
    try:
        [outcome] = await commit(engine, [batch("p", "a", sequence=5)])
        assert isinstance(outcome, Ambiguous)
        assert await commit(engine, [batch("p", "a", sequence=5)]) == [[Success(8)]]
        assert links == 2
    finally:
        await engine.close()
        await gone.acquire()
        await gone.acquire()
        server.close()
