"""The link between server and store breaks at the worst moments: after a sale is made and before anybody heard of it.

A proxy stands in between and looks for script calls. What these tests prove is the pair (session, sequence).
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from flashsale import Answer, Client, ProductStatus, SoldOut, Success, Unavailable, Unknown
from flashsale.launch import ServerProcess

StartServer = Callable[..., ServerProcess]
GatherCrowd = Callable[..., Awaitable[Any]]


class Link:
    """One connection through the proxy."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()  # script calls wait here on their way to the store
        self.gate.set()
        self.passing: int | None = None  # bytes of replies that still pass before both ends are cut
        self.asked = False  # a script call came by


class Proxy:
    """Passes bytes both ways between a server and its store, except for what a test asks for."""

    def __init__(self, store_port: int) -> None:
        self._store_port = store_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.links: list[Link] = []
        self.cuts: deque[int | None] = deque()
        """For each script call to come: how many bytes of its reply pass before the cut; None: no cut."""
        self.swallowing = False
        """Script calls reach the store, their replies go nowhere, and nobody is told."""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = Link()
        self.links.append(link)
        store_reader, store_writer = await asyncio.open_connection("127.0.0.1", self._store_port)
        pumps = [
            asyncio.create_task(self._to_store(reader, store_writer, link)),
            asyncio.create_task(self._to_server(store_reader, writer, link)),
        ]
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, store_writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    async def _to_store(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if b"EVAL" in data:
                    link.asked = True
                    if self.cuts and (passing := self.cuts.popleft()) is not None:
                        link.passing = passing
                    await link.gate.wait()
                writer.write(data)
                await writer.drain()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.swallowing and link.asked:
                    continue
                if link.passing is not None:
                    cut = len(data) > link.passing
                    data, link.passing = data[: link.passing], link.passing - len(data)
                    writer.write(data)
                    if cut:
                        return
                    continue
                writer.write(data)
                await writer.drain()


@pytest.fixture
async def proxy(tcp_store: "redis.Redis") -> AsyncIterator[Proxy]:
    proxy = Proxy(tcp_store.connection_pool.connection_kwargs["port"])
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def server(proxy: Proxy, start_server: StartServer) -> ServerProcess:
    return await asyncio.to_thread(start_server, "--redis", f"127.0.0.1:{proxy.port}")


@pytest.fixture
async def client(server: ServerProcess, tcp_store: "redis.Redis") -> AsyncIterator[Client]:
    """A client, and 100 units of `p` of which one is sold: the script is loaded."""
    tcp_store.set("product:p:stock", 100)
    async with Client("127.0.0.1", server.port, timeout_s=30) as client:
        assert left(await client.purchase("p", "first")) == 99
        yield client


def left(answer: Answer) -> int:
    """Return how many units are left after a sale."""
    assert isinstance(answer, Success)
    return answer.remaining_stock


def buyers(store: "redis.Redis", product_id: str = "p") -> list[str]:
    """Return the buyers in order of purchase."""
    found: list[str] = store.lrange(f"product:{product_id}:buyers", 0, -1)
    return found[::-1]


def script_calls(store: "redis.Redis") -> int:
    stats = store.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def called(store: "redis.Redis", before: int) -> None:
    """Wait until the store has run one more script call."""
    async with asyncio.timeout(10):
        while script_calls(store) == before:  # noqa: ASYNC110 - it looks, nobody tells
            await asyncio.sleep(0.02)


async def test_a_sale_whose_reply_is_lost_is_confirmed_and_made_once(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    for number, passing in enumerate((0, 1, 7)):
        before = script_calls(tcp_store)
        proxy.cuts.append(passing)
        assert left(await client.purchase("p", f"u{number}")) == 98 - number
        assert script_calls(tcp_store) - before == 2, "the batch was to be sent twice"
    assert buyers(tcp_store) == ["first", "u0", "u1", "u2"]
    assert left(await client.purchase("p", "last")) == 95


async def test_a_reply_lost_five_times_changes_nothing(client: Client, proxy: Proxy, tcp_store: "redis.Redis") -> None:
    proxy.cuts.extend([0] * 5)
    answers = await asyncio.gather(*(client.purchase("p", f"u{number}") for number in range(10)))
    assert [left(answer) for answer in answers] == list(range(98, 88, -1))
    assert buyers(tcp_store) == ["first", *(f"u{number}" for number in range(10))]


async def test_the_last_unit_is_confirmed_and_sold_out_stays_sold_out_when_their_reply_is_lost(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    tcp_store.set("product:p:stock", 2)
    proxy.cuts.extend([0, 0])
    asked = [client.purchase("p", f"u{number}") for number in range(3)] + [client.status("p")]
    answers = await asyncio.gather(*asked)
    assert [left(answers[0]), left(answers[1])] == [1, 0]
    assert answers[2:] == [SoldOut(), ProductStatus(0, 3, version=4)]
    assert buyers(tcp_store) == ["first", "u0", "u1"]


async def test_of_several_products_in_one_round_trip_each_sells_once_wherever_it_is_cut(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    names = [f"p{number}" for number in range(5)]
    for passing in range(0, 100, 9):
        for name in names:
            tcp_store.set(f"product:{name}:stock", 10)
            tcp_store.delete(f"product:{name}:buyers")
        proxy.cuts.extend([None, passing])  # the first request goes alone, the others follow in one round trip
        answers = await asyncio.gather(*(client.purchase(name, "u") for name in names))
        proxy.cuts.clear()
        assert [left(answer) for answer in answers] == [9] * 5
        assert [buyers(tcp_store, name) for name in names] == [["u"]] * 5


async def test_replies_cut_at_random_under_load_lose_nothing_and_sell_nothing_twice(
    server: ServerProcess, proxy: Proxy, tcp_store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(server, tcp_store)
    chance = random.Random(4)
    proxy.cuts.extend(chance.choice([None, None, 0, 3, 20]) for _ in range(60))
    while proxy.cuts:
        await crowd.sees("SUCCESS", 20)
    await crowd.stop()
    crowd.check(tcp_store)


async def test_a_link_that_falls_silent_after_the_sale_is_answered_unknown_and_sells_on_later(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    proxy.swallowing = True
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    assert await client.purchase("p", "second") == Unknown()
    assert loop.time() - asked_at < 3
    proxy.swallowing = False
    async with asyncio.timeout(5):
        while await client.purchase("p", "third") == Unavailable():
            pass
    assert buyers(tcp_store).count("second") == 1, "it had reached the store"
    assert buyers(tcp_store).count("third") == 1
    assert int(tcp_store.get("product:p:stock")) + len(buyers(tcp_store)) == 100


async def test_a_call_that_reaches_the_store_after_a_later_one_sells_nothing(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    late = next(link.gate for link in reversed(proxy.links) if link.asked)
    late.clear()
    assert await client.purchase("p", "late") == Unknown()
    assert left(await client.purchase("p", "later")) == 98
    assert buyers(tcp_store) == ["first", "later"]
    before = script_calls(tcp_store)
    late.set()
    await called(tcp_store, before)
    assert buyers(tcp_store) == ["first", "later"], "a buyer who was given up is sold a unit after all"
    assert left(await client.purchase("p", "last")) == 97


async def test_a_call_for_a_sold_out_sale_that_comes_late_sells_nothing_after_a_restock(
    client: Client, proxy: Proxy, tcp_store: "redis.Redis"
) -> None:
    tcp_store.set("product:p:stock", 0)
    late = next(link.gate for link in reversed(proxy.links) if link.asked)
    late.clear()
    assert await client.purchase("p", "late") == Unknown()
    assert await client.purchase("p", "later") == SoldOut()  # changes nothing, and still shuts the door
    tcp_store.set("product:p:stock", 5)
    before = script_calls(tcp_store)
    late.set()
    await called(tcp_store, before)
    assert buyers(tcp_store) == ["first"]
    assert int(tcp_store.get("product:p:stock")) == 5
