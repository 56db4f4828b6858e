"""Customers who reserve, think, and then confirm, cancel or simply go: their holds expire and are sold to others.

Customers arrive at a steady rate, whatever the server does, and share the connections. Who is told SOLD_OUT tries again
for a while, as units of others may come back. In the end what each was told is held against the store and its ledger.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from bench import line
from bench.books import Books, read_ledger
from bench.line import Line, Timings
from bench.result import Result
from bench.rig import Rig, on_rig
from flashsale.domain.answers import Answer, Cancelled, Expired, Held, ProductStatus, SoldOut, Success, Unknown
from flashsale.domain.ids import parse_order_id
from flashsale.domain.requests import Cancel, Confirm, Reserve
from flashsale.domain.sale import Kind, Terms
from flashsale.store import keys

_PRODUCT_ID = "checkout"
_SEED = 1
_TRY_AGAIN_S = 1.0
_EXPIRY_GRACE_S = 5.0
_POLL_S = 0.2

CONFIRMED, CANCELLED, ABANDONED = "confirmed", "cancelled", "abandoned"
TOO_LATE, SOLD_OUT, FAILED, UNFINISHED = "too late", "sold out", "failed", "unfinished"


class Plan(Struct, frozen=True, kw_only=True):
    """Who comes, and how they behave. Times in seconds, shares from 0 to 1."""

    customer_count: int
    connection_count: int
    rate_per_s: float
    """Customers that arrive."""
    stock: int
    quantity_max: int
    """Each wants one unit to so many."""
    think_s: float
    """On average, between the hold and what becomes of it: half of it to half as much again."""
    hold_s: int
    patience_s: float
    """How long one who is told SOLD_OUT tries again, every second."""
    abandon_share: float
    cancel_share: float
    timeout_s: float
    """Until the run is given up."""


class Visit(Struct):
    """What one customer was told."""

    user_id: str
    quantity: int
    outcome: str = UNFINISHED
    hold: Held | None = None
    end: Answer | None = None
    """The answer to what was asked last."""


class Checkout(Struct, frozen=True):
    """What came of it."""

    plan: Plan
    duration_s: float
    """Until the last customer left."""
    results: dict[str, Result]
    """Of each operation."""
    visits: list[Visit]
    status: ProductStatus
    expired_count: int
    """Holds that the ledger says have expired."""
    faults: list[str]
    """What is not as it must be, a sentence each."""

    @property
    def outcomes(self) -> Counter[str]:
        """How many customers left how."""
        return Counter(visit.outcome for visit in self.visits)

    @property
    def failed_count(self) -> int:
        """Customers who were not served as they should be."""
        return self.outcomes[FAILED] + self.outcomes[UNFINISHED]

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they go into a JSON file."""
        return {
            "plan": self.plan,
            "duration_s": self.duration_s,
            "customers": self.outcomes,
            "operations": line.as_json(self.results),
            "check": {
                "passed": not self.faults,
                "faults": self.faults,
                "status": self.status,
                "expired": self.expired_count,
            },
        }


def check_out(plan: Plan, progress: Callable[[str], None]) -> Checkout:
    """Let the customers shop on a server of their own with a fresh store.

    Args:
        plan: who comes.
        progress: called with what comes next.
    """

    async def run(rig: Rig) -> Checkout:
        return await _check_out(rig, plan, progress)

    return on_rig(run)


async def _check_out(rig: Rig, plan: Plan, progress: Callable[[str], None]) -> Checkout:
    await rig.admin.init(_PRODUCT_ID, plan.stock, Terms(hold_s=plan.hold_s))
    timings = Timings()
    lines = await line.connect(rig.server.host, rig.server.port, plan.connection_count, timings)
    progress(f"{plan.customer_count:,} customers come, {plan.rate_per_s:,.0f} a second")
    timings.begin()
    visits = await _open_doors(plan, lines)
    timings.end()
    for one in lines:
        one.close()
    progress(f"the holds that are left expire within {plan.hold_s} s")
    async with Redis.from_url(rig.store_url) as redis:
        late_count = await _wait_for_expiry(redis, plan)
        status = await rig.admin.status(_PRODUCT_ID)
        for _ in range(late_count):  # so that at least the books are those of one moment
            if not status.held:
                break
            status = await rig.admin.status(_PRODUCT_ID)
        buyers = [buyer async for buyer in rig.admin.buyers(_PRODUCT_ID)]
        books = Books([change async for change in read_ledger(redis, _PRODUCT_ID)])
    faults = books.faults(plan.stock, status, buyers) + find_faults(visits, books)
    if late_count:
        faults.append(f"{late_count} holds were not back {_EXPIRY_GRACE_S:g} s after their time")
    return Checkout(plan, timings.duration_s, timings.results(), visits, status, books.kinds[Kind.EXPIRED], faults)


