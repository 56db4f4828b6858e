"""A small crowd that buys, holds and confirms at both servers while faults come, and what became of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from itertools import count

import sqlalchemy as sa
from msgspec import Struct
from redis.asyncio import Redis

from flashsale import Client
from flashsale.domain.answers import Answer, Busy, Cancelled, Held, Success, Unavailable, Unknown
from flashsale.domain.requests import Purchase, Request, Restock
from flashsale.domain.sale import Terms
from flashsale.errors import DatabaseError, FlashsaleError
from flashsale.orders.tables import orders
from flashsale.store.admin import Admin
from flashsale.wire import FrameReader, decode_answer, encode_request
from tests.faults.scene import PATIENCE_S, SECOND_NS, Scene, now
from tests.faults.verdict import judge
from tests.history.checks import tell
from tests.history.crowd import Crowd, Habits
from tests.history.record import Call, Sale, compare_clocks

HABITS = Habits(clients=12, users=40, seconds=600, pause_max_s=0.1, burst_max=4, cuts=0, stays=10, insists=True)
TERMS = Terms(limit=6, hold_s=2, hold_total_s=4)
SEATS = Terms(limit=20, hold_s=2, hold_total_s=4, numbered=True)
ROWS_S = 5.0
"""How soon an order is a row once everything is up."""
LEAD_COUNT = 150
"""Calls before a fault, and after service is back."""


class Needs(StrEnum):
    """What some faults are for alone."""

    DATABASE = "a database that is a server"
    POSTGRESQL = "PostgreSQL"
    FILE = "a database that is a file"
    SMALL_DISK = "a disk of its own for the store"


class Fault(Struct, frozen=True):
    """One row of the matrix."""

    number: str
    what: str
    expected: str
    breaks: "Callable[[Run], Awaitable[int]]"
    """Does it, and returns from when on (in ns) service has to come back by itself."""
    back_s: float
    """How soon it does."""
    needs: Needs | None = None
    quiet: bool = False
    """Whether nobody may notice."""
    also: str = ""
    """The test that looks at it more closely, if there is one."""


class Row(Struct, frozen=True):
    """What a fault did, as the table shows it."""

    number: str
    what: str
    level: str
    database: str
    seed: int
    calls: int
    acknowledged: int
    unknown: int
    lost: int
    twice: int
    oversold: int
    back_s: float
    rows_s: float


class Run:
    """A crowd at the servers of a scene, and hands to break something."""

    def __init__(self, scene: Scene, sales: Sequence[Sale], clock_ms: float, seed: int, *, long: bool) -> None:
        self.scene = scene
        self.sales = sales
        self.clock_ms = clock_ms
        self.chance = random.Random(seed)
        self.long = long
        self.crowd = Crowd(scene.ports, sales, self._now_ms, seed=seed, habits=HABITS)
        self.over = False
        self._numbers = count(1)

    def _now_ms(self) -> float:
        return time.monotonic() * 1e3 + self.clock_ms

    async def ask(self, port: int, request: Request, timeout_s: float = PATIENCE_S) -> Answer | None:
        """Ask one thing over a connection of its own, and write it down; None is no answer."""
        answer: Answer | None = None
        begin = now()
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(encode_request(request))
                    frames = FrameReader()
                    while answer is None and (data := await reader.read(65_536)):
                        for _, payload in frames.feed(data):
                            answer = decode_answer(payload)
                finally:
                    writer.transport.abort()
        self.crowd.recorder.note(f"single call {next(self._numbers)}", request, begin, answer)
        return answer

    async def insist(self, port: int, request: Request) -> Answer:
        """Ask until there is an answer that says what is."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.ask(port, request)
                if answer is not None and not isinstance(answer, Busy | Unavailable | Unknown):
                    return answer
                await asyncio.sleep(0.02)

    async def back(self, since: int) -> tuple[float, float]:
        """Return how long after that moment each server sells again, and these sales are rows, in seconds."""
        plain = self.sales[-1].product_id
        names = [f"probe {next(self._numbers)}" for _ in self.scene.ports]
        probes = zip(self.scene.ports, names, strict=True)
        answers = await asyncio.gather(*(self.insist(port, Purchase(plain, name, 1, name)) for port, name in probes))
        back_s = (now() - since) / SECOND_NS
        if self.scene.moves:
            await self._are_rows([answer.order_id for answer in answers if isinstance(answer, Success)])
        return back_s, (now() - since) / SECOND_NS

    async def _are_rows(self, order_ids: Sequence[str]) -> None:
        database = self.scene.open_database()
        query = sa.select(sa.func.count()).select_from(orders).where(orders.c.order_id.in_(order_ids))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with suppress(DatabaseError):  # it may be on its way back
                        async with database.reading() as connection:
                            if await connection.scalar(query) == len(order_ids):
                                return
                    await asyncio.sleep(0.02)
        finally:
            await database.close()

    async def in_vain(self, number: int = 5, product_id: str = "") -> None:
        """Wait until so many more calls, of this product if one is named, were not decided."""
        calls, start = self.crowd.recorder.calls, len(self.crowd.recorder.calls)

        def refused() -> int:
            later = (call for call in calls[start:] if product_id in {"", call.request.product_id})
            return sum(isinstance(call.answer, Unavailable | None) for call in later)

        async with asyncio.timeout(PATIENCE_S):
            while refused() < number:  # noqa: ASYNC110 - others write it down
                await asyncio.sleep(0.02)

    async def sells(self, number: int = 20) -> None:
        """Wait until so many more purchases have succeeded."""
        calls, start = self.crowd.recorder.calls, len(self.crowd.recorder.calls)
        async with asyncio.timeout(PATIENCE_S):
            while sum(isinstance(call.answer, Success) for call in calls[start:]) < number:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)

    async def settle(self) -> None:
        """Ask again whatever has a request id and was never answered for certain."""
        open_ones = {
            call.request.request_id: call.request
            for call in self.crowd.recorder.calls
            if call.answer is None and getattr(call.request, "request_id", None) is not None
        }
        some = list(open_ones.values())
        for first in range(0, len(some), 50):
            port = self.chance.choice(self.scene.ports)
            await asyncio.gather(*(self.insist(port, request) for request in some[first : first + 50]))

    async def bring_units(self, admin: Admin) -> None:
        """Restock a little, again and again, so that there is always something to fight over."""
        while not self.over:
            await asyncio.sleep(0.2)
            sale = self.chance.choice(self.sales[:-1])
            with suppress(FlashsaleError):
                await self.crowd.operate(admin, Restock(sale.product_id, self.chance.randint(5, 40)))

    async def follow(self, heard: list[str]) -> None:
        """Subscribe to the first sale at the second server from its beginning; note what does not follow."""
        version = 0
        async with Client("127.0.0.1", self.scene.ports[1], connect_timeout_s=PATIENCE_S) as client:
            async for event in client.subscribe(self.sales[0].product_id, 0):
                version += 1
                if event.version != version:
                    heard.append(f"a subscriber heard {event!r} where version {version} was to come")
                    return


