"""Buyers who send a purchase again: at once, after the answer, or without it; on the same connection or on others.

Each purchase has a request id and a user of its own. However often and wherever it is sent, it must have one effect,
and every answer but one must say that it is a repetition, with the order of the first. In the end the store's ledger
and its list of buyers are held against what was told.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import StrEnum
from random import Random
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from bench import line
from bench.books import Books, read_ledger
from bench.line import Line, Timings
from bench.result import Result
from bench.rig import Rig, on_rig
from flashsale.domain.answers import Answer, ProductStatus, SoldOut, Success, Unknown
from flashsale.domain.requests import Purchase
from flashsale.errors import FlashsaleError

Dial = Callable[[], Awaitable[Line]]
"""Makes one more connection."""

_PRODUCT_ID = "storm"
_SEED = 1
_AGAIN_COUNTS = (1, 2)
_CONNECT_COUNT_MAX = 50
"""Connections that are made at once, to be broken off."""


class Manner(StrEnum):
    """How a purchase is sent."""

    ONCE = "once"
    BURST = "in one burst"
    LATER = "again when answered"
    ELSEWHERE = "on several connections at once"
    BROKEN = "after a connection broke"
    """The first time on a connection that ends before the answer: what request ids are for."""


_REPEATED = tuple(manner for manner in Manner if manner is not Manner.ONCE)


class Plan(Struct, frozen=True, kw_only=True):
    """How many purchases there are, and how they are sent."""

    purchase_count: int
    connection_count: int
    pipeline_depth: int
    """Purchases under way on each connection."""
    stock: int
    again_share: float
    """Purchases that are sent more than once, from 0 to 1."""
    timeout_s: float
    """Until the run is given up, in seconds."""


class Order(Struct):
    """One purchase, and every answer to it."""

    purchase: Purchase
    manner: Manner
    again_count: int
    answers: list[Answer]

    @property
    def expected_count(self) -> int:
        """How many answers there should be."""
        return self.again_count + (self.manner is not Manner.BROKEN)


class Storm(Struct, frozen=True):
    """What came of it."""

    plan: Plan
    duration_s: float
    results: dict[str, Result]
    """Of the requests sent first, and of those sent again."""
    orders: list[Order]
    status: ProductStatus
    faults: list[str]
    """What is not as it must be, a sentence each."""

    @property
    def sold_count(self) -> int:
        """Purchases that were told SUCCESS."""
        return sum(any(isinstance(answer, Success) for answer in order.answers) for order in self.orders)

    @property
    def duplicate_count(self) -> int:
        """Answers that said that they were given before."""
        return sum(isinstance(answer, Success) and answer.duplicate for answer in self._answers())

    @property
    def failed_count(self) -> int:
        """Requests without an answer, or with one that is neither SUCCESS nor SOLD_OUT."""
        expected_count = sum(order.expected_count for order in self.orders)
        return expected_count - sum(isinstance(answer, Success | SoldOut) for answer in self._answers())

    @property
    def manners(self) -> Counter[str]:
        """How many purchases were sent how."""
        return Counter(order.manner for order in self.orders)

    def _answers(self) -> Iterator[Answer]:
        return (answer for order in self.orders for answer in order.answers)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they go into a JSON file."""
        return {
            "plan": self.plan,
            "duration_s": self.duration_s,
            "purchases": self.manners,
            "sold": self.sold_count,
            "duplicates": self.duplicate_count,
            "failed": self.failed_count,
            "operations": line.as_json(self.results),
            "check": {"passed": not self.faults, "faults": self.faults, "status": self.status},
        }


def run_storm(plan: Plan, progress: Callable[[str], None]) -> Storm:
    """Let the buyers loose on a server of their own with a fresh store.

    Args:
        plan: how many, and how they send.
        progress: called with what comes next.
    """

    async def run(rig: Rig) -> Storm:
        return await _run(rig, plan, progress)

    return on_rig(run)