async def _open_doors(plan: Plan, lines: Sequence[Line]) -> list[Visit]:
    """Let everybody in when it is time, and return when the last has left or the time is over."""
    random = Random(_SEED)
    loop = asyncio.get_running_loop()
    visits: list[Visit] = []
    started_at = loop.time()
    try:
        async with asyncio.timeout(plan.timeout_s), asyncio.TaskGroup() as customers:
            for number in range(plan.customer_count):
                await asyncio.sleep(started_at + number / plan.rate_per_s - loop.time())
                visit = Visit(f"customer_{number}", random.randint(1, plan.quantity_max))
                visits.append(visit)
                customers.create_task(_shop(plan, visit, lines[number % len(lines)], Random(number)))
    except TimeoutError:
        pass  # who is not done remains UNFINISHED
    return visits


async def _shop(plan: Plan, visit: Visit, to_server: Line, random: Random) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + plan.patience_s
    reserve = Reserve(_PRODUCT_ID, visit.user_id, visit.quantity)
    while True:
        visit.end = await to_server.ask("reserve", reserve)
        pause_s = _TRY_AGAIN_S * random.uniform(0.5, 1.5)
        if not isinstance(visit.end, SoldOut) or loop.time() + pause_s > give_up_at:
            break
        await asyncio.sleep(pause_s)
    if not isinstance(visit.end, Held):
        visit.outcome = SOLD_OUT if isinstance(visit.end, SoldOut) else FAILED
        return
    visit.hold, visit.end = visit.end, None
    await asyncio.sleep(plan.think_s * random.uniform(0.5, 1.5))
    mood = random.random()
    if mood < plan.abandon_share:
        visit.outcome = ABANDONED
        return
    if mood < plan.abandon_share + plan.cancel_share:
        visit.end = await to_server.ask("cancel", Cancel(visit.hold.code))
    else:
        visit.end = await to_server.ask("confirm", Confirm(visit.hold.code))
    match visit.end:
        case Success():
            visit.outcome = CONFIRMED
        case Cancelled():
            visit.outcome = CANCELLED
        case Expired():
            visit.outcome = TOO_LATE
        case _:
            visit.outcome = FAILED


async def _wait_for_expiry(redis: Redis, plan: Plan) -> int:
    """Return once no hold is left; or how many are, long after they should be back.

    It only looks: a STATUS would itself return some.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + plan.hold_s + _EXPIRY_GRACE_S
    while True:
        left_count = int(await redis.zcard(keys.key(_PRODUCT_ID, "deadlines")))
        if not left_count or loop.time() > deadline:
            return left_count
        await asyncio.sleep(_POLL_S)


_ENDS = {CONFIRMED: Kind.CONFIRMED, CANCELLED: Kind.CANCELLED, ABANDONED: Kind.EXPIRED, TOO_LATE: Kind.EXPIRED}


def find_faults(visits: Sequence[Visit], books: Books) -> list[str]:
    """Return where customers were told something else than the ledger says."""
    wrong: Counter[str] = Counter()
    told_holds, told_orders = set(), set()
    uncertain_count = 0
    for visit in visits:
        unsure = visit.outcome == UNFINISHED or isinstance(visit.end, Unknown)
        uncertain_count += unsure
        if visit.hold is None:
            continue
        version = visit.hold.version
        told_holds.add(version)
        hold, end = books.holds.get(version), books.ends.get(version)
        if hold is None or (hold.user_id, hold.quantity) != (visit.user_id, visit.quantity):
            wrong["customers were told HELD, but have no such hold"] += 1
        elif not unsure and visit.outcome in _ENDS and (end is None or end.kind != _ENDS[visit.outcome]):
            wrong[f"customers left as '{visit.outcome}', but their holds did not end so"] += 1
        if isinstance(visit.end, Success):
            told_orders.add(visit.end.version)
            order = parse_order_id(visit.end.order_id)
            if end is None or order is None or not end.version == order.version == visit.end.version:
                wrong["confirmed codes are no orders"] += 1
    untold_count = len(books.holds.keys() - told_holds) + len(books.orders.keys() - told_orders)
    if untold_count > uncertain_count:
        wrong["holds and orders belong to customers who know nothing of them"] += untold_count
    if books.held:
        wrong["units are still held"] += books.held
    return [f"{count} {sentence}" for sentence, count in wrong.items()]
