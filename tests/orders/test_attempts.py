"""The recorder between a real pipe and real databases: each attempt is one row, or counted, whatever goes wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from flashsale.attempts import AttemptSender, Pipe
from flashsale.domain.answers import BUSY, SOLD_OUT, Answer, Cancelled, Expired, Failed, Held, Mismatch, Success
from flashsale.domain.requests import Cancel, Confirm, Extend, Purchase, Request, Reserve, Sweep
from flashsale.errors import DatabaseError
from flashsale.orders import recording, reports
from flashsale.orders.database import Database, database_url
from flashsale.orders.recording import Recorder
from flashsale.orders.reports import AttemptsWanted
from tests.orders import plain

PATIENCE_S = 20.0
CODE = f"{'t' * 22}.p.ü"
LONG = "ü" * 128


class Counter:
    """Where buyers are answered: a worker's end of a pipe, and recorders at the other."""

    def __init__(self, database: Database, size_max: int = 1 << 24) -> None:
        self.database = database
        self.pipe = Pipe()
        self.sender = AttemptSender(self.pipe.sending, size_max=size_max)
        self.recorder: Recorder | None = None
        self.recording: asyncio.Task[None] | None = None

    def tell(self, *attempts: tuple[Request, Answer]) -> None:
        self.sender.record([request for request, _ in attempts], [answer for _, answer in attempts])

    def sell_out(self, count: int, first: int = 0) -> None:
        self.tell(*((Purchase("p", f"u{number}"), SOLD_OUT) for number in range(first, first + count)))

    def start(self, database: Database | None = None) -> None:
        self.recorder = Recorder(self.pipe, database or self.database)
        self.recording = asyncio.create_task(self.recorder.run())

    async def end(self) -> None:
        """End as a server does: the worker first."""
        assert self.recorder is not None
        assert self.recording is not None
        await self.sender.close()
        self.recorder.end()
        await asyncio.wait_for(self.recording, PATIENCE_S)
        assert self.recorder.unsettled_count == 0

    async def users(self) -> list[str]:
        return [row["user_id"] for row in await plain.read_attempts(self.database)]

    async def settled_count(self) -> int:
        try:
            return len(await self.users()) + sum((await plain.read_dropped(self.database)).values())
        except DatabaseError:  # by a connection from before the database was away, which nobody has used since
            return 0

    async def settled(self, count: int) -> None:
        """Wait until so many are written or counted, and nothing is under way."""
        assert self.recorder is not None
        async with asyncio.timeout(PATIENCE_S):
            while self.recorder.unsettled_count or await self.settled_count() < count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)


@pytest.fixture
async def counter(database: Database) -> AsyncIterator[Counter]:
    made = Counter(database)
    yield made
    if made.recording is not None:
        made.recording.cancel()
        await asyncio.wait({made.recording})
    made.pipe.close()


def users(count: int, first: int = 0) -> list[str]:
    return [f"u{number}" for number in range(first, first + count)]


def row(product_id: str, user_id: str | None, kind: str, outcome: str, **more: Any) -> dict[str, Any]:
    quantity = 1 if user_id is not None else None
    rest = {"quantity": quantity, "item_id": None, "request_id": None, "detail": None, "version": None}
    return {"product_id": product_id, "user_id": user_id, "kind": kind, "outcome": outcome} | rest | more