async def _run(rig: Rig, plan: Plan, progress: Callable[[str], None]) -> Storm:
    await rig.admin.init(_PRODUCT_ID, plan.stock)
    timings = Timings()
    lines = await line.connect(rig.server.host, rig.server.port, plan.connection_count, timings)
    progress(f"{plan.purchase_count:,} purchases, {plan.again_share:.0%} of them sent again")
    orders = _make_orders(plan)
    dialling = asyncio.Semaphore(_CONNECT_COUNT_MAX)

    async def dial() -> Line:
        async with dialling:
            [one] = await line.connect(rig.server.host, rig.server.port, 1, timings)
        return one

    timings.begin()
    await _send_all(plan, orders, lines, dial)
    timings.end()
    for one in lines:
        one.close()
    status = await rig.admin.status(_PRODUCT_ID)
    buyers = [buyer async for buyer in rig.admin.buyers(_PRODUCT_ID)]
    async with Redis.from_url(rig.store_url) as redis:
        books = Books([change async for change in read_ledger(redis, _PRODUCT_ID)])
    faults = books.faults(plan.stock, status, buyers) + find_faults(orders, books)
    return Storm(plan, timings.duration_s, timings.results(), orders, status, faults)


def _make_orders(plan: Plan) -> list[Order]:
    random = Random(_SEED)
    orders = []
    for number in range(plan.purchase_count):
        manner = random.choice(_REPEATED) if random.random() < plan.again_share else Manner.ONCE
        purchase = Purchase(_PRODUCT_ID, f"user_{number}", request_id=f"request_{number}")
        orders.append(Order(purchase, manner, 0 if manner is Manner.ONCE else random.choice(_AGAIN_COUNTS), []))
    return orders


async def _send_all(plan: Plan, orders: Sequence[Order], lines: Sequence[Line], dial: Dial) -> None:
    """Send them in a closed loop, so many at once on each connection, until they are done or the time is over."""
    waiting = iter(orders)

    async def work(number: int) -> None:
        for order in waiting:
            await _send(order, lines, number, dial)

    try:
        async with asyncio.timeout(plan.timeout_s), asyncio.TaskGroup() as workers:
            for number in range(plan.connection_count * plan.pipeline_depth):
                workers.create_task(work(number % plan.connection_count))
    except TimeoutError:
        pass  # answers are missing, and will be told


async def _send(order: Order, lines: Sequence[Line], home: int, dial: Dial) -> None:
    """Send one purchase as often as it shall be; what goes elsewhere takes the next connections."""
    first, again = ("first", order.purchase), ("again", order.purchase)
    elsewhere = [lines[(home + number) % len(lines)] for number in range(1, order.again_count + 1)]
    match order.manner:
        case Manner.BURST:
            sent = lines[home].send([first, *[again] * order.again_count])
        case Manner.ELSEWHERE:
            sent = lines[home].send([first]) + [answer for other in elsewhere for answer in other.send([again])]
        case Manner.BROKEN:
            try:
                lost = await dial()
            except FlashsaleError:
                return  # the server is gone, and the answers are missing
            lost.send([("broken off", order.purchase)])
            lost.close()
            sent = []
        case _:
            sent = lines[home].send([first])
    order.answers += [await answer for answer in sent]
    if order.manner in {Manner.LATER, Manner.BROKEN}:
        for other in elsewhere:
            order.answers.append(await other.ask(*again))


def find_faults(orders: Sequence[Order], books: Books) -> list[str]:
    """Return where a purchase had not exactly the effect that every answer to it tells of."""
    wrong: Counter[str] = Counter()
    sales: dict[str, list[int]] = {}
    for sale in books.orders.values():
        sales.setdefault(sale.request_id, []).append(sale.version)
    for order in orders:
        request_id = order.purchase.request_id
        assert request_id is not None
        versions = sales.pop(request_id, [])
        successes = [answer for answer in order.answers if isinstance(answer, Success)]
        unsure = len(order.answers) < order.expected_count or any(isinstance(found, Unknown) for found in order.answers)
        if len(versions) > 1:
            wrong["request ids bought more than once"] += 1
        if versions and not successes and not unsure:
            wrong["request ids bought, but nobody was told"] += 1
        if successes and any(isinstance(answer, SoldOut) for answer in order.answers):
            wrong["request ids were told SUCCESS and SOLD_OUT"] += 1
        if any([answer.version] != versions for answer in successes) or len({one.order_id for one in successes}) > 1:
            wrong["request ids were told of another order than the one in the ledger"] += 1
        first_count = sum(not answer.duplicate for answer in successes)
        may_have_missed = unsure or order.manner is Manner.BROKEN
        if first_count > 1 or (successes and not first_count and not may_have_missed):
            wrong["request ids were not told exactly once that the order is new"] += 1
    wrong["orders in the ledger have a request id that nobody sent"] += len(sales)
    return [f"{count} {sentence}" for sentence, count in wrong.items() if count]
