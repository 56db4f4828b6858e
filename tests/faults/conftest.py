"""A crowd that keeps buying while things break, and the rules that must hold whatever broke."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
import redis

from flashsale import Busy, Client, SoldOut, Success, Unavailable, Unknown
from flashsale.errors import AnswerTimeoutError, ConnectionLostError
from flashsale.launch import ServerProcess

PRODUCT = "p"
STOCK = 1_000_000
PATIENCE_S = 30.0


class Answered:
    """What one user was told, and when it was asked and answered (monotonic seconds)."""

    __slots__ = ("answered_at", "asked_at", "kind", "user")

    def __init__(self, user: str, kind: str, asked_at: float, answered_at: float) -> None:
        self.user, self.kind, self.asked_at, self.answered_at = user, kind, asked_at, answered_at


class Crowd:
    """Closed-loop buyers, each with a connection of its own; every user asks exactly once.

    Kinds of answers: SUCCESS, SOLD_OUT, BUSY, UNKNOWN, LOST (the connection broke), or the text of an error.
    """

    def __init__(self, port: int, width: int = 20) -> None:
        self.port = port
        self.answers: list[Answered] = []
        self._stopping = False
        self._tasks = [asyncio.create_task(self._buy(number)) for number in range(width)]

    async def _buy(self, number: int) -> None:
        async with Client("127.0.0.1", self.port, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
            turn = 0
            while not self._stopping:
                user = f"u{number}-{turn}"
                turn += 1
                asked_at = time.monotonic()
                try:
                    kind = self._kind(await client.purchase(PRODUCT, user))
                except ConnectionLostError:
                    kind = "LOST"
                except AnswerTimeoutError:
                    kind = "SILENCE"
                self.answers.append(Answered(user, kind, asked_at, time.monotonic()))
                if kind != "SUCCESS":
                    await asyncio.sleep(0.02)

    @staticmethod
    def _kind(answer: object) -> str:
        match answer:
            case Success():
                return "SUCCESS"
            case SoldOut():
                return "SOLD_OUT"
            case Busy():
                return "BUSY"
            case Unknown():
                return "UNKNOWN"
            case Unavailable():
                return "unavailable"
        return repr(answer)

    def users(self, *kinds: str) -> set[str]:
        return {answer.user for answer in self.answers if answer.kind in kinds}

    @property
    def kinds(self) -> Counter[str]:
        return Counter(answer.kind for answer in self.answers)

    async def sees(self, kind: str, count: int = 100, timeout_s: float = PATIENCE_S) -> float:
        """Wait for `count` more answers of a kind to requests made from now on; return when the first of them came."""
        begun, start = time.monotonic(), len(self.answers)
        while True:
            new = [a.answered_at for a in self.answers[start:] if a.kind == kind and a.asked_at >= begun]
            if len(new) >= count:
                return new[0]
            assert time.monotonic() - begun < timeout_s, (
                f"no {kind}, but {Counter(a.kind for a in self.answers[start:])}"
            )
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Let everyone hear his last answer."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def check(self, store: "redis.Redis", *allowed: str, stock: int = STOCK) -> None:
        """Check what must hold after any fault, and that nobody was told anything but SUCCESS or what is allowed."""
        assert set(self.kinds) <= {"SUCCESS", *allowed}, self.kinds
        buyers = store.lrange(f"product:{PRODUCT}:buyers", 0, -1)
        sold, told = set(buyers), self.users("SUCCESS")
        assert len(sold) == len(buyers), "a user was sold twice what he asked for once"
        assert told <= sold, f"{len(told - sold)} confirmed sales are lost"
        assert sold - told <= self.users("UNKNOWN", "LOST"), "sold to someone who was told that he got nothing"
        assert int(store.get(f"product:{PRODUCT}:stock")) + len(buyers) == stock


@pytest.fixture
async def gather_crowd() -> AsyncIterator[Callable[..., Awaitable[Crowd]]]:
    """Let a crowd loose on a port, once the sale is open; returns when it is buying."""
    crowds: list[Crowd] = []

    async def gather(server: ServerProcess, store: "redis.Redis", width: int = 20) -> Crowd:
        store.set(f"product:{PRODUCT}:stock", STOCK)
        crowd = Crowd(server.port, width)
        crowds.append(crowd)
        await crowd.sees("SUCCESS", 500)
        return crowd

    yield gather
    for crowd in crowds:
        for task in crowd._tasks:
            task.cancel()
        await asyncio.gather(*crowd._tasks, return_exceptions=True)


@pytest.fixture
def tcp_store(start_store: Callable[..., int]) -> Iterator["redis.Redis"]:
    """A client of a store of one's own, as durable as the embedded one, on a TCP port."""
    port = start_store("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    with redis.Redis(port=port, decode_responses=True, socket_timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def store_pid(store: "redis.Redis") -> Callable[[], int]:
    """The process id of the embedded store."""

    def ask() -> int:
        pid: int = store.info("server")["process_id"]
        return pid

    return ask


@pytest.fixture
def stopped() -> Iterator[Callable[[int], None]]:
    """Stop a process as a debugger would; it goes on when the test is over at the latest."""
    pids = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)

    yield stop
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
