"""What a client of HTTP may get wrong, on the socket: each is answered once, and the connection ends where it must."""

import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flashsale.http.session import HEAD_SIZE_MAX, HEADER_COUNT_MAX, SLICE_SIZE, URL_SIZE_MAX
from flashsale.launch import ServerProcess
from tests.http.client import PATIENCE_S, Raw

HEAD = b"POST /api/purchase HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b'{"status":"ok"}'


def told(data: bytes) -> tuple[int, str]:
    """Return the status and the kind of the last answer in these bytes, which must be whole."""
    head, _, body = data[data.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    assert len(body) == int(length[1])
    return int(head.split()[1]), json.loads(body)["type"].removeprefix("urn:flashsale:")


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[Raw]:
    with Raw(server.http_port) as client:
        yield client


BAD = {
    "no HTTP": (b"BUY one\r\n\r\n", 400, "bad-request"),
    "HTTP 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad-request"),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400, "bad-request"),
    "a space in front of a colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "bad-request"),
    "a NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 400, "bad-request"),
    "both lengths": (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad-request"),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "bad-request"),
    "a length that is none": (HEAD + b"Content-Length: abc\r\n\r\n", 400, "bad-request"),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400, "bad-request"),
    "a chunk without a size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "bad-request"),
    "another coding": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400, "bad-request"),
    "HTTP 2 in words": (b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", 400, "bad-request"),
    "an upgrade with chunks": (
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad-request",
    ),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 400, "bad-request"),
    "two hosts": (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-request"),
    "a long URL": (b"GET /" + b"a" * URL_SIZE_MAX + b" HTTP/1.1\r\n\r\n", 414, "url-too-long"),
    "a long header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * HEAD_SIZE_MAX + b"\r\n\r\n", 431, "head-too-large"),
    "a header without end": (
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (HEAD_SIZE_MAX + SLICE_SIZE),
        431,
        "head-too-large",
    ),
    "many headers": (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * (HEADER_COUNT_MAX + 1) + b"\r\n",
        431,
        "head-too-large",
    ),
    "a large body": (HEAD + b"Content-Length: 65537\r\n\r\n" + b" " * 65_537, 413, "body-too-large"),
    "a huge length": (HEAD + b"Content-Length: 99999999999999999\r\n\r\n", 413, "body-too-large"),
    "large chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 17,
        413,
        "body-too-large",
    ),
}


@pytest.mark.parametrize(("data", "status", "kind"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_and_ends_the_connection(raw: Raw, data: bytes, status: int, kind: str) -> None:
    raw.send(data)
    assert told(raw.read()) == (status, kind)


@pytest.mark.parametrize(("data", "status", "kind"), BAD.values(), ids=BAD)
def test_what_was_right_before_is_answered_before(raw: Raw, data: bytes, status: int, kind: str) -> None:
    raw.send(LIVEZ + LIVEZ + data)
    answers = raw.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert told(answers) == (status, kind)


def test_a_request_may_come_byte_by_byte(raw: Raw) -> None:
    body = b'{"request_id":"r","user_id":"u","item_id":"no-such","quantity":1}'
    for byte in HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body:
        raw.send(bytes([byte]))
    answer = raw.read()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b'{"success":false,"message":"product not found"}')


def test_a_thousand_requests_at_once_are_answered_in_order(raw: Raw) -> None:
    raw.send(b"".join(b"GET /items/%d HTTP/1.1\r\nHost: x\r\n\r\n" % n + LIVEZ for n in range(500)) + BAD["no HTTP"][0])
    answers = raw.read()
    statuses = re.findall(rb"HTTP/1.1 (\d+)", answers)
    assert statuses == [b"404", b"200"] * 500 + [b"400"]


def test_a_client_may_say_that_it_has_no_more(raw: Raw) -> None:
    raw.send(LIVEZ)
    assert raw.read_until(OK)
    raw.socket.shutdown(1)
    assert raw.read() == b""


def test_what_came_before_a_client_said_so_is_answered(raw: Raw) -> None:
    raw.send(LIVEZ * 2_000)
    raw.socket.shutdown(1)
    assert raw.read().count(OK) == 2_000


@pytest.mark.parametrize("piece_size", [1, 7, 10_000])
def test_whoever_would_rather_speak_something_else_is_answered(raw: Raw, piece_size: int) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n"
    order = b'{"request_id":"r","user_id":"u","item_id":"no-such","quantity":1}'
    smuggled = b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    sent = b"".join(
        (
            LIVEZ[:-2] + upgrade + b"\r\n" + LIVEZ,
            *(HEAD + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in (order, smuggled)),
            LIVEZ[:-2] + b"Connection: close\r\n\r\n",
        )
    )
    for start in range(0, len(sent), piece_size):
        raw.send(sent[start : start + piece_size])
    answers = raw.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"404", b"400", b"200"]
    assert b"invalid request body" in answers


