"""Does a request cost the same in a small sale and in a large one? Pairs of runs in turns; the ratio is per round.

The cost is the CPU time of server and store: throughput would hide it, as the client is the bound.

Three pairs, each the same stream of requests on two products:
- selling, with a stock that is just enough for the stream, and with a large one;
- selling, with nobody and with very many already in the list of buyers;
- sold out, likewise.
A stock of 100 cannot last for a measurement, so "small" is the smallest that can: the stock ends with the stream.
"""

from collections.abc import Awaitable, Callable
from statistics import median

from msgspec import Struct
from redis.asyncio import Redis

from bench import proc
from bench.crowd import run_load
from bench.load import SOLD_OUT, SUCCESS, Load
from bench.report import Target, spread
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store import keys
from flashsale.store.admin import Admin

_SMALL, _LARGE = "small", "large"
_COST_RATIO_MAX = 1.2
_CHUNK_COUNT = 10_000

Prepare = Callable[[], Awaitable[None]]


class Scale(Struct, frozen=True, kw_only=True):
    """How large is large, and how long the runs are."""

    round_count: int = 5
    connection_count: int = 200
    request_count: int = 500
    """Of each connection."""
    stock: int = 10_000_000
    buyer_count: int = 1_000_000


async def measure_sizes(server: ServerProcess, admin: Admin, store_url: str, scale: Scale) -> list[Target]:
    """Run the three pairs and return the ratio of costs of each beside what it has to be."""
    demand = scale.connection_count * scale.request_count

    def fresh(product_id: str, stock: int) -> Prepare:
        return lambda: admin.init(product_id, stock, force=True)

    async def pair(name: str, kind: str, small: Prepare, large: Prepare) -> Target:
        ratios = []
        for number in range(scale.round_count):
            costs_s = {}
            turns = [(_SMALL, small), (_LARGE, large)]
            for product_id, prepare in turns if number % 2 == 0 else reversed(turns):
                await prepare()
                costs_s[product_id] = await cost_s(product_id, kind)
            ratios.append(costs_s[_LARGE] / costs_s[_SMALL])
        met = median(ratios) <= _COST_RATIO_MAX
        return Target(f"CPU per request, {name}", spread(ratios), f"<= {_COST_RATIO_MAX:g}", met)

    async def cost_s(product_id: str, kind: str) -> float:
        """Run once; return the CPU time, never 0, as it comes in steps."""
        before_s = sum(map(proc.cpu_s, pids))
        await _run(server, scale, product_id, kind)
        return max(sum(map(proc.cpu_s, pids)) - before_s, proc.CPU_STEP_S)

    async with Redis.from_url(store_url) as redis:
        pids = (server.pid, (await redis.info("server"))["process_id"])

        async def set_by_hand(stock: int) -> None:
            await redis.set(keys.key(_LARGE, "stock"), stock)  # so that the list of buyers stays

        stocks = await pair(
            f"selling: stock {scale.stock:,} / just enough",
            SUCCESS,
            fresh(_SMALL, demand),
            fresh(_LARGE, scale.stock),
        )
        await admin.init(_LARGE, 0, force=True)
        await _fill_buyers(redis, scale.buyer_count)
        buyers_sold_out = await pair(
            f"sold out: {scale.buyer_count:,} buyers before / none",
            SOLD_OUT,
            fresh(_SMALL, 0),
            lambda: set_by_hand(0),
        )
        buyers_selling = await pair(
            f"selling: {scale.buyer_count:,} buyers before / none",
            SUCCESS,
            fresh(_SMALL, scale.stock),
            lambda: set_by_hand(scale.stock),
        )
    return [stocks, buyers_sold_out, buyers_selling]


async def _run(server: ServerProcess, scale: Scale, product_id: str, kind: str) -> None:
    """Let the crowd at the product; all answers must be of the one kind."""
    load = Load(
        host=server.host,
        port=server.port,
        product_id=product_id,
        connection_count=scale.connection_count,
        request_count=scale.request_count,
    )
    result = await run_load(load.with_timeout())
    if set(result.counts) != {kind}:
        raise FlashsaleError(f"only {kind} was expected of '{product_id}', not {dict(result.counts)}")


async def _fill_buyers(redis: Redis, count: int) -> None:
    for first in range(0, count, _CHUNK_COUNT):
        buyers = [f"earlier_{number}" for number in range(first, min(first + _CHUNK_COUNT, count))]
        await redis.lpush(keys.key(_LARGE, "buyers"), *buyers)
