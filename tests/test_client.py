"""The client library against a real server: answers, pipelining, time-outs, and what a broken link means."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop
from msgspec import structs

from flashsale import Cancelled, Client, Failed, Held, Mismatch, ProductStatus, SoldOut, Success
from flashsale.errors import AnswerTimeoutError, ConnectionLostError, InvalidValueError, NotSentError, ProtocolError
from flashsale.launch import ServerProcess

PATIENCE_S = 30.0
StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """One store for all, that of `server`."""
    return module_home


@pytest.fixture
def open_sale(server: ServerProcess, store: "redis.Redis", product_id: str) -> Callable[[int], str]:
    """Open a sale of so many units; returns the product id."""

    def open_one(stock: int) -> str:
        store.set(f"product:{product_id}:stock", stock)
        return product_id

    return open_one


@pytest.fixture
async def stand_in() -> AsyncIterator[Callable[[bytes], Awaitable[int]]]:
    """Listen, and answer the first bytes with these, as a real server does only when it is ill; returns the port."""
    listeners: list[asyncio.Server] = []
    gone = asyncio.Event()
    serving: set[asyncio.Task[None]] = set()

    async def listen(answer: bytes, *, close: bool = False) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            await reader.read(1)
            writer.write(answer)
            if not close:
                await gone.wait()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

        listeners.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        port: int = listeners[-1].sockets[0].getsockname()[1]
        return port

    yield listen
    gone.set()
    await asyncio.gather(*serving)
    for listener in listeners:
        listener.close()


def left(answer: object) -> int | None:
    """Return how many units were left after a purchase; None when it got none."""
    if isinstance(answer, Success):
        return answer.remaining_stock
    assert isinstance(answer, SoldOut)
    return None


# Answers


async def test_answers_are_typed(server: ServerProcess, open_sale: Callable[[int], str]) -> None:
    product_id = open_sale(1)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        assert await client.status(product_id) == ProductStatus(1, 0)
        bought = await client.purchase(product_id, "a")
        assert isinstance(bought, Success)
        assert (bought.remaining_stock, bought.version) == (0, 2)
        assert await client.purchase(product_id, "b") == SoldOut()
        assert await client.status(product_id) == ProductStatus(0, 1, version=2)
        assert await client.purchase("no-such", "a") == Failed("product not found")
        assert await client.status("no-such") == Failed("product not found")
        assert await client.purchase("", "a") == Failed("missing product_id or user_id")
        assert await client.ping(b"\x00anything\xff") == b"\x00anything\xff"
        assert await client.ping() == b""


async def test_holds_quantities_and_request_ids(server: ServerProcess, open_sale: Callable[[int], str]) -> None:
    product_id = open_sale(10)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        bought = await client.purchase(product_id, "a", quantity=3, request_id="r1")
        assert left(bought) == 7
        again = await client.purchase(product_id, "a", quantity=3, request_id="r1")
        assert again == structs.replace(bought, duplicate=True)
        assert await client.purchase(product_id, "a", quantity=2, request_id="r1") == Mismatch()
        assert await client.purchase(product_id, "a", item_id=1) == Failed("item not found")
        assert await client.purchase(product_id, "a", quantity=0) == Failed("invalid quantity")
        held = await client.reserve(product_id, "b", quantity=2, request_id="r2", hold_seconds=60)
        assert isinstance(held, Held)
        assert held.remaining_stock == 5
        longer = await client.extend(held.code, 120)
        assert isinstance(longer, Held)
        assert longer.expires_at > held.expires_at
        confirmed = await client.confirm(held.code, "r3")
        assert left(confirmed) == 5
        assert await client.confirm(held.code, "r3") == structs.replace(confirmed, duplicate=True)
        assert await client.cancel(held.code) == Failed("already confirmed")
        other = await client.reserve(product_id, "c")
        assert isinstance(other, Held)
        cancelled = await client.cancel(other.code)
        assert isinstance(cancelled, Cancelled)
        assert cancelled.remaining_stock == 5
        assert await client.status(product_id) == ProductStatus(5, 5, version=7)


async def test_any_number_of_tasks_share_one_connection_and_each_gets_its_own_answer(
    server: ServerProcess, open_sale: Callable[[int], str]
) -> None:
    product_id = open_sale(2_000)

    async def ask(number: int) -> object:
        if number % 3 == 0:
            return await client.ping(str(number).encode())
        return await client.purchase(product_id, f"u{number}")

    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        answers = await asyncio.gather(*(ask(number) for number in range(6_000)))
    assert [answer for answer in answers if isinstance(answer, bytes)] == [
        str(number).encode() for number in range(0, 6_000, 3)
    ]
    bought = [answer for answer in answers if not isinstance(answer, bytes)]
    assert [left(answer) for answer in bought] == [*reversed(range(2_000)), *[None] * 2_000]


async def test_a_payload_too_large_is_answered_and_the_next_request_has_a_new_connection(
    start_server: StartServer, open_sale: Callable[[int], str]
) -> None:
    server = await asyncio.to_thread(start_server, FLASHSALE_PAYLOAD_SIZE_MAX="1000")
    product_id = open_sale(5)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        assert await client.purchase(product_id, "u" * 2_000) == Failed("payload too large")
        with suppress(ConnectionLostError):  # the server's end may be seen only now
            await client.ping()
        assert left(await client.purchase(product_id, "u")) == 4
        with pytest.raises(ProtocolError, match="payload too large"):  # what the server says is no echo
            await client.ping(b"p" * 2_000)


async def test_a_request_that_no_server_takes_is_not_sent_and_disturbs_no_other(
    server: ServerProcess, open_sale: Callable[[int], str]
) -> None:
    product_id = open_sale(20)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        users = [f"u{number}" for number in range(20)]
        users[5], users[10] = "u" * 70_000, "\ud800"
        found = await asyncio.gather(*(client.purchase(product_id, user) for user in users), return_exceptions=True)
        assert [type(answer) for answer in found].count(Success) == 18
        assert [type(found[number]) for number in (5, 10)] == [InvalidValueError] * 2
        with pytest.raises(InvalidValueError, match="70005 bytes long; at most 65536"):
            await client.ping(b"p" * 70_000)


async def test_a_server_that_is_full_says_so(start_server: StartServer, open_sale: Callable[[int], str]) -> None:
    server = await asyncio.to_thread(start_server, FLASHSALE_CONNECTION_COUNT_MAX="1")
    product_id = open_sale(5)
    async with Client(server.host, server.port) as inside, Client(server.host, server.port) as outside:
        assert left(await inside.purchase(product_id, "u")) == 4
        for _ in range(10):
            with pytest.raises(NotSentError):
                await outside.purchase(product_id, "u")
        assert await inside.status(product_id) == ProductStatus(4, 1, version=2)
        with pytest.raises(NotSentError):  # and never some payload that was not sent
            await outside.ping(b"payload")


def test_it_runs_on_uvloop_too(server: ServerProcess, open_sale: Callable[[int], str]) -> None:
    product_id = open_sale(2)

    async def main() -> list[object]:
        async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
            bought = await client.purchase(product_id, "a")
            events = client.subscribe(product_id, 0)
            return [left(bought), (await anext(events)).event, (await anext(events)).event]

    assert uvloop.run(main()) == [1, "opened", "sold"]


# Time-outs


async def test_silence_is_a_time_out_and_the_late_answer_is_nobody_elses(
    start_server: StartServer, open_sale: Callable[[int], str]
) -> None:
    server = await asyncio.to_thread(start_server)
    product_id = open_sale(10)
    async with Client(server.host, server.port, timeout_s=0.3) as client:
        await client.ping()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(AnswerTimeoutError):
                await client.purchase(product_id, "late")
            with pytest.raises(AnswerTimeoutError):
                await client.ping(b"late")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for number in range(5):
            with suppress(AnswerTimeoutError):
                assert await client.ping(str(number).encode()) == str(number).encode()
        async with Client(server.host, server.port, timeout_s=PATIENCE_S) as other:
            assert await other.status(product_id) == ProductStatus(9, 1, version=2), (
                "a time-out means unknown: here it sold"
            )


async def test_a_caller_that_gives_up_leaves_the_others_their_answers(
    server: ServerProcess, open_sale: Callable[[int], str]
) -> None:
    product_id = open_sale(100)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        await client.ping()
        tasks = [asyncio.create_task(client.purchase(product_id, f"u{number}")) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        stocks = [answer.remaining_stock for answer in answers if isinstance(answer, Success)]
        assert len(stocks) == 10
        assert stocks == sorted(stocks, reverse=True)
        assert await client.ping(b"in step") == b"in step"


# Broken links


async def test_a_server_that_is_not_there_was_sent_nothing() -> None:
    async with Client("127.0.0.1", 1, connect_timeout_s=0.3) as client:
        for _ in range(2):
            with pytest.raises(NotSentError, match=r"cannot reach 127\.0\.0\.1:1"):
                await client.purchase("p", "u")


async def test_the_connect_time_out_is_everyones_own() -> None:
    count, connect_timeout_s = 40, 0.1
    async with Client("127.0.0.1", 1, connect_timeout_s=connect_timeout_s) as client:
        async with asyncio.timeout(count * connect_timeout_s / 2):  # one after another they would take twice as long
            outcomes = await asyncio.gather(*(client.ping() for _ in range(count)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NotSentError}


@pytest.fixture
def hold_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[], "asyncio.Queue[asyncio.Event]"]:
    """Hold up connections that are made; each is let through by the event that tells of it."""

    def begin() -> "asyncio.Queue[asyncio.Event]":
        loop, made = asyncio.get_running_loop(), asyncio.Queue[asyncio.Event]()
        connect = loop.create_connection

        async def make(*arguments: Any) -> Any:
            transport, protocol = await connect(*arguments)
            pass_on = asyncio.Event()
            made.put_nowait(pass_on)
            try:
                await pass_on.wait()
            except BaseException:
                transport.abort()
                raise
            return transport, protocol

        monkeypatch.setattr(loop, "create_connection", make)
        return made

    return begin


async def test_who_stops_waiting_for_the_connection_stops_nobody_else(
    server: ServerProcess, hold_up: Callable[[], "asyncio.Queue[asyncio.Event]"]
) -> None:
    made = hold_up()
    async with Client(server.host, server.port, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
        connecting, waiting, gone = [asyncio.create_task(client.ping(name)) for name in (b"a", b"b", b"c")]
        pass_on = await made.get()
        gone.cancel()
        await asyncio.sleep(0)
        pass_on.set()
        assert (await connecting, await waiting) == (b"a", b"b")
        assert client._link is not None
        client._link.close()
        connecting, waiting = [asyncio.create_task(client.ping(name)) for name in (b"d", b"e")]
        await made.get()
        connecting.cancel()
        (await made.get()).set()
        assert await waiting == b"e"


async def test_a_client_closed_while_it_connects_sends_nothing(
    stand_in: Callable[..., Awaitable[int]], hold_up: Callable[[], "asyncio.Queue[asyncio.Event]"]
) -> None:
    made = hold_up()
    client = Client("127.0.0.1", await stand_in(b"\x06\x00\x00\x00\x00"))
    asking = asyncio.create_task(client.ping())
    pass_on = await made.get()
    client.close()
    pass_on.set()
    with pytest.raises(NotSentError, match="the client is closed"):
        await asking
    assert client._link is not None
    assert client._link.lost


async def test_requests_under_way_when_the_link_breaks_are_lost_and_never_sent_again(
    start_server: StartServer, open_sale: Callable[[int], str], server: ServerProcess
) -> None:
    victim = await asyncio.to_thread(start_server)
    product_id = open_sale(1_000)
    async with Client(victim.host, victim.port, timeout_s=PATIENCE_S) as client:
        await client.ping()
        os.kill(victim.pid, signal.SIGSTOP)
        tasks = [asyncio.create_task(client.purchase(product_id, f"u{number}")) for number in range(50)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(victim.kill)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ConnectionLostError}
        await asyncio.to_thread(start_server, port=victim.port)
        assert left(await client.purchase(product_id, "next")) == 999, "a lost request was sent again"


async def test_what_the_server_did_not_take_was_not_sent(start_server: StartServer) -> None:
    server = await asyncio.to_thread(start_server)
    payload = b"p" * 60_000
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as patient:
        async with Client(server.host, server.port, timeout_s=1) as hasty:
            for client in (patient, hasty):
                await client.ping()
            os.kill(server.pid, signal.SIGSTOP)
            tasks = [asyncio.create_task(patient.ping(payload)) for _ in range(400)]  # more than the kernel keeps
            outcomes = await asyncio.gather(*(hasty.ping(payload) for _ in range(400)), return_exceptions=True)
            assert [type(outcome) for outcome in (outcomes[0], outcomes[-1])] == [AnswerTimeoutError, NotSentError]
        await asyncio.to_thread(server.kill)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in (outcomes[0], outcomes[-1])] == [ConnectionLostError, NotSentError]
        assert "unknown" in str(outcomes[0])
        assert "unknown" not in str(outcomes[-1])


@pytest.mark.parametrize(
    ("notice", "error"),
    [(b'{"status":"BUSY"}', NotSentError), (b'{"status":"ERROR","error":"x"}', ConnectionLostError), (b"?" * 9, None)],
)
async def test_only_a_busy_notice_says_that_nothing_was_read(
    stand_in: Callable[..., Awaitable[int]], notice: bytes, error: type[Exception] | None
) -> None:
    port = await stand_in(b"\x00\x00\x00\x00" + bytes([len(notice)]) + notice)
    async with Client("127.0.0.1", port) as client:
        with pytest.raises(ConnectionLostError) as raised:
            await client.purchase("p", "u")
    assert type(raised.value) is (error or ConnectionLostError)
    assert ("outcome unknown" in str(raised.value)) is (error is not NotSentError)


async def test_it_connects_again_when_the_server_is_back(
    start_server: StartServer, open_sale: Callable[[int], str]
) -> None:
    server = await asyncio.to_thread(start_server)
    product_id = open_sale(100)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
        assert left(await client.purchase(product_id, "u")) == 99
        assert await asyncio.to_thread(server.stop) == 0
        waiting = [asyncio.create_task(client.purchase(product_id, f"u{number}")) for number in range(10)]
        await asyncio.to_thread(start_server, port=server.port)
        answers = await asyncio.gather(*waiting)
        assert sorted(map(left, answers)) == list(range(89, 99)), "they waited for it"


async def test_a_closed_client_is_closed(server: ServerProcess) -> None:
    client = Client(server.host, server.port)
    await client.ping()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        under_way = asyncio.create_task(client.ping())
        await asyncio.sleep(0.05)
        client.close()
        with pytest.raises(ConnectionLostError):
            await under_way
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with pytest.raises(NotSentError):
        await client.ping()


async def test_an_answer_cut_short_is_a_lost_connection(stand_in: Callable[..., Awaitable[int]]) -> None:
    port = await stand_in(b'\x01\x00\x00\x00\x29{"status":"SUCC', close=True)
    async with Client("127.0.0.1", port) as client:
        with pytest.raises(ConnectionLostError):
            await client.purchase("p", "u")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x01\x00\x00\x00\x02{}",
        b"\x01\x00\x00\x00\x05hello",
        b'\x01\x00\x00\x00\x12{"status":"SOLD"} ',
        b'\x05\x00\x00\x00\x2c{"status":"OK","remaining_stock":1,"sold":1}',
        b"\x01\xff\xff\xff\xff{",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_bytes_that_are_no_answer_are_an_error_at_once_and_not_a_sale(
    stand_in: Callable[..., Awaitable[int]], answer: bytes
) -> None:
    async with Client("127.0.0.1", await stand_in(answer), timeout_s=3) as client:
        with pytest.raises((ProtocolError, ConnectionLostError)):
            await client.purchase("p", "u")