async def test_every_kind_of_attempt_is_a_row_and_nothing_else_is(counter: Counter) -> None:
    counter.start()
    counter.tell(
        (Purchase("p", "ann", 2, "r", 3), Success(4, "order", 7, 3)),
        (Purchase("p", "ann", 2, "r", 3), Success(4, "order", 7, 3, duplicate=True)),
        (Purchase("p", "bob", 1, "r"), Mismatch()),
        (Purchase(LONG, LONG, 1_000_000, LONG[:64], 10_000_000), SOLD_OUT),
        (Reserve("p", "\N{PILE OF POO}'\"\\\n"), Held("code", 1_900_000_000, 3, 9, 5)),
        (Sweep("p"), Failed("none of the buyers' business")),
        (Confirm(CODE, "r"), Success(2, "order", 10)),
        (Cancel(CODE), Cancelled(3, 11)),
        (Extend(CODE, 5), Expired()),
        (Purchase("p", "Ann "), BUSY),
    )
    await counter.end()
    assert await plain.read_attempts(counter.database) == [
        row("p", "ann", "purchase", "SUCCESS", quantity=2, request_id="r", item_id=3, version=7),
        row("p", "ann", "purchase", "SUCCESS", quantity=2, request_id="r", item_id=3, version=7, detail="duplicate"),
        row("p", "bob", "purchase", "MISMATCH", request_id="r", detail="request_id belongs to another request"),
        row(LONG, LONG, "purchase", "SOLD_OUT", quantity=1_000_000, request_id=LONG[:64], item_id=10_000_000),
        row("p", "\N{PILE OF POO}'\"\\\n", "reserve", "HELD", item_id=5, version=9),
        row("p.ü", None, "confirm", "SUCCESS", request_id="r", version=10),
        row("p.ü", None, "cancel", "CANCELLED", version=11),
        row("p.ü", None, "extend", "EXPIRED"),
        row("p", "Ann ", "purchase", "BUSY"),
    ]
    assert await plain.read_dropped(counter.database) == {}


