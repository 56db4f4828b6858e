import asyncio
import json
import socket
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
import pytest

from flashsale import onlooker
from flashsale.errors import ConnectionLostError, ProtocolError
from flashsale.live import ProductView, Snapshot, WorkerView

TOLD = Snapshot(
    at=1764000000.0,
    rate=912.0,
    outcomes={"SUCCESS": 12.0, "SOLD_OUT": 900.0},
    totals={"SUCCESS": 1000, "SOLD_OUT": 20_000},
    p50_ms=1.1,
    p99_ms=None,
    connections={"tcp": 20, "http": 3, "grpc": 0},
    queue=12,
    batch=12.3,
    store_up=True,
    store_round_trip_ms=0.6,
    products=[ProductView("p", 100, 3, 90, 7, "open", 12)],
    workers=[WorkerView(0, 123, 912.0, None, 23, 12.5)],
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
EVENT = b"data: %s\n\n" % msgspec.json.encode(TOLD)


def chunked(data, size):
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)


@asynccontextmanager
async def serving(*segments, then_close=True):
    """Say that to every client; yields the port."""

    ended = asyncio.Event()

    async def say(reader, writer):
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            for segment in segments:
                writer.write(segment)
                await writer.drain()
            if not then_close:
                await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await ended.wait()


async def hear(port):
    """Return the pictures that came, and how it ended."""
    heard = []

    async def follow():
        async with aclosing(onlooker.follow("127.0.0.1", port)) as pictures:
            async for picture in pictures:
                heard.append(picture)  # noqa: PERF401 - also when it ends with an error

    with pytest.raises((ConnectionLostError, ProtocolError)) as ended:
        await follow()
    return heard, ended.value


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\r\n" + EVENT + b": still here\n\n" + EVENT,
        chunked(EVENT + EVENT, 1),
        chunked(EVENT + EVENT, 1000),
        HEAD + b"\r\nid: 7\nevent: live\n" + EVENT + b"data\n\n" + EVENT,
    ],
)
@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_pictures_are_read_however_they_come(answer, size):
    segments = [answer[start : start + size] for start in range(0, len(answer), size)]
    async with serving(*segments) as port:
        heard, ended = await hear(port)
    assert heard == [TOLD, TOLD]
    assert str(ended) == f"the server at 127.0.0.1:{port} is gone: it ended the connection"


async def test_a_newer_server_may_tell_more():
    more = json.loads(msgspec.json.encode(TOLD)) | {"weather": "fine"}
    async with serving(HEAD + b"\r\ndata: " + json.dumps(more).encode() + b"\n\n") as port:
        assert (await hear(port))[0] == [TOLD]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-type: text/event-stream\r\n\r\n" + EVENT,
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>\n\n",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n" * 10_000,
        b'G\0\0\0\x2e{"status":"ERROR","error":"payload too large"}',  # where HTTP is not spoken
        HEAD + b"\r\ndata: {}\n\n",
        HEAD + b"\r\ndata: \xff\n\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nfive\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % (onlooker.EVENT_SIZE_MAX + 1),
        HEAD + b"\r\n" + b"data: x" * onlooker.EVENT_SIZE_MAX,
    ],
)
async def test_what_is_no_such_server_is_told_in_a_sentence(answer):
    async with serving(answer) as port:
        heard, ended = await hear(port)
    assert not heard
    assert str(ended) == f"what listens at 127.0.0.1:{port} does not serve /live as this version knows it"


async def test_a_server_that_is_cut_off_is_gone():
    for answer in (HEAD[:20], chunked(EVENT, 1000)[:-9]):
        async with serving(answer) as port:
            heard, ended = await hear(port)
        assert not heard
        assert isinstance(ended, ConnectionLostError)


async def test_a_server_that_says_nothing_is_gone(monkeypatch):
    monkeypatch.setattr(onlooker, "SILENCE_MAX_S", 0.1)
    for answer in (b"", HEAD + b"\r\n" + EVENT):
        async with serving(answer, then_close=False) as port:
            heard, ended = await hear(port)
        assert heard == [TOLD] * bool(answer)
        assert str(ended) == f"the server at 127.0.0.1:{port} is gone: it says nothing"


async def test_where_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        heard, ended = await hear(port)
    assert not heard
    assert str(ended) == f"cannot reach a server at 127.0.0.1:{port}: Connection refused"
