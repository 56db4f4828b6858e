"""How an answer gets onto the wire."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from uvicorn.server import ServerState

from flashsale.http.replies import Reply, json_reply
from flashsale.http.session import HEAD_SIZE_MAX, HttpSession, Places, answer, make_config
from flashsale.server import ServerLimits
from tests.http.client import Raw

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PURCHASE = b"POST /api/purchase HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n%s\r\n{}"


def test_a_reply_is_its_bytes():
    reply = json_reply(200, {"a": 1}, headers=[(b"x", b"y")])
    head, body = reply.as_bytes((b"connection", b"close")).split(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert {b"connection: close", b"content-length: 7", b"x: y"} < set(head.split(b"\r\n"))


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
def test_a_header_has_one_line(value):
    with pytest.raises(ValueError, match="more than one line"):
        Reply(200, [(b"x", value)], b"").as_bytes()


def test_an_answer_comes_in_one_piece_and_the_connection_goes_on(server):
    with Raw(server.http_port) as raw:
        for _ in range(50):
            raw.send(PURCHASE % b"")
            assert raw.socket.recv(1 << 16).endswith(b'{"success":false,"message":"missing required fields"}')


def test_who_wants_no_other_answer_is_told_so(server):
    with Raw(server.http_port) as raw:
        raw.send(PURCHASE % b"Connection: close\r\n")
        answer = raw.read()
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b'"missing required fields"}')


@asynccontextmanager
async def swept_client(application):
    """Give a client's streams, and what has the server look at its clock so many times."""
    sessions = set()

    def make():
        return HttpSession(make_config(application), ServerState(), Places(admit, sessions.discard), body_size_max=9)

    def admit(session):
        sessions.add(session)
        return True

    def sweep(count):
        for session in list(sessions):
            for _ in range(count):
                session.sweep(ServerLimits(idle_timeout_s=20, frame_timeout_s=2))
        return list(sessions)

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer, sweep
        writer.close()
        for session in list(sessions):
            session.transport.abort()
        while sessions:  # noqa: ASYNC110 - the loop parts from them
            await asyncio.sleep(0.001)
    server.close()


async def test_who_is_idle_is_parted_from_and_who_waits_for_an_answer_is_not():
    asked, decided = asyncio.Event(), asyncio.Event()

    async def application(scope, receive, send):
        asked.set()
        await decided.wait()
        await answer(json_reply(200, "done"), send)

    async with swept_client(application) as (reader, writer, sweep):
        writer.write(REQUEST)
        await asked.wait()
        sweep(30)
        decided.set()
        assert (await reader.readuntil(b'"done"')).startswith(b"HTTP/1.1 200 OK")
        sweep(20)
        sweep(2)
        assert await reader.read() == b""


async def test_a_request_has_its_time_also_behind_a_long_silence():
    async def application(scope, receive, send):
        await answer(json_reply(200, "done"), send)

    async with swept_client(application) as (reader, writer, sweep):
        writer.write(REQUEST)
        await reader.readuntil(b'"done"')
        sweep(15)
        writer.write(REQUEST[:9])
        await asyncio.sleep(0.05)
        sweep(2)
        writer.write(REQUEST[9:])
        assert (await reader.readuntil(b'"done"')).startswith(b"HTTP/1.1 200 OK")
        writer.write(REQUEST[:9])
        await asyncio.sleep(0.05)
        sweep(5)
        assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def waiting_client(begun, decided):
    """Return a client whose first request is answered once that is decided."""

    async def application(scope, receive, send):
        begun.set()
        await decided.wait()
        await answer(json_reply(200, "done"), send)

    return swept_client(application)


async def test_an_answer_is_not_overtaken_by_what_is_wrong_with_the_next_request():
    begun, decided = asyncio.Event(), asyncio.Event()
    async with await waiting_client(begun, decided) as (reader, writer, _):
        writer.write(REQUEST)
        await begun.wait()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 3 * HEAD_SIZE_MAX)
        await asyncio.sleep(0.05)
        decided.set()
        said = await reader.read()
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert b'"done"HTTP/1.1 431 ' in said


async def test_a_second_request_that_does_not_come_is_told_behind_the_first_answer():
    begun, decided = asyncio.Event(), asyncio.Event()
    async with await waiting_client(begun, decided) as (reader, writer, sweep):
        writer.write(REQUEST + REQUEST + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await begun.wait()
        await asyncio.sleep(0.05)
        for _ in range(3):
            sweep(5)
        decided.set()
        said = await reader.read()
    assert said.count(b"HTTP/1.1 200 OK") == said.count(b'"done"') == 2
    assert b'"done"HTTP/1.1 408 ' in said


async def test_who_sends_on_while_he_waits_is_not_read_from():
    begun, decided = asyncio.Event(), asyncio.Event()

    async def application(scope, receive, send):
        if scope["path"] == "/wait":
            begun.set()
            await decided.wait()
        await answer(json_reply(200, "done"), send)

    async with swept_client(application) as (reader, writer, sweep):
        writer.write(REQUEST + REQUEST.replace(b"/ ", b"/wait ") + REQUEST * 10_000)
        await begun.wait()
        for _ in range(50):
            writer.write(REQUEST * 10_000)
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        [session] = sweep(0)
        assert 0 < len(session._held) < 1_000_000
        assert writer.transport.get_write_buffer_size() > 1_000_000
        decided.set()
        for _ in range(2):
            await reader.readuntil(b'"done"')
        writer.transport.abort()
