"""Replicated: a sale is told once a replica has it, and a replica in the place of the primary has all that was told."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from flashsale.domain.answers import SOLD_OUT, Held, Success
from flashsale.domain.batches import Ambiguous, Batch, NotExecuted, Outcome
from flashsale.domain.requests import Extend, Purchase, Reserve
from flashsale.errors import StoreRefusedError
from flashsale.store.admin import Admin
from flashsale.store.durability import REQUIRED, Durability
from flashsale.store.replicated import ReplicatedEngine

PATIENCE_S = 20.0
SETTINGS = [word for name, value in REQUIRED.items() for word in (f"--{name}", value)]
SOON = ["--repl-diskless-sync-delay", "0", "--repl-timeout", "3", "--repl-ping-replica-period", "1"]


class Pair:
    """A primary with a replica that can be cut off."""

    def __init__(self, start_store: Callable[..., int]) -> None:
        self._start = start_store
        self.primary_port = start_store(*SETTINGS, *SOON)
        self.replica_port = start_store(*SETTINGS, "--replicaof", "127.0.0.1", str(self.primary_port))
        self.url = f"redis://127.0.0.1:{self.primary_port}"
        self.primary = Redis(port=self.primary_port)
        self.replica = Redis(port=self.replica_port)

    async def linked(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.replica.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            while (await self.primary.info("replication"))["connected_slaves"] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def cut(self) -> None:
        """Have the replica follow nobody, as when the link is cut."""
        await self.replica.replicaof("127.0.0.1", "1")

    async def mend(self) -> None:
        await self.replica.replicaof("127.0.0.1", str(self.primary_port))
        await self.linked()


@pytest.fixture
async def pair(start_store: Callable[..., int]) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        made = Pair(start_store)
        stack.push_async_callback(made.primary.aclose)
        stack.push_async_callback(made.replica.aclose)
        await made.linked()
        yield made


@pytest.fixture
async def engine(pair: Pair) -> AsyncIterator[ReplicatedEngine]:
    opened = ReplicatedEngine(pair.url, 1, durability=Durability.REPLICATED)
    yield opened
    await opened.close()


async def buy(engine: ReplicatedEngine, number: int, *users: str) -> Outcome:
    batch = Batch("p", [Purchase("p", user) for user in users], number, fenced=True)
    [outcome] = await engine.commit([batch], timeout_s=PATIENCE_S)
    return outcome


async def test_what_was_told_is_at_the_replica_and_what_is_not_there_is_not_told(
    pair: Pair, engine: ReplicatedEngine
) -> None:
    async with Admin(pair.url) as admin:
        await admin.init("p", 5)
    told = await buy(engine, 1, "a", "b")
    assert isinstance(told, list)
    assert await pair.replica.lrange("product:p:buyers", 0, -1) == [b"b", b"a"]
    await pair.cut()
    assert isinstance(await buy(engine, 2, "c"), Ambiguous)
    assert isinstance(await buy(engine, 2, "c"), Ambiguous)  # again, and still nobody else has it
    assert await pair.primary.lrange("product:p:buyers", 0, -1) == [b"c", b"b", b"a"]
    await pair.mend()
    [answer] = await buy(engine, 2, "c")  # type: ignore[misc]
    assert isinstance(answer, Success)
    assert await pair.primary.lrange("product:p:buyers", 0, -1) == [b"c", b"b", b"a"]
    assert await pair.replica.lrange("product:p:buyers", 0, -1) == [b"c", b"b", b"a"]
    assert isinstance(await buy(engine, 3, "d", "e"), list)
    await pair.cut()
    assert await buy(engine, 4, "f") == [SOLD_OUT]  # nothing to wait for


async def test_what_another_connection_has_written_is_waited_for_too(pair: Pair, engine: ReplicatedEngine) -> None:
    async with Admin(pair.url) as admin:
        await admin.init("p", 5)
    [held] = (await engine.commit([Batch("p", [Reserve("p", "h")], 1)], timeout_s=PATIENCE_S))[0]  # type: ignore[misc]
    assert isinstance(held, Held)
    replica_id = (await pair.replica.info("server"))["process_id"]
    first = Batch("p", [Purchase("p", "a", request_id="r")], 2)
    again = Batch("p", first.requests, 2, fenced=True)
    os.kill(replica_id, signal.SIGSTOP)  # it is connected, and takes nothing
    try:
        assert isinstance((await engine.commit([first], timeout_s=PATIENCE_S))[0], Ambiguous)
        await engine.close()  # the next batch connects anew
        assert not isinstance((await engine.commit([again], timeout_s=PATIENCE_S))[0], list)
        for request in (first.requests[0], Extend(held.code)):
            other = ReplicatedEngine(pair.url, 1, durability=Durability.REPLICATED)
            assert not isinstance((await other.commit([Batch("p", [request], 1)], timeout_s=PATIENCE_S))[0], list)
            await other.close()
    finally:
        os.kill(replica_id, signal.SIGCONT)
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance((await engine.commit([again], timeout_s=PATIENCE_S))[0], list):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await pair.replica.lrange("product:p:buyers", 0, -1) == [b"a"]


async def test_a_store_with_too_few_replicas_is_refused(pair: Pair) -> None:
    wanting = ReplicatedEngine(pair.url, 2, durability=Durability.REPLICATED)
    with pytest.raises(
        StoreRefusedError,
        match=r"^the store has replicas: 1, and needs 2: start them, or say how many with --replicas$",
    ):
        await wanting.open()
    assert isinstance(await buy(wanting, 1, "a"), NotExecuted)
    await wanting.close()


async def test_a_replica_in_the_place_of_the_primary_has_all_that_was_told(
    pair: Pair, engine: ReplicatedEngine
) -> None:
    async with Admin(pair.url) as admin:
        await admin.init("p", 1_000)
    told: list[str] = []
    for number in range(1, 100):
        if number == 60:
            await pair.cut()
        users = [f"u{number}-{i}" for i in range(3)]
        outcome = await buy(engine, number, *users)
        if not isinstance(outcome, list):
            break
        told += users
    assert number == 60
    assert await pair.primary.llen("product:p:buyers") == len(told) + 3  # it lives, and knows more
    await pair.replica.replicaof("NO", "ONE")
    assert [name.decode() for name in await pair.replica.lrange("product:p:buyers", 0, -1)] == told[::-1]
