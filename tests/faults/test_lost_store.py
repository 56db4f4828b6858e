"""A store that loses everything in the middle of a sale: strict loses no sale, and nobody sells a unit twice."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bench.databases import Server
from flashsale import Client, Success, Unavailable
from flashsale.domain.answers import SoldOut
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.orders.database import Database, database_url
from flashsale.orders.history import read_base
from flashsale.store.admin import Admin
from tests.orders import plain
from tests.orders.shop import PATIENCE_S, until

STOCK = 1_500
BUYERS = 24


class Buyers:
    """Buyers with request ids, who repeat what they are in doubt of; what each was told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.told: dict[str, Success] = {}
        self.kinds: Counter[str] = Counter()
        self.done = False

    async def buy(self, number: int) -> None:
        async with Client("127.0.0.1", self._port) as client:
            count = 0
            while not self.done:
                count += 1
                request_id = f"{number}-{count}"
                answer = await self._insist(client, request_id)
                if isinstance(answer, Success):
                    self.told[request_id] = answer
                elif isinstance(answer, SoldOut):
                    return

    async def _insist(self, client: Client, request_id: str) -> object:
        while not self.done:
            try:
                answer = await client.purchase("p", f"user {request_id}", request_id=request_id)
            except FlashsaleError as error:
                self.kinds[type(error).__name__] += 1
                continue
            self.kinds[type(answer).__name__] += 1
            if isinstance(answer, Success | SoldOut):
                return answer
            await asyncio.sleep(0.05)
        return None


@pytest.mark.timeout(120)
async def test_a_strict_sale_survives_the_loss_of_its_store(
    postgres: Server,
    start_server: Callable[..., ServerProcess],
    home: Path,
    tmp_path: Path,
) -> None:
    url = postgres.make_database()
    flags = ["--durability", "strict", "--orders", "--database", url]
    server = await asyncio.to_thread(start_server, *flags)
    store_url = f"unix://{home / 'valkey.sock'}"
    database = Database(database_url(url, tmp_path))
    async with Admin(store_url) as admin, Redis.from_url(store_url) as store:
        await admin.init("p", STOCK)
        buyers = Buyers(server.port)
        async with asyncio.TaskGroup() as tasks:
            for number in range(BUYERS):
                tasks.create_task(buyers.buy(number))
            await until(partial(is_at_least, buyers, 300))
            await store.flushall()
            async with Client("127.0.0.1", server.port) as client:

                async def is_frozen() -> bool:
                    return isinstance(await client.purchase("p", "who asks"), Unavailable)

                await until(is_frozen)
            before = len(buyers.told)
            base, report = await admin.recover("p", partial(read_base, database, "p"))
            assert report.ok, report.differences
            assert base.counters.sold >= before
            await until(partial(is_at_least, buyers, before + 300))
            async with asyncio.timeout(PATIENCE_S):  # what the last ones repeat is answered too
                while (await admin.status("p")).remaining_stock:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

        async def is_moved() -> bool:
            found = await read_base(database, "p")
            return found is not None and found.counters.sold == STOCK

        await until(is_moved)
        assert (await admin.audit("p", partial(read_base, database, "p"))).ok
        buyers_listed = [name async for name in admin.buyers("p")]
    rows = (await plain.read(database))["orders"]
    await database.close()
    ids = {row["request_id"]: row["order_id"] for row in rows}
    assert len(ids) == len(rows) == STOCK == len(buyers_listed)
    assert {name: answer.order_id for name, answer in buyers.told.items()}.items() <= ids.items()


async def is_at_least(buyers: Buyers, count: int) -> bool:
    return len(buyers.told) >= count