@asynccontextmanager
async def open_run(scene: Scene, name: str, seed: int, *, long: bool) -> AsyncIterator[Run]:
    """Open sales, let a crowd loose on them and, at the end, let it hear its last answers."""
    sales = [
        Sale(f"{name}-crowd", 100, TERMS),
        Sale(f"{name}-seats", 60, SEATS),
        Sale(f"{name}-plain", 100_000, by_hand=True),
    ]
    async with Redis.from_url(scene.url) as client, Admin(scene.url) as admin:
        for sale in sales[:2]:
            await admin.init(sale.product_id, sale.stock, sale.terms)
        await client.set(f"product:{sales[-1].product_id}:stock", sales[-1].stock)
        run = Run(scene, sales, await compare_clocks(client), seed, long=long)
        shopping = asyncio.create_task(run.crowd.run())
        bringing = asyncio.create_task(run.bring_units(admin))
        try:
            await run.crowd.hears(LEAD_COUNT)
            yield run
        finally:
            run.over = True
            run.crowd.end()
            await asyncio.gather(shopping, bringing, return_exceptions=True)


async def suffer(
    scene: Scene, faults: Sequence[Fault], seed: int, *, long: bool = False, slack_s: float = 0.0
) -> tuple[list[Row], list[str]]:
    """Have faults come one after the other; return what each did, and everything that is not as it must be."""
    begins, healed, backs, wrong = list[int](), list[int](), list[tuple[float, float]](), list[str]()
    name = f"{faults[0].number}-{scene.database_name}-{seed}".lower().replace(" ", "-")
    async with open_run(scene, name, seed, long=long) as run:
        following = asyncio.create_task(run.follow(wrong))
        for fault in faults:
            begins.append(now())
            since = await fault.breaks(run)
            backs.append(await run.back(since))
            healed.append(now())
            back_s, rows_s = backs[-1]
            if back_s > fault.back_s + slack_s or rows_s > max(fault.back_s, ROWS_S) + slack_s:
                wrong.append(f"{fault.number}: back after {back_s:.2f} s, in the database after {rows_s:.2f} s")
            await run.crowd.hears(LEAD_COUNT)
        ended = now()
    await run.settle()
    found = await judge(scene, run.crowd.recorder, run.sales, run.clock_ms)
    if following.done():
        wrong.append(f"the subscription ended: {following.exception()}")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    rows = []
    for fault, begin, end, over, (back_s, rows_s) in zip(
        faults, begins, [*begins[1:], ended], healed, backs, strict=True
    ):
        calls = [call for call in run.crowd.recorder.calls if begin <= call.begin < end]
        if fault.quiet:
            wrong += [
                f"{fault.number} was noticed: {tell(call)}" for call in calls if call.begin < over and _in_vain(call)
            ]
        told = [call.answer for call in calls if isinstance(call.answer, Success | Held | Cancelled)]
        rows.append(
            Row(
                number=fault.number,
                what=fault.what,
                level=scene.durability,
                database=scene.database_name,
                seed=seed,
                calls=len(calls),
                acknowledged=sum(not answer.duplicate for answer in told),
                unknown=sum(call.answer is None for call in calls),
                lost=sum(begin <= at < end for at in found.lost),
                twice=found.twice,
                oversold=found.oversold,
                back_s=back_s,
                rows_s=rows_s,
            )
        )
    return rows, wrong + found.faults


def _in_vain(call: Call) -> bool:
    """Whether one of the crowd was not told what became of his request; an operator's own connection may be cut."""
    return isinstance(call.answer, Unavailable | None) and call.client != "operator"
