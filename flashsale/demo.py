"""`flashsale demo`: a whole flash sale on this machine, with a real server, a real store and a real crowd."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from flashsale.client import Client
from flashsale.domain.answers import Answer, SoldOut, Success
from flashsale.errors import FlashsaleError
from flashsale.store.admin import Admin

PRODUCT_ID = "flashsale-demo"
STOCK = 100
BUYER_COUNT = 2_000
_ANSWER_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5.0


class DemoResult(Struct, frozen=True):
    """What happened, seen from the buyers and from the store. Times in seconds."""

    sold_count: int
    sold_out_count: int
    unanswered_count: int
    other_count: int
    duration_s: float
    latency_p50_s: float
    latency_max_s: float
    remaining_stock: int
    buyers: list[str]
    winners: list[str]

    def faults(self) -> list[str]:
        """Return what is not as it must be, a sentence each; empty when all is well."""
        checks = {
            f"{self.unanswered_count} buyers got no answer": self.unanswered_count == 0,
            f"{self.other_count} buyers got neither a unit nor SOLD_OUT": self.other_count == 0,
            f"remaining {self.remaining_stock} + buyers {len(self.buyers)} is not {STOCK}": (
                self.remaining_stock + len(self.buyers) == STOCK
            ),
            "the store's list of buyers is not the list of those who were told SUCCESS": (
                sorted(self.buyers) == sorted(self.winners) and len(set(self.buyers)) == len(self.buyers)
            ),
        }
        return [sentence for sentence, holds in checks.items() if not holds]


async def run_demo(host: str, port: int, admin: Admin, progress: Callable[[int], None]) -> DemoResult:
    """Open a sale, let the crowd in, and compare what buyers were told with what the store has.

    Args:
        host: where a server on the same store listens.
        port: its port.
        admin: the store.
        progress: called with how many more buyers have their answer.
    """
    await admin.init(PRODUCT_ID, STOCK, force=True)
    doors = asyncio.Barrier(BUYER_COUNT + 1)  # open when everyone is connected
    latencies: list[float] = []

    async def buy(user_id: str) -> Answer | None:
        async with Client(host, port, timeout_s=_ANSWER_TIMEOUT_S, connect_timeout_s=_CONNECT_TIMEOUT_S) as client:
            with suppress(FlashsaleError):
                await client.ping()
            await doors.wait()
            begun = time.perf_counter()
            answer: Answer | None = None
            with suppress(FlashsaleError):
                answer = await client.purchase(PRODUCT_ID, user_id)
                latencies.append(time.perf_counter() - begun)
            progress(1)
            return answer

    users = [f"user_{number}" for number in range(BUYER_COUNT)]
    crowd = [asyncio.create_task(buy(user)) for user in users]
    await doors.wait()
    begun = time.perf_counter()
    answers = await asyncio.gather(*crowd)
    duration_s = time.perf_counter() - begun

    kinds = Counter(type(answer) for answer in answers)
    status = await admin.status(PRODUCT_ID)
    latencies.sort()
    return DemoResult(
        sold_count=kinds[Success],
        sold_out_count=kinds[SoldOut],
        unanswered_count=kinds[type(None)],
        other_count=BUYER_COUNT - kinds[Success] - kinds[SoldOut] - kinds[type(None)],
        duration_s=duration_s,
        latency_p50_s=latencies[len(latencies) // 2] if latencies else 0.0,
        latency_max_s=latencies[-1] if latencies else 0.0,
        remaining_stock=status.remaining_stock,
        buyers=[buyer async for buyer in admin.buyers(PRODUCT_ID)],
        winners=[user for user, answer in zip(users, answers, strict=True) if isinstance(answer, Success)],
    )
