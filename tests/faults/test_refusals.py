"""What the log tells of a store that answers and refuses."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from flashsale.domain.answers import Success
from flashsale.domain.batches import Batch, NotExecuted
from flashsale.domain.requests import GetStatus, Purchase
from flashsale.store import engine as store_engine
from flashsale.store.engine import RedisEngine


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[RedisEngine]:
    it = RedisEngine(store_url)
    await it.open()
    yield it
    await it.close()


async def test_a_store_that_refuses_is_told_of_once_and_that_it_is_over(
    engine: RedisEngine,
    redis_client: Redis,
    product_id: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequence = 0

    async def told(*requests: Purchase | GetStatus) -> list[str]:
        """Decide them, each in a batch of its own; return what is new in the log, without its details."""
        nonlocal sequence
        caplog.clear()
        for request in requests:
            sequence += 1
            [outcome] = await engine.commit([Batch(product_id, [request], sequence)], timeout_s=5)
            assert isinstance(outcome, NotExecuted if refused(request) else list)
        return [record.getMessage().partition(":")[0] for record in caplog.records]

    def refused(request: Purchase | GetStatus) -> bool:
        return full and isinstance(request, Purchase)

    monkeypatch.setattr(store_engine, "_REFUSAL_OVER_S", 1000.0)
    full = False
    buy, look = Purchase(product_id, "u"), GetStatus(product_id)
    await redis_client.set(f"product:{product_id}:stock", "10")
    assert await told(buy) == []
    for _ in range(2):
        full = True
        await redis_client.config_set("maxmemory", "1")
        try:
            assert await told(buy) == ["the store refuses batches with OOM"]
            assert await told(buy, look, buy, look) == [], "what changes nothing is decided, and it is not over"
        finally:
            await redis_client.config_set("maxmemory", "0")
        full = False
        assert await told(buy, buy) == [], "it may be refused again in a moment"
        monkeypatch.setattr(store_engine, "_REFUSAL_OVER_S", 0.0)
        assert await told(look, buy) == ["the store refuses no batches with OOM any more"]
        monkeypatch.setattr(store_engine, "_REFUSAL_OVER_S", 1000.0)
    [[answer]] = await engine.commit([Batch(product_id, [buy], sequence + 1)], timeout_s=5)
    assert isinstance(answer, Success)
