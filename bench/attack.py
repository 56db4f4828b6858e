"""The default benchmark: one crowd against one product, on a server of our own or on one that runs already."""

import asyncio

from msgspec import structs

from bench.check import Sale, count_distinct
from bench.crowd import run_load
from bench.load import Load
from bench.report import progress_bar
from bench.result import Result
from bench.stage import started_server, temporary_store
from flashsale import Client, ProductStatus
from flashsale.backends import Store, open_admin, open_store
from flashsale.config import Config
from flashsale.errors import FlashsaleError
from flashsale.store.admin import Admin

PRODUCT_ID = "benchmark"


def attack_own(load: Load, *, stock: int, process_count: int) -> tuple[Result, Sale]:
    """Start a server on a fresh embedded store, open a sale of `stock` units and let the crowd loose."""
    with temporary_store() as (home, store), started_server(home) as server:
        load = structs.replace(load, host=server.host, port=server.port)

        async def run() -> tuple[Result, Sale]:
            async with open_admin(store) as admin:
                await admin.init(load.product_id, stock)
                return await _attack(load, admin, process_count)

        return asyncio.run(run())


def attack_running(load: Load, *, config: Config | None, process_count: int) -> tuple[Result, Sale]:
    """Let the crowd loose on a running server.

    Args:
        load: says where it is.
        config: where its store is; None when that cannot be reached: then its own STATUS answers are believed, and
            nobody looks at the list of buyers.
        process_count: how many generators share the load.
    """

    async def run(store: Store | None) -> tuple[Result, Sale]:
        if store is None:
            return await _attack(load, None, process_count)
        async with open_admin(store) as admin:
            return await _attack(load, admin, process_count)

    if config is None:
        return asyncio.run(run(None))
    with open_store(config) as store:
        return asyncio.run(run(store))


async def _attack(load: Load, admin: Admin | None, process_count: int) -> tuple[Result, Sale]:
    async with Client(load.host, load.port) as client:
        await client.ping()  # fails here, with a sentence, when nobody listens
    before = await _status_of(load, admin)
    listed_count = 0 if admin is None else (await admin.sale(load.product_id)).buyer_count  # orders, not units
    with progress_bar(load) as progress:
        result = await run_load(load, process_count=process_count, progress=progress)
    after = await _status_of(load, admin)
    distinct_count = None
    if admin is not None:
        distinct_count = await count_distinct(admin.buyers(load.product_id), skip_count=listed_count)
    return result, Sale(
        stock_before=before.remaining_stock,
        stock_after=after.remaining_stock,
        sold_count=after.sold - before.sold,
        distinct_buyer_count=distinct_count,
        request_count=result.request_count,
        success_count=result.success_count,
        sold_out_count=result.sold_out_count,
        error_count=result.error_count,
        uncertain_count=result.uncertain_count,
    )


async def _status_of(load: Load, admin: Admin | None) -> ProductStatus:
    if admin is not None:
        return await admin.status(load.product_id)
    async with Client(load.host, load.port) as client:
        answer = await client.status(load.product_id)
    if not isinstance(answer, ProductStatus):
        raise FlashsaleError(f"the server does not tell the stock of '{load.product_id}': {answer}")
    return answer
