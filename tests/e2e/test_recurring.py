"""Recurring sales while servers are killed: one sale for each period, there within a second, and none sold twice."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from flashsale.domain.schedules import Schedule
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin

StartServer = Callable[..., ServerProcess]
ITEM_COUNT, LIMIT = 30, 3


def add_schedule(home: Path, **terms: int) -> None:
    async def run() -> None:
        async with Admin(f"unix://{home}/valkey.sock") as admin:
            schedule = Schedule(name="s", item_count=ITEM_COUNT, limit=LIMIT, numbered=True, keep_s=60, **terms)
            await admin.schedules.add(schedule)

    asyncio.run(run())


def sales_of(store: "redis.Redis") -> list[str]:
    return sorted(name for name in store.smembers("products") if name.startswith("sale_"))


def test_whichever_server_lives_opens_the_sale_of_each_period(
    start_server: StartServer, store: "redis.Redis", home: Path, connect: Callable[..., Any]
) -> None:
    doomed, server = [start_server("--workers", "2"), start_server()], start_server()
    add_schedule(home, every_s=1)
    deadline, bought = time.monotonic() + 20, dict[str, list[int]]()
    with connect(server.port) as client:
        for number in range(100_000):
            sales = sales_of(store)
            if len(sales) >= 4:
                break
            assert time.monotonic() < deadline, "no sale is opened any more"
            if doomed and len(sales) + len(doomed) == 4:  # one in the second period, one in the third
                doomed.pop().kill()
            if sales:
                answer = client.buy(sales[-1], f"user {number % 20}")
                if answer["status"] == "SUCCESS":
                    bought.setdefault(sales[-1], []).append(answer["item_id"])
            time.sleep(0.005)
    begins = [int(re.fullmatch(r"sale_(\d+)_[0-9a-f]{8}", sale)[1]) for sale in sales]  # type: ignore[index]
    assert begins == list(range(begins[0], begins[0] + 4))
    for sale, begins_at in zip(sales, begins, strict=True):
        first = store.xrange(f"product:{sale}:orders", count=1)[0][1]
        assert first["changes"] == f'[["opened",{ITEM_COUNT},"",{ITEM_COUNT}]]'
        if begins_at > begins[0]:
            assert 0 <= int(first["at"]) / 1000 - begins_at < 1
        items = bought.get(sale, [])
        assert len(set(items)) == len(items) <= ITEM_COUNT
        assert max(map(int, store.hvals(f"product:{sale}:users")), default=0) <= LIMIT
    assert sum(map(len, bought.values())) > ITEM_COUNT


def test_a_server_does_not_open_once_more_what_the_store_has_lost(
    start_server: StartServer, store: "redis.Redis", home: Path, connect: Callable[..., Any], until: Callable[..., None]
) -> None:
    server = start_server("--orders", "--workers", "2")
    add_schedule(home, every_s=7 * 86_400)
    until(lambda: sales_of(store))
    [sale] = sales_of(store)
    with connect(server.port) as client:
        assert client.buy(sale, "a")["status"] == "SUCCESS"
    until(lambda: store.hget(f"product:{sale}:sale", "stored") == "2")
    with store.pipeline(transaction=True) as step:
        step.delete("schedules_opened", "schedules_sales", *store.keys(f"product:{sale}:*"))
        step.srem("products", sale)
        step.execute()
    until(lambda: store.hexists("schedules_opened", "s"))
    assert store.hget(f"product:{sale}:sale", "state") == "frozen"
    assert not store.exists(f"product:{sale}:stock")
    with connect(server.port) as client:
        assert client.buy(sale, "b")["status"] != "SUCCESS"
