"""A store with its sales, a database, and movers between them, for the tests of the orders."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, cast

from redis.asyncio import Redis

from flashsale.domain.answers import Answer, Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Purchase, Request
from flashsale.domain.sale import PLAIN, Change, Terms
from flashsale.orders.database import Database
from flashsale.orders.fence import Fence
from flashsale.orders.mover import Mover
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.encoding import decode_message
from flashsale.store.engine import RedisEngine
from flashsale.store.outbox import RedisOutbox
from flashsale.store.trimming import Window
from tests.orders import plain

PATIENCE_S = 20.0


class Shop:
    """A store of one's own with its sales, and a database; movers between them."""

    def __init__(self, embedded: EmbeddedStore, database: Database, url: str) -> None:
        self.embedded = embedded
        self.database = database
        self.url = url
        self.redis = Redis.from_url(embedded.url)
        self._engine = RedisEngine(embedded.url)
        self._sequences = count(1)

    async def close(self) -> None:
        await self._engine.close()
        await self.redis.aclose()

    async def open(self, product_id: str, stock: int = 1_000, terms: Terms = PLAIN) -> None:
        async with Admin(self.embedded.url) as admin:
            await admin.init(product_id, stock, terms, force=True)

    async def reset(self, product_id: str) -> None:
        async with Admin(self.embedded.url) as admin:
            await admin.reset(product_id)

    async def ask(self, product_id: str, *requests: Request) -> list[Answer]:
        batch = Batch(product_id, requests, next(self._sequences))
        async with asyncio.timeout(PATIENCE_S):
            while True:  # the same batch again, if the store has just gone, has no second effect
                [answers] = await self._engine.commit([batch], timeout_s=PATIENCE_S)
                if isinstance(answers, list):
                    return answers
                await asyncio.sleep(0.02)

    async def buy(self, product_id: str, *users: str) -> list[str]:
        """Return the order ids."""
        answers = await self.ask(product_id, *(Purchase(product_id, user) for user in users))
        return [answer.order_id for answer in answers if isinstance(answer, Success)]

    async def buy_of_each(self, product_ids: Sequence[str], user: str) -> None:
        batches = [Batch(name, [Purchase(name, user)], next(self._sequences)) for name in product_ids]
        for outcome in await self._engine.commit(batches, timeout_s=PATIENCE_S):
            assert isinstance(outcome, list), outcome

    async def ledger(self, product_id: str) -> tuple[str, list[Change]]:
        messages = cast("Any", await self.redis.xrange(f"product:{product_id}:orders"))
        return (
            messages[-1][1][b"epoch"].decode(),
            [change for message_id, fields in messages for change in decode_message(message_id, fields)],
        )

    async def expected(self, *product_ids: str) -> plain.Rows:
        return plain.together(*[plain.fold(name, *await self.ledger(name)) for name in product_ids])

    async def is_moved(self, *product_ids: str) -> bool:
        """Whether the tables hold what the ledgers of these products say, and nothing else of them."""
        return await plain.read(self.database, *product_ids) == await self.expected(*product_ids)

    async def step(self, mover: Mover) -> int:
        """Look once, and move until there is nothing more to move."""
        total = 0
        await mover.look()
        while moved := await mover.step(0.01):
            total += moved
        return total

    @asynccontextmanager
    async def mover(
        self, database: Database | None = None, *, window: Window | None = None, fenced: bool = False, **options: Any
    ) -> AsyncIterator[Mover]:
        """A mover that does not run yet."""
        outbox, database = RedisOutbox(self.embedded.url, window), database or self.database
        fence = Fence(outbox, database, writes=True) if fenced else None
        try:
            yield Mover(outbox, database, fence=fence, **options)
        finally:
            await outbox.close()

    @asynccontextmanager
    async def moving(self, **options: Any) -> AsyncIterator[Mover]:
        """A mover that runs meanwhile, and is alive at the end."""
        async with self.mover(**options) as mover:
            task = asyncio.create_task(mover.run())
            try:
                yield mover
                assert not task.done(), task.exception()
            finally:
                mover.end()
                await asyncio.wait([task], timeout=PATIENCE_S)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 - it holds in a process or a database
            await asyncio.sleep(0.02)
