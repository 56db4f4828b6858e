"""How HTTP ends with its server, and what becomes of requests that were under way."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.launch import ServerProcess
from tests.http.client import Http, Raw, operate_in

StartServer = Callable[..., ServerProcess]
REQUEST = b"POST /api/purchase HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


def order(number: int) -> dict[str, object]:
    return {"request_id": f"r{number}", "user_id": f"u{number}", "item_id": "p", "quantity": 1}


@pytest.fixture
def on_store(home: Path) -> Callable[..., Any]:
    """Have the operator do something with the store of a test's own server."""
    return partial(operate_in, home)


def test_a_server_that_ends_says_so_first_and_sells_meanwhile(
    start_server: StartServer, on_store: Callable[..., Any]
) -> None:
    server = start_server(FLASHSALE_DRAIN_DELAY_S="1")
    on_store(lambda admin: admin.init("p", 3))
    client, streaming = Http(server.http_port), Raw(server.http_port)
    assert client.ask("GET", "/readyz").status == 200
    streaming.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    streaming.read_until(b"\n\n\r\n")  # the stock
    os.kill(server.pid, signal.SIGTERM)
    while client.ask("GET", "/readyz").status == 200:
        pass
    refused = client.ask("GET", "/readyz")
    assert refused.headers["connection"] == "close", "whoever stays would be cut off at the end"
    assert (refused.status, refused.body["type"]) == (503, "urn:flashsale:draining")
    assert client.ask("GET", "/health").status == 503
    assert client.ask("GET", "/livez").status == 200
    assert client.ask("POST", "/api/purchase", order(1)).status == 200
    assert streaming.read().endswith(b"0\r\n\r\n"), "the stream ends as it should"
    assert server.wait() == 0
    client.close()
    streaming.close()


def test_what_is_under_way_is_answered_before_the_end(start_server: StartServer, on_store: Callable[..., Any]) -> None:
    server = start_server()
    on_store(lambda admin: admin.init("p", 1_000))
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(server.http_port)) for _ in range(50)]
        for client in clients:
            client.send(PIECES[0])
            client.read_until(b'{"status":"ok"}')
        for number, client in enumerate(clients):
            body = json.dumps(order(number)).encode()
            client.send(REQUEST % (len(body), body))
        clients[0].read_until(b"}")
        os.kill(server.pid, signal.SIGTERM)
        answers = []
        for client in clients:
            if client is not clients[0]:
                answers.append(client.read())
            client.close()
        assert server.wait() == 0
    placed = sum(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers) + 1
    assert all(answer == b"" or answer.split()[1] in {b"200", b"503"} for answer in answers)
    start_server()
    assert on_store(lambda admin: admin.status("p")).sold >= placed > 1


def test_an_order_is_placed_once_also_when_the_server_is_killed_in_between(
    start_server: StartServer, on_store: Callable[..., Any]
) -> None:
    server = start_server()
    on_store(lambda admin: admin.init("p", 1_000))
    placed: dict[int, str] = {}

    def buy(number: int) -> None:
        """Ask until there is an answer, with the same id."""
        while number not in placed:
            try:
                client = Http(ports[-1])
                answer = client.ask("POST", "/api/purchase", order(number))
            except OSError:
                time.sleep(0.05)
                continue
            finally:
                client.close()
            if answer.status in {200, 409}:
                placed[number] = answer.body.get("order_id") or answer.body["first"]["order_id"]

    ports = [server.http_port]
    buyers = [threading.Thread(target=lambda n=n: [buy(m) for m in range(n, 200, 8)]) for n in range(8)]
    for buyer in buyers:
        buyer.start()
    while len(placed) < 40:
        time.sleep(0.01)
    server.kill()
    ports.append(start_server().http_port)
    for buyer in buyers:
        buyer.join()
    status = on_store(lambda admin: admin.status("p"))
    assert (status.sold, len(set(placed.values()))) == (200, 200)


PIECES = [
    b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
    REQUEST % (2, b"{}"),
    b"POST /checkout?user_id=%ff&id=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/products/%2F%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"DELETE /v1/holds/' OR 1=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"\r\n",
    b"A" * 5_000,
]


class Answers:
    """Reads what a server says, as a client of the standard would."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 5_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_comes_is_answered_in_http_and_harms_nobody(
    server: ServerProcess, pieces: list[bytes], cut: int
) -> None:
    data = b"GET " + b"".join(pieces)
    with Raw(server.http_port) as raw:
        try:
            for start in range(0, len(data), cut):
                raw.send(data[start : start + cut])
            raw.socket.shutdown(1)
            said = raw.read()
        except ConnectionError:
            said = b""  # it had ended before all was sent
    if b"HEAD " not in data:  # whose answers have no bodies, which a reader must know
        Answers().feed(said)
    with Raw(server.http_port) as raw:
        raw.send(PIECES[0])
        assert raw.read_until(b'{"status":"ok"}').startswith(b"HTTP/1.1 200 OK")
