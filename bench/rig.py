"""What a measurement works with: a server of its own on a fresh embedded store, and the operator's hands on both."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import uvloop
from msgspec import Struct
from redis.asyncio import Redis

from bench.crowd import run_load
from bench.load import Load
from bench.result import Result
from bench.stage import SERVE, started_server, temporary_store
from flashsale.backends import open_admin
from flashsale.domain.sale import PLAIN, Terms
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin

Found = TypeVar("Found")


class Rig(Struct, frozen=True):
    """A server, its store and the operator."""

    home: Path
    """The directory of the store."""
    store_url: str
    store_pid: int
    server: ServerProcess
    admin: Admin

    async def run(self, load: Load, *, stock: int, terms: Terms = PLAIN, process_count: int = 1) -> Result:
        """Open a fresh sale and let a crowd at it; raise FlashsaleError unless the store agrees with the buyers."""
        await self.admin.init(load.product_id, stock, terms, force=True)
        result = await run_load(load.with_timeout(), process_count=process_count)
        sold_count = (await self.admin.status(load.product_id)).sold
        if not result.success_count <= sold_count <= min(stock, result.success_count + result.uncertain_count):
            raise FlashsaleError(f"{result.success_count} of {stock} buyers were told SUCCESS, {sold_count} are sold")
        return result


@asynccontextmanager
async def open_rig(command: Sequence[str] = SERVE) -> AsyncIterator[Rig]:
    """Yield a rig whose server is started by that command; it is gone afterwards."""
    with temporary_store() as (home, store), started_server(home, command) as server:
        async with Redis.from_url(store.url) as redis:
            store_pid = (await redis.info("server"))["process_id"]
        async with open_admin(store) as admin:
            yield Rig(home, store.url, store_pid, server, admin)


def on_rig(part: Callable[[Rig], Awaitable[Found]]) -> Found:
    """Return what a measurement finds on a rig of its own."""

    async def run() -> Found:
        async with open_rig() as rig:
            return await part(rig)

    return uvloop.run(run())