async def test_a_crowd_is_written_in_few_transactions_and_in_order(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    insert = recording.insert

    async def count(connection: AsyncConnection, table: sa.Table, rows: Any) -> None:
        written.append(len(rows))
        await insert(connection, table, rows)

    monkeypatch.setattr(recording, "insert", count)
    monkeypatch.setattr(recording, "_GATHER_S", PATIENCE_S)  # a slow machine would make more of them
    counter.sell_out(6_000)
    counter.start()
    await counter.end()
    assert await counter.users() == users(6_000)
    first, second = [number for number in written if number]
    assert first >= 5_000
    assert first + second == 6_000
    async with counter.database.reading() as connection:
        times = (await connection.execute(sa.text("SELECT min(at), max(at) FROM attempts"))).one()
    assert None not in times
    wanted = AttemptsWanted(product_id="p")
    assert [found["user_id"] async for found in reports.list_attempts(counter.database, wanted)] == users(6_000)


async def test_what_is_dropped_at_the_bound_is_counted_in_the_database(database: Database) -> None:
    counter = Counter(database, size_max=65_536)
    counter.sell_out(30_000)
    counter.start()
    await counter.end()
    dropped = await plain.read_dropped(database)
    assert list(dropped) == ["full"]
    assert 0 < dropped["full"] < 30_000
    assert await counter.users() == users(30_000 - dropped["full"])  # the first come
    counter.pipe.close()


async def test_a_recorder_that_was_killed_is_followed_by_one_that_counts_what_it_had(counter: Counter) -> None:
    counter.start()
    counter.sell_out(1_000)
    await counter.settled(1_000)
    await kill(counter)
    counter.sell_out(2_000, first=1_000)
    lost = counter.pipe.take()  # and dies with it
    assert lost is not None
    counter.start()
    await counter.end()
    assert await plain.read_dropped(counter.database) == {"killed": lost.attempt_count}
    assert sorted(await counter.users()) == sorted(
        users(1_000) + users(2_000 - len(lost.kinds), 1_000 + len(lost.kinds))
    )


async def kill(counter: Counter) -> None:
    """End the recorder while it waits; a process that is killed has no more to say either."""
    assert counter.recording is not None
    counter.recording.cancel()
    await asyncio.wait({counter.recording})


class Unheard(Database):
    """A database whose first commits succeed, but the line breaks before that is heard."""

    unheard_count = 0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        async with super().writing() as connection:
            yield connection
        self.unheard_count += 1
        if self.unheard_count <= 2:
            raise DatabaseError("the line broke")


async def test_a_commit_that_is_not_heard_of_makes_no_second_row(counter: Counter, shared_url: str) -> None:
    database = Unheard(database_url(shared_url, Path()))
    counter.start(database)
    counter.sell_out(600)
    await counter.settled(600)
    counter.sell_out(600, first=600)
    await counter.end()
    assert await counter.users() == users(1_200)
    assert await plain.read_dropped(counter.database) == {}
    assert database.unheard_count > 2
    await database.close()


async def test_what_the_database_does_not_take_is_counted_and_the_others_are_written(counter: Counter) -> None:
    takes_all = counter.database.dialect == "sqlite"
    counter.start()
    poison = (Purchase("p", "a\0b"), SOLD_OUT)
    counter.sell_out(100)
    counter.tell(poison)
    counter.sell_out(100, first=100)
    counter.tell(poison, poison)
    await counter.end()
    found = [user for user in await counter.users() if user != "a\0b"]
    assert found == users(200)
    refused_count = (await plain.read_dropped(counter.database)).get("refused", 0)
    assert refused_count == (3 if counter.database.dialect == "postgresql" else 0)
    assert len(await counter.users()) + refused_count == 203 or not takes_all


async def test_a_database_that_is_away_gets_what_there_was_room_for_and_the_number_of_the_rest(
    shared_url: str, database: Database, request: pytest.FixtureRequest
) -> None:
    if database.dialect != "postgresql":
        pytest.skip("one that can be stopped by itself is enough")
    server = request.getfixturevalue("postgres")
    counter = Counter(database, size_max=131_072)
    counter.start()
    counter.sell_out(1_000)
    await counter.settled(1_000)
    await asyncio.to_thread(server.kill)
    try:
        for number in range(1, 40):
            counter.sell_out(1_000, first=1_000 * number)
            await asyncio.sleep(0.01)
    finally:
        await asyncio.to_thread(server.start)
    await counter.settled(40_000)
    await counter.end()
    dropped = await plain.read_dropped(database)
    assert list(dropped) == ["full"]
    found = await counter.users()
    assert len(found) == len(set(found)) == 40_000 - dropped["full"]
    counter.pipe.close()


async def test_a_recorder_told_to_end_while_the_database_is_away_tries_until_it_is_cancelled(
    counter: Counter, tmp_path: Path
) -> None:
    class Away(Database):
        @asynccontextmanager
        async def writing(self) -> AsyncIterator[AsyncConnection]:
            raise DatabaseError("away")
            yield  # a generator

    database = Away(database_url(f"sqlite:///{tmp_path / 'a.db'}", Path()))
    counter.start(database)
    counter.sell_out(100)
    await asyncio.sleep(0.3)
    assert counter.recorder is not None
    assert counter.recording is not None
    counter.recorder.end()
    await asyncio.sleep(0.3)
    assert not counter.recording.done()
    await kill(counter)
    counter.start()  # the next one has them all: nothing was taken that could not be written
    await counter.end()
    assert await counter.users() == users(100)
    await database.close()


async def test_two_servers_share_the_tables(counter: Counter) -> None:
    other = Counter(counter.database)
    for one in (counter, other):
        one.start()
    counter.sell_out(500)
    other.sell_out(500, first=500)
    await asyncio.gather(counter.end(), other.end())
    assert sorted(await counter.users()) == sorted(users(1_000))
    other.pipe.close()


async def test_reports_tell_of_a_product_a_user_and_an_outcome(counter: Counter) -> None:
    assert not await reports.has_recorded(counter.database)
    counter.start()
    counter.tell(
        (Purchase("p", "ann"), Success(1, "order", 7)),
        (Purchase("q", "ann"), SOLD_OUT),
        (Purchase("p", "ann"), SOLD_OUT),
        (Purchase("p", "Ann"), SOLD_OUT),
        (Purchase("P", "ann"), SOLD_OUT),
    )
    await counter.end()
    assert await reports.has_recorded(counter.database)
    assert await reports.count_dropped(counter.database) == {}
    for wanted, counts in (
        (AttemptsWanted(product_id="p"), {"SOLD_OUT": 2, "SUCCESS": 1}),
        (AttemptsWanted(product_id="p", user_id="ann"), {"SOLD_OUT": 1, "SUCCESS": 1}),
        (AttemptsWanted(product_id="p", outcome="SUCCESS"), {"SUCCESS": 1}),
        (AttemptsWanted(product_id="none"), {}),
    ):
        assert await reports.count_attempts(counter.database, wanted) == counts
        listed = [found["outcome"] async for found in reports.list_attempts(counter.database, wanted)]
        assert sorted(listed) == sorted(name for name, count in counts.items() for _ in range(count))
