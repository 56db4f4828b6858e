"""Reading ledgers from a real store: what the decision script wrote, page by page and as it grows."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from flashsale.domain.answers import Answer, Held, Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Confirm, Purchase, Refund, Request, Reserve
from flashsale.domain.sale import Change, Kind
from flashsale.errors import StoreUnavailableError
from flashsale.store.admin import Admin
from flashsale.store.durability import Durability
from flashsale.store.encoding import decode_message
from flashsale.store.engine import RedisEngine
from flashsale.store.ledger import MESSAGE_COUNT_MAX, RedisLedger


@pytest.fixture
async def ledger(store_url: str) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(store_url)
    yield ledger
    await ledger.close()


class Till:
    """Has requests decided, a batch at a time."""

    def __init__(self, engine: RedisEngine, product_id: str) -> None:
        self._engine, self._product_id, self._sequence = engine, product_id, 0

    async def decide(self, *requests: Request) -> list[Answer]:
        self._sequence += 1
        [outcome] = await self._engine.commit([Batch(self._product_id, requests, self._sequence)], timeout_s=20)
        assert isinstance(outcome, list)
        return outcome

    async def sell(self, count: int = 1) -> list[Answer]:
        return await self.decide(*(Purchase(self._product_id, f"u{n}") for n in range(count)))


@pytest.fixture
async def till(store_url: str, product_id: str) -> AsyncIterator[Till]:
    """Of a sale of 1,000 units that is open."""
    async with Admin(store_url) as admin:
        await admin.init(product_id, 1_000)
    engine = RedisEngine(store_url, durability=Durability.RELAXED)
    yield Till(engine, product_id)
    await engine.close()


def every_version(batches: list[list[Change]]) -> list[int]:
    return [change.version for batch in batches for change in batch]


def versions(batches: list[list[Change]]) -> list[list[int]]:
    return [[change.version for change in batch] for batch in batches]


async def test_standings(ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis") -> None:
    await till.sell(3)
    plain, odd = f"{product_id}-plain", f"{product_id}-odd"
    await redis_client.set(f"product:{plain}:stock", 5)
    await redis_client.set(f"product:{odd}:sale", "no hash")
    found, by_hand, missing, unreadable = await ledger.standings([product_id, plain, "no-such", odd])
    assert found is not None
    assert (found.exists, len(found.epoch), found.version) == (True, 8, 4)
    assert by_hand is not None
    assert (by_hand.exists, by_hand.epoch, by_hand.version) == (True, "", 0)
    assert missing is not None
    assert (missing.exists, missing.epoch) == (False, "")
    assert unreadable is None
    assert await ledger.standings([]) == []


async def test_many_standings_are_asked_for_in_parts(
    ledger: RedisLedger, till: Till, product_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsale.store.ledger.STANDING_COUNT_MAX", 2)
    found = await ledger.standings(["no-such", "no-such", "no-such", product_id, "no-such"])
    assert [standing is not None and standing.exists for standing in found] == [False, False, False, True, False]


async def test_products_are_read_if_there_are_not_too_many(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    count = await redis_client.scard("products")
    products = await ledger.products(count)
    assert products is not None
    assert product_id in products
    assert len(products) == count
    assert await ledger.products(count - 1) is None


async def test_others_have_a_turn_after_each_message(
    ledger: RedisLedger, till: Till, product_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await till.sell()
    turn, decoded_in = 0, []

    def decode(*message: Any) -> Iterator[Change]:
        decoded_in.append(turn)
        return decode_message(*message)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    monkeypatch.setattr("flashsale.store.ledger.decode_message", decode)
    counting = asyncio.create_task(count_turns())
    await ledger.page(product_id, 0)
    await ledger.wait({product_id: 0}, 5)
    counting.cancel()
    assert len(decoded_in) == len(set(decoded_in)) == 8


@pytest.mark.parametrize(
    ("after_version", "first"), [(0, [1]), (1, [2, 3, 4]), (2, [3, 4]), (3, [4]), (4, [5]), (5, [6, 7]), (7, [])]
)
async def test_a_page_begins_behind_the_version_also_within_a_batch(
    ledger: RedisLedger, till: Till, product_id: str, after_version: int, first: list[int]
) -> None:
    for count in (3, 1, 2):
        await till.sell(count)
    page = await ledger.page(product_id, after_version)
    assert page is not None
    assert page.complete
    assert (page.version, page.position) == (7, 7)
    assert every_version(page.batches) == list(range(after_version + 1, 8))
    assert versions(page.batches)[:1] == ([first] if first else [])


async def test_pages_follow_one_another(ledger: RedisLedger, till: Till, product_id: str) -> None:
    count = 2 * MESSAGE_COUNT_MAX + 5
    for _ in range(count):
        await till.sell(2)
    seen: list[int] = []
    complete = False
    while not complete:
        page = await ledger.page(product_id, seen[-1] if seen else 0)
        assert page is not None
        assert len(page.batches) <= MESSAGE_COUNT_MAX
        seen += every_version(page.batches)
        complete = page.complete
    assert seen == list(range(1, 2 * count + 2))


async def test_what_was_trimmed_is_not_in_the_page(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    for _ in range(5):
        await till.sell(2)
    await redis_client.xtrim(f"product:{product_id}:orders", maxlen=2, approximate=False)
    page = await ledger.page(product_id, 3)
    assert page is not None
    assert versions(page.batches) == [[8, 9], [10, 11]]
    await redis_client.xtrim(f"product:{product_id}:orders", maxlen=0)
    page = await ledger.page(product_id, 3)
    assert page is not None
    assert (page.batches, page.complete, page.version) == ([], True, 11)


async def test_orders_that_are_refunded_are_looked_up(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    [held] = await till.decide(Reserve(product_id, "h"))
    assert isinstance(held, Held)
    [confirmed, sold, _] = await till.decide(Confirm(held.code), *[Purchase(product_id, "u")] * 2)
    assert isinstance(confirmed, Success)
    assert isinstance(sold, Success)
    for order in (confirmed, sold):
        await till.decide(Refund(order.order_id))
    page = await ledger.page(product_id, 0)
    assert page is not None
    changes = [change for batch in page.batches for change in batch]
    made_at = {change.version: change.at_ms for change in changes if change.kind in {Kind.SOLD, Kind.CONFIRMED}}
    assert page.order_times == {version: made_at[version] for version in (confirmed.version, sold.version)}
    [page] = await ledger.wait({product_id: 5}, 5)
    assert page.order_times == {version: made_at[version] for version in (confirmed.version, sold.version)}
    await redis_client.xtrim(f"product:{product_id}:orders", maxlen=2, approximate=False)
    page_after = await ledger.page(product_id, 5)
    assert page_after is not None
    assert page_after.order_times == {}


async def test_waiting_ends_with_a_change_or_with_nothing(ledger: RedisLedger, till: Till, product_id: str) -> None:
    assert await ledger.wait({product_id: 1}, 0.05) == []
    assert await ledger.wait({}, 0.01) == []
    waiting = asyncio.create_task(ledger.wait({product_id: 1, "no-such": 0}, 20))
    await asyncio.sleep(0.05)
    await till.sell(2)
    [page] = await waiting
    [standing] = await ledger.standings([product_id])
    assert standing is not None
    assert (page.product_id, page.epoch, page.complete) == (product_id, standing.epoch, False)
    assert (versions(page.batches), page.position) == ([[2, 3]], 3)


async def test_what_somebody_else_wrote_is_passed_over(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    await redis_client.xadd(f"product:{product_id}:orders", {"what": "ever"}, id="9-0")
    await redis_client.xadd(f"product:{product_id}:orders", {"at": "1", "changes": "no json"}, id="10-0")
    page = await ledger.page(product_id, 0)
    assert page is not None
    assert (versions(page.batches), page.position) == ([[1]], 10)
    assert [page.position for page in await ledger.wait({product_id: 1}, 5)] == [10]


async def test_keys_that_are_something_else_hold_up_no_others(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    odd, strange = f"{product_id}-odd", f"{product_id}-strange"
    await redis_client.set(f"product:{odd}:orders", "no stream")
    await redis_client.xadd(f"product:{strange}:orders", {"at": "1"}, id="1-0")
    await redis_client.set(f"product:{strange}:sale", "no hash")
    assert await ledger.page(odd, 0) is None
    assert await ledger.page(strange, 0) is None
    positions = {odd: 0, product_id: 0, strange: 0}
    pages: list[Any] = []
    while not pages:
        pages = await ledger.wait(positions, 5)
    assert [page.product_id for page in pages] == [product_id]
    await redis_client.delete(f"product:{odd}:orders", f"product:{strange}:sale")
    for name in (odd, strange):
        assert await ledger.page(name, 0) is not None
    assert {page.product_id for page in await ledger.wait(positions, 5)} == {product_id, strange}


async def test_a_broken_link_is_made_again_and_a_cancelled_call_leaves_no_reply_behind(
    ledger: RedisLedger, till: Till, product_id: str, redis_client: "Redis"
) -> None:
    for _ in range(3):
        assert product_id in (await ledger.products(1 << 20) or ())
        await redis_client.client_kill_filter(_type="normal", skipme=True)
    waiting = asyncio.create_task(ledger.wait({product_id: 1}, 20))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    [standing] = await ledger.standings([product_id])
    assert standing is not None
    assert standing.version == 1


async def test_a_store_that_is_not_there() -> None:
    ledger = RedisLedger(f"unix:///tmp/{secrets.token_hex(8)}.sock")
    for call in (ledger.products(1), ledger.standings(["p"]), ledger.page("p", 0), ledger.wait({"p": 0}, 1)):
        with pytest.raises(StoreUnavailableError, match="cannot read from Redis"):
            await call
    await ledger.close()


async def test_a_store_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashsale.store.ledger.ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel accepts, nobody answers
        ledger = RedisLedger(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(StoreUnavailableError, match="does not answer in time"):
            await ledger.wait({"p": 0}, 0.1)
        await ledger.close()
