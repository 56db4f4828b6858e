"""Streams of events, over real sockets: what is sent, and how they end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress

import pytest
from uvicorn.server import ServerState

from flashsale.http.asks import RefusedError
from flashsale.http.events import Event, Events, Open, Streams
from flashsale.http.replies import Scope, problem
from flashsale.http.session import HttpSession, Places, make_config

GET = b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_S = 10.0


class Client:
    """One who listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes = GET) -> bytes:
        """Send a request; return the head of its answer."""
        self.writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def chunk(self) -> bytes:
        """Return what is sent next; nothing when that was all."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]


Connect = Callable[[], Awaitable[Client]]
Opened = AbstractAsyncContextManager[Events]


@asynccontextmanager
async def serve(streams: Streams, open_events: Open) -> AsyncIterator[Connect]:
    """Serve a stream at every URL; give what connects to it."""
    config, state = make_config(streams.endpoint(open_events)), ServerState()
    sessions: set[HttpSession] = set()

    def admit(session: HttpSession) -> bool:
        sessions.add(session)
        return True

    def make() -> HttpSession:
        return HttpSession(config, state, Places(admit, sessions.discard), body_size_max=1024)

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:

        async def connect() -> Client:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
            stack.push_async_callback(close, writer)
            return Client(reader, writer)

        yield connect
    server.close()
    await wait_until(lambda: not sessions)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def wait_until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what it looks at is not to know that
            await asyncio.sleep(0.005)


async def of(*events: Event) -> Events:
    for event in events:
        yield event


async def test_an_event_has_its_id_its_name_and_a_line_for_each_of_its_own() -> None:
    assert Event(b"1").encode() == b"data: 1\n\n"
    assert Event(b"").encode() == b"data: \n\n"
    assert Event(b"1\n2\r\n3", id="7", name="sold").encode() == (b"id: 7\nevent: sold\ndata: 1\ndata: 2\ndata: 3\n\n")


async def test_events_are_streamed_until_there_are_no_more_and_the_connection_goes_on() -> None:
    def open_events(scope: Scope) -> Opened:
        return aclosing(of(Event(b"1", id="1"), Event(b"2", id="2")))

    async with serve(Streams(asyncio.Event()), open_events) as connect:
        client = await connect()
        for _ in range(2):
            head = await client.ask()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"\r\ncontent-type: text/event-stream; charset=utf-8\r\n" in head
            assert b"\r\ncache-control: no-store\r\n" in head
            assert [await client.chunk() for _ in range(3)] == [b"id: 1\ndata: 1\n\n", b"id: 2\ndata: 2\n\n", b""]


async def test_what_is_silent_says_that_it_is_there() -> None:
    go_on = asyncio.Event()

    async def later() -> Events:
        await go_on.wait()
        yield Event(b"at last")

    def open_events(scope: Scope) -> Opened:
        return aclosing(later())

    async with serve(Streams(asyncio.Event(), heartbeat_s=0.01), open_events) as connect:
        client = await connect()
        await client.ask()
        assert [await client.chunk() for _ in range(2)] == [b":\n\n"] * 2
        go_on.set()
        while (chunk := await client.chunk()) == b":\n\n":
            pass
        assert chunk == b"data: at last\n\n"
        assert await client.chunk() == b""


class Endless:
    """Events without an end, and what became of those who gave them."""

    def __init__(self) -> None:
        self.count = 0
        self.closed_count = 0

    @asynccontextmanager
    async def open(self, scope: Scope) -> AsyncIterator[Events]:
        try:
            async with aclosing(self._events()) as events:
                yield events
        finally:
            self.closed_count += 1

    async def _events(self) -> Events:
        while True:
            self.count += 1
            yield Event(b"x" * 10_000)
            await asyncio.sleep(0)


async def test_streams_end_when_the_server_does_and_none_begins() -> None:
    draining, endless = asyncio.Event(), Endless()
    streams = Streams(draining)
    async with serve(streams, endless.open) as connect:
        client, late = await connect(), await connect()
        await client.ask()
        draining.set()
        while await client.chunk():
            pass
        assert (streams.count, endless.closed_count) == (0, 1)
        assert (await late.ask()).startswith(b"HTTP/1.1 503 ")


async def test_a_stream_ends_when_its_client_is_gone() -> None:
    endless = Endless()
    streams = Streams(asyncio.Event())
    async with serve(streams, endless.open) as connect:
        client = await connect()
        await client.ask()
        client.writer.transport.abort()
        await wait_until(lambda: streams.count == 0)
        assert endless.closed_count == 1


async def test_a_client_that_takes_nothing_is_asked_for_nothing_more_and_goes_on_once_it_does() -> None:
    endless = Endless()
    async with serve(Streams(asyncio.Event()), endless.open) as connect:
        slow, other = await connect(), await connect()
        await slow.ask()
        seen = await where_it_stays(endless)
        assert endless.count < 2_000  # 20 MB: what the sockets of both sides take
        await other.ask()
        assert await other.chunk()  # it is held up alone
        while endless.count < seen + 500:
            await slow.chunk()
            await other.chunk()


async def where_it_stays(endless: Endless) -> int:
    """Return how many events were given once no more are."""
    seen = 0
    while not seen or seen != endless.count:
        seen = endless.count
        await asyncio.sleep(0.05)
    return seen


async def test_beyond_a_number_of_streams_the_answer_is_busy() -> None:
    async with serve(Streams(asyncio.Event(), count_max=1), Endless().open) as connect:
        first, second = await connect(), await connect()
        assert (await first.ask()).startswith(b"HTTP/1.1 200 ")
        head = await second.ask()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5\r\n" in head


async def test_what_cannot_be_streamed_is_answered_and_takes_no_place() -> None:
    @asynccontextmanager
    async def open_events(scope: Scope) -> AsyncIterator[Events]:
        raise RefusedError(problem(404, "product-not-found", "product not found"))
        yield

    streams = Streams(asyncio.Event())
    async with serve(streams, open_events) as connect:
        client = await connect()
        assert (await client.ask()).startswith(b"HTTP/1.1 404 ")
        assert streams.count == 0


async def test_a_head_request_gets_the_head() -> None:
    endless = Endless()
    async with serve(Streams(asyncio.Event()), endless.open) as connect:
        client = await connect()
        assert b"text/event-stream" in await client.ask(GET.replace(b"GET", b"HEAD"))
        assert (await client.ask(GET.replace(b"GET", b"HEAD"))).startswith(b"HTTP/1.1 200 ")  # on the same connection
        assert (endless.count, endless.closed_count) == (0, 2)


async def test_a_stream_that_fails_ends_without_its_last_chunk(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> Events:
        yield Event(b"1")
        raise RuntimeError("a bug")

    def open_events(scope: Scope) -> Opened:
        return aclosing(broken())

    streams = Streams(asyncio.Event())
    async with serve(streams, open_events) as connect:
        client = await connect()
        await client.ask()
        assert await client.chunk() == b"data: 1\n\n"
        assert await client.reader.read() == b""
        await wait_until(lambda: streams.count == 0)
    assert "a bug" in caplog.text