def test_trailers_are_no_headers(raw: Raw) -> None:
    body = b'{"request_id":"r","user_id":"u","item_id":"no-such","quantity":1}'
    raw.send(
        HEAD
        + b"X-Request-Id: of-the-head\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(body), body)
        + b"Authorization: Bearer x\r\n" * (HEADER_COUNT_MAX + 1)
        + b"\r\n"
        + LIVEZ[:-2]
        + b"Connection: close\r\n\r\n"
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", raw.read()) == [b"404", b"200"]


def test_expectations_are_met(raw: Raw) -> None:
    raw.send(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    assert raw.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(b"{}")
    assert raw.read().startswith(b"HTTP/1.1 400 ")


def test_whoever_leaves_in_the_middle_harms_nobody(server: ServerProcess) -> None:
    for cut in range(1, len(HEAD) + 40, 7):
        with Raw(server.http_port) as raw:
            raw.send((HEAD + b'Content-Length: 90\r\n\r\n{"request_id":"')[:cut])
    with Raw(server.http_port) as raw:
        raw.send(LIVEZ)
        assert raw.read_until(OK)


def test_whoever_asks_and_leaves_at_once_fills_no_log(server: ServerProcess) -> None:
    """The log is looked at when the server ends."""
    for _ in range(30):
        raw = Raw(server.http_port)
        raw.send((HEAD + b"Content-Length: 2\r\n\r\n{}" + LIVEZ) * 5)
        reset(raw)


def reset(raw: Raw) -> None:
    """Leave without a word."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def test_both_protocols_are_spoken_on_one_port(server: ServerProcess) -> None:
    with Raw(server.port) as raw:
        raw.send(bytes([6, 0, 0, 0, 1]) + b"A")
        assert raw.socket.recv(6) == bytes([6, 0, 0, 0, 1]) + b"A"


def test_a_request_that_does_not_come_is_not_waited_for(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(FLASHSALE_FRAME_TIMEOUT_S="1")
    with ExitStack() as stack:
        at = time.monotonic()
        clients = []
        for begun in b"GET /livez HTT", HEAD + b"Content-Length: 90\r\n\r\n{", LIVEZ + b"GET":
            clients.append(stack.enter_context(Raw(server.http_port)))
            clients[-1].send(begun)
        for client in clients:
            assert told(client.read()) == (408, "too-slow")
            assert 0.9 < time.monotonic() - at < 10


def test_http_may_have_a_port_of_its_own(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--http", "127.0.0.1:0")
    assert server.http_port != server.port
    with Raw(server.http_port) as raw:
        raw.send(LIVEZ)
        assert raw.read_until(OK)
    with Raw(server.port) as raw:
        raw.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert raw.read().endswith(b'{"status":"ERROR","error":"payload too large"}')


def test_http_may_be_off(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--http", "off")
    with Raw(server.port) as raw:
        raw.send(LIVEZ)
        assert raw.read().endswith(b'{"status":"ERROR","error":"payload too large"}')


def test_there_is_room_for_so_many(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server("--http", "127.0.0.1:0", FLASHSALE_CONNECTION_COUNT_MAX="1")
    with Raw(server.http_port) as first, Raw(server.http_port) as second:
        first.send(LIVEZ)
        assert first.read_until(OK)
        assert told(second.read()) == (503, "busy")
        links = Path(f"/proc/{server.pid}/fd")
        before = len(list(links.iterdir()))
        others = [Raw(server.http_port) for _ in range(20)]
        assert {told(other.read()) for other in others} == {(503, "busy")}
        deadline = time.monotonic() + PATIENCE_S
        while len(list(links.iterdir())) > before:
            assert time.monotonic() < deadline, "those who found no room take up descriptors"
            time.sleep(0.01)
        for other in others:
            other.close()
