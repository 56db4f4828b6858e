"""Who comes too often is told so, and when to come again, through whichever door; and then is served."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashsale import Busy, Client, Success
from flashsale.domain.requests import Purchase, Subscribe
from flashsale.launch import ServerProcess
from flashsale.wire import MessageType, decode_answer, encode_request
from tests.http.client import PATIENCE_S, Http, Raw

OpenSale = Callable[..., str]
RATES = {
    "FLASHSALE_RATE_USER": "2/s",
    "FLASHSALE_RATE_CLIENT": "6/h",
    "FLASHSALE_RATE_ROUTE": "subscribe=1/h,confirm=1/h",
    "FLASHSALE_TRUSTED_PROXIES": "127.0.0.0/8",
}


@pytest.fixture(scope="module")
def server(module_home: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """A server with limits, which believes what its clients say of themselves."""
    flags = ["--listen", "127.0.0.1:0", "--home", str(module_home)]
    with ServerProcess(flags, environment=environment | RATES, log=subprocess.DEVNULL) as server:
        yield server


@pytest.fixture
def client_of_tcp(server: ServerProcess) -> Iterator[Raw]:
    """A client with an address that no other test has."""
    with Raw(server.port, source="127.0.0.2") as raw:
        yield raw


def answers(raw: Raw, count: int) -> list[tuple[int, object]]:
    """Return the next answers and their types."""
    found = []
    for _ in range(count):
        header = raw.socket.recv(5)
        size = int.from_bytes(header[1:])
        found.append((header[0], decode_answer(raw.socket.recv(size))))
    return found


def test_over_tcp_it_is_busy_in_its_turn_and_the_connection_stays(client_of_tcp: Raw, open_sale: OpenSale) -> None:
    product_id = open_sale(10)
    ann, bob, cy, dan = (encode_request(Purchase(product_id, user_id)) for user_id in ("ann", "bob", "cy", "dan"))
    client_of_tcp.send(ann * 3 + bob)
    told = answers(client_of_tcp, 4)
    assert [kind for kind, _ in told] == [MessageType.PURCHASE] * 4
    assert [type(answer) for _, answer in told] == [Success, Success, Busy, Success]
    wait_ms = told[2][1].retry_after_ms  # type: ignore[attr-defined]
    assert 0 < wait_ms <= 500
    time.sleep(wait_ms / 1000)
    client_of_tcp.send(ann + bob + cy + dan)
    told = answers(client_of_tcp, 4)
    assert [type(answer) for _, answer in told] == [Success, Success, Success, Busy], "none that was refused counts"
    busy = told[3][1]
    assert 500_000 < busy.retry_after_ms <= 600_000, "it was the seventh of this client"  # type: ignore[attr-defined]


def test_a_subscription_too(client_of_tcp: Raw, open_sale: OpenSale, http_client: Http) -> None:
    request = encode_request(Subscribe(open_sale(10)))
    first = http_client.ask("GET", "/v1/products/nothing/events", x_forwarded_for="198.51.100.1")
    assert first.status == 404
    second = http_client.ask("GET", "/stream", x_forwarded_for="198.51.100.2")
    assert second.status == 429
    client_of_tcp.send(request)
    assert [type(answer) for _, answer in answers(client_of_tcp, 1)] == [Busy]


def test_the_client_library_tells_when_to_come_again(server: ServerProcess, open_sale: OpenSale) -> None:
    product_id = open_sale(10)

    async def run() -> None:
        async with Client("127.0.0.1", server.port) as client:
            answer = await client.confirm(f"{'x' * 22}.{product_id}")
            again = await client.confirm(f"{'x' * 22}.{product_id}")
            assert isinstance(again, Busy), answer
            assert again.retry_after_ms is not None

    asyncio.run(run())


def test_over_http_it_is_429_in_the_words_of_each_route_and_then_it_is_served(
    http_client: Http, open_sale: OpenSale
) -> None:
    product_id = open_sale(10)

    def buy(request_id: str) -> tuple[int, object, str | None]:
        body = {"request_id": request_id, "user_id": "eve", "item_id": product_id, "quantity": 1}
        told = http_client.ask("POST", "/api/purchase", body, x_forwarded_for="198.51.100.3")
        return told.status, told.body, told.headers.get("retry-after")

    assert [buy(f"r{number}")[0] for number in range(2)] == [200, 200]
    assert buy("r3") == (429, {"success": False, "message": "too many requests"}, "1")
    url = f"/v1/products/{product_id}/purchases"
    told = http_client.ask("POST", url, {"user_id": "eve"}, x_forwarded_for="198.51.100.4")
    assert (told.status, told.headers["retry-after"]) == (429, "1"), "he is the same, wherever he asks"
    assert told.body == {
        "type": "urn:flashsale:rate-limited",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "too many requests",
    }
    time.sleep(1)
    assert buy("r3")[0] == 200


def test_a_client_is_whom_the_proxies_name(http_client: Http, open_sale: OpenSale) -> None:
    url = f"/v1/products/{open_sale(100)}"

    def status_of(forwarded: str) -> int:
        return http_client.ask("GET", url, x_forwarded_for=forwarded).status

    assert [status_of("198.51.100.5") for _ in range(7)] == [200] * 6 + [429]
    assert status_of("198.51.100.5, 127.0.0.9") == 429, "behind another proxy"
    assert status_of("6.6.6.6, 198.51.100.5") == 429, "whatever he says himself"
    assert status_of("198.51.100.6") == 200
    assert status_of("2001:db8:0:1::1") == 200
    assert [status_of(f"2001:db8:0:1::{number}") for number in range(2, 8)] == [200] * 5 + [429]


def test_a_client_is_not_whom_a_trailer_names(server: ServerProcess, open_sale: OpenSale) -> None:
    product_id = open_sale(100)
    with Raw(server.http_port) as raw:
        for number in range(7):
            body = b'{"user_id":"u%d"}' % number
            raw.send(
                b"POST /v1/products/%b/purchases HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"X-Forwarded-For: 198.51.100.17\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"%x\r\n%b\r\n0\r\nX-Forwarded-For: 203.0.113.%d\r\n\r\n"
                % (product_id.encode(), len(body), body, number)
            )
            status = raw.read_until(b"}").split()[1]
            assert status == (b"201" if number < 6 else b"429")


def test_a_trusted_proxy_is_not_the_operator(http_client: Http, open_sale: OpenSale) -> None:
    assert http_client.ask("POST", f"/reset?product_id={open_sale(1)}").status == 403


def test_whom_it_refused_is_counted_by_limit_and_as_busy(http_client: Http, open_sale: OpenSale) -> None:
    url = f"/v1/products/{open_sale(9)}/purchases"

    def told(name: str) -> float:
        lines = http_client.ask("GET", "/metrics").raw.decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    names = (
        'flashsale_rate_limited_total{limit="user"}',
        'flashsale_requests_total{operation="purchase",outcome="BUSY"}',
    )
    before = [told(name) for name in names]
    asked = [http_client.ask("POST", url, {"user_id": "flo"}, x_forwarded_for="198.51.100.7") for _ in range(5)]
    assert [answer.status for answer in asked] == [201, 201, 429, 429, 429]
    deadline = time.monotonic() + PATIENCE_S
    while [told(name) for name in names] != [count + 3 for count in before]:
        assert time.monotonic() < deadline, "it is not counted"
        time.sleep(0.05)
    assert told('flashsale_breaker_open_workers{of="store"}') == 0
