"""The contract can fail: each known-bad variant of the script is told from the good one by a short story."""

import hashlib

import pytest
from redis.asyncio import Redis

from flashsale.domain import Ambiguous, Batch, GetStatus, Outcome, Purchase, Request
from flashsale.engine import MemoryEngine
from flashsale.store import keys, scripts
from flashsale.store.engine import RedisEngine

SCRIPT = scripts.PURCHASE.source.decode()
DECREMENT = "redis.call('DECRBY', KEYS[1], string.format('%.0f', granted))"
PRODUCT = "product-with-teeth"
VARIANTS = {
    "stock is not taken": (DECREMENT, ""),
    "stock is taken twice": (DECREMENT, f"{DECREMENT} {DECREMENT}"),
    "a batch sent again sells again": ("if sequence == last then", "if false then"),
    "an overtaken batch sells": ("elseif sequence < last then", "elseif false then"),
    "the outcome is not remembered": ("\n  remember(now_s, stock, granted, code)", "\n  "),
    "the fence is not built": ("ARGV[3] == '1'", "false"),
    "no stock key is sold out": ("'GET', KEYS[1])", "'GET', KEYS[1]) or '0'"),
    "the last comes first": ("call('LPUSH'", "call('RPUSH'"),
    "nobody is written down after the first thousand": ("for first = 1, granted, CHUNK", "for first = 1, 1, CHUNK"),
    "unit N+1 is sold": ("math.min(stock, count)", "math.min(stock + 1, count)"),
    "the last unit is not sold": ("math.min(stock, count)", "math.min(math.max(stock - 1, 0), count)"),
    "the last buyer is not counted": ("tonumber(ARGV[4])", "tonumber(ARGV[4]) - 1"),
    "stock is told as it is afterwards": ("return {sequence, code, stock,", "return {sequence, code, stock - granted,"),
}


def purchase(sequence: int, *users: str | None, fenced: bool = False) -> Batch:
    """Return a batch of purchases; None stands for a STATUS."""
    requests: list[Request] = [GetStatus(PRODUCT) if user is None else Purchase(PRODUCT, user) for user in users]
    return Batch(PRODUCT, requests, sequence, fenced=fenced)


STORY: list[Batch | int] = [  # a number opens a sale of so many units
    purchase(2, "a"),
    purchase(3, "a", fenced=True),
    3,
    purchase(3, "a", fenced=True),  # still not found
    purchase(1, "late"),
    purchase(4, "a", "b", None),
    purchase(4, "a", "b", None),  # again
    purchase(5, "c", "d", None),
    purchase(4, "a", "b", None),  # overtaken
    purchase(7, "e", fenced=True),
    2_000,
    purchase(6, "late"),
    purchase(8, *(f"u{number}" for number in range(1_500)), None),
    purchase(9, "f"),
]
OVERTAKEN = Ambiguous("overtaken by a later batch of its session")
Told = tuple[list[Outcome], list[str]]


async def tell_memory() -> Told:
    engine, outcomes = MemoryEngine(), []
    for step in STORY:
        if isinstance(step, int):
            engine.create(PRODUCT, step)
        else:
            outcomes.append(engine.decide(step))
    return [*outcomes, engine.decide(purchase(99, None))], engine.buyers(PRODUCT)


async def tell_redis(store_url: str, client: Redis) -> Told:
    """Tell the story."""
    engine, outcomes = RedisEngine(store_url), []
    await client.delete(keys.stock_key(PRODUCT), keys.buyers_key(PRODUCT))
    for step in STORY:
        if isinstance(step, int):
            await client.set(keys.stock_key(PRODUCT), step)
            await client.delete(keys.buyers_key(PRODUCT))
        else:
            outcomes += await engine.commit([step], timeout_s=10)
    outcomes += await engine.commit([purchase(99, None)], timeout_s=10)
    await engine.close()
    return outcomes, (await client.lrange(keys.buyers_key(PRODUCT), 0, -1))[::-1]


async def test_the_script_tells_the_story_as_the_rules_do(store_url: str, redis_client: Redis) -> None:
    assert await tell_redis(store_url, redis_client) == await tell_memory()


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_bad_script_tells_another_story(
    variant: str, store_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = VARIANTS[variant]
    assert SCRIPT.count(good) == 1
    source = SCRIPT.replace(good, bad).encode()
    monkeypatch.setattr(scripts, "PURCHASE", scripts.Script(source, hashlib.sha1(source).hexdigest()))
    outcomes, buyers = await tell_redis(store_url, redis_client)
    assert all(isinstance(outcome, list) or outcome == OVERTAKEN for outcome in outcomes), "it does not even run"
    assert (outcomes, buyers) != await tell_memory()
