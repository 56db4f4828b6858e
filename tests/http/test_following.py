"""Sales as server-sent events: every change of a product, and the present of all."""

import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import Restock
from flashsale.feed import Feed
from flashsale.http.following import CHANGES_TOLD_COUNT, KEPT_SIZE_MAX, Follower, worth_telling
from flashsale.launch import ServerProcess
from flashsale.store.ledger import RedisLedger
from flashsale.wire import encode_feed_event
from tests.http.client import PATIENCE_S, Http, Raw

OpenSale = Callable[..., str]
Operate = Callable[[Callable[..., Awaitable[Any]]], Any]


class Listener:
    """A client of a stream, in the words of the standard alone."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._data = b""

    def next(self) -> dict[str, Any]:
        """Return the next event: its fields, `data` decoded."""
        while True:
            fields = {}
            while line := self._line():
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            if "data" in fields:
                return fields | {"data": json.loads(fields["data"])}

    def _line(self) -> str:
        while b"\n" not in self._data:
            size = int(self._raw_line(), 16)
            assert size, "the stream has ended"
            while len(self._raw_data) < size + 2:
                self._more()
            self._data += self._raw_data[:size]
            self._raw_data = self._raw_data[size + 2 :]
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()

    def _raw_line(self) -> bytes:
        while b"\r\n" not in self._raw_data:
            self._more()
        line, _, self._raw_data = self._raw_data.partition(b"\r\n")
        return line

    def _more(self) -> None:
        part = self._raw.socket.recv(1 << 16)
        assert part, "the server has ended the connection"
        self._raw_data += part

    _raw_data = b""

    def head(self) -> bytes:
        lines = []
        while line := self._raw_line():
            lines.append(line.lower())
        return b"\n".join(lines)


@pytest.fixture
def listen(server: ServerProcess) -> Callable[..., Any]:
    """Listen to a URL: `with listen("/stream") as listener`."""

    @contextmanager
    def open_it(url: str, *headers: str) -> Iterator[Listener]:
        with Raw(server.http_port) as raw:
            lines = [f"GET {url} HTTP/1.1", "Host: x", *headers, "", ""]
            raw.send("\r\n".join(lines).encode())
            listener = Listener(raw)
            head = listener.head()
            assert head.startswith(b"http/1.1 200")
            assert b"content-type: text/event-stream" in head
            yield listener

    return open_it


def buy(http_client: Http, product_id: str, user_id: str) -> None:
    assert http_client.ask("POST", f"/v1/products/{product_id}/purchases", {"user_id": user_id}).status == 201


def test_every_change_is_told_with_its_version(
    http_client: Http, open_sale: OpenSale, listen: Callable[..., Any], operate: Operate
) -> None:
    product_id = open_sale(3)
    with listen(f"/v1/products/{product_id}/events?after_version=0") as listener:
        opened = listener.next()
        assert (opened["event"], opened["data"]["remaining"]) == ("opened", 3)
        buy(http_client, product_id, "ann\n\n: x")
        sold = listener.next()
        assert (sold["event"], sold["data"]["buyer"], sold["data"]["version"]) == ("sold", "ann\n\n: x", 2)
        assert sold["id"] == f"{opened['data']['epoch']}-2"
        operate(lambda admin: admin.change(Restock(product_id, 2)))
        assert listener.next()["data"]["remaining"] == 4


def test_whoever_comes_back_goes_on_where_he_was(
    http_client: Http, open_sale: OpenSale, listen: Callable[..., Any]
) -> None:
    product_id = open_sale(9)
    where = f"/v1/products/{product_id}/events"
    for number in range(5):
        buy(http_client, product_id, f"u{number}")
    with listen(f"{where}?after_version=2") as listener:
        seen = [listener.next() for _ in range(2)]
    assert [event["data"]["version"] for event in seen] == [3, 4]
    with listen(f"{where}?after_version=2", f"Last-Event-ID: {seen[-1]['id']}") as listener:
        assert [listener.next()["data"]["version"] for _ in range(2)] == [5, 6]
    open_sale(9)
    with listen(where, f"Last-Event-ID: {seen[-1]['id']}") as listener:
        assert [listener.next()["event"] for _ in range(2)] == ["reset", "opened"]


@pytest.mark.parametrize(
    ("url", "header", "status"),
    [
        ("/v1/products/no-such/events", {}, 404),
        ("/v1/products/p/events?after_version=-1", {}, 400),
        ("/v1/products/p/events?after_version=" + "9" * 99, {}, 400),
        ("/v1/products/p/events", {"last_event_id": "nonsense-x"}, 400),
        ("/stream?product_id=no-such", {}, 404),
        ("/stream?product_id=%ff", {}, 400),
    ],
)
def test_what_cannot_be_followed_is_refused(http_client: Http, url: str, header: dict[str, str], status: int) -> None:
    answer = http_client.ask("GET", url, **header)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


def test_the_present_begins_with_how_it_is(
    http_client: Http, open_sale: OpenSale, listen: Callable[..., Any], operate: Operate
) -> None:
    product_id = open_sale(9)
    buy(http_client, product_id, "ann")
    with listen(f"/stream?product_id={product_id}") as one, listen("/stream") as all_of_them:
        stock = {
            "event": "stock",
            "product_id": product_id,
            "remaining": 8,
            "sold": 1,
            "held": 0,
            "state": "open",
            "version": 2,
        }
        assert one.next() == {"event": "stock", "data": stock}
        while all_of_them.next()["data"] != stock:
            pass
        buy(http_client, product_id, "bob")
        for listener in (one, all_of_them):
            while (sold := listener.next())["event"] == "stock":
                pass  # of other products
            assert (sold["event"], sold["data"]["buyer"], sold["data"]["remaining"]) == ("sold", "bob", 7)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whoever_asks_and_leaves_at_once_is_forgotten(
    server: ServerProcess, http_client: Http, open_sale: OpenSale, method: str
) -> None:
    def followers() -> float:
        lines = http_client.ask("GET", "/metrics").raw.decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith("flashsale_subscribers "))

    product_id, before = open_sale(3), followers()
    for url in ("/stream", f"/v1/products/{product_id}/events"):
        for _ in range(20):
            with Raw(server.http_port) as raw:
                raw.send(f"{method} {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                if method == "HEAD":
                    assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
                else:  # not even its head is awaited
                    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(1)  # what is told is so old at most
    deadline = time.monotonic() + PATIENCE_S
    while followers() > before:
        assert time.monotonic() < deadline, "they still take up their places"
        time.sleep(0.1)


async def test_whoever_takes_nothing_misses_the_oldest_and_costs_no_more(store_url: str) -> None:
    feed = Feed(reading=RedisLedger(store_url), following=RedisLedger(store_url))
    present, every = Follower(feed, keeps_up=True), Follower(feed, keeps_up=False)
    assert present.writable
    assert every.writable
    for number in range(100):
        present.push(b"%d" % number * 32_000)
    every.push(b"x")
    assert (present.writable, every.writable) == (True, False)
    kept = await present.take()
    assert sum(map(len, kept)) <= KEPT_SIZE_MAX
    assert kept[-1].startswith(b"99")
    assert await every.take() == [b"x"]
    assert every.writable
    await feed.close()


def test_of_a_rush_the_last_changes_are_told() -> None:
    def frames(product_id: str, versions: range) -> bytes:
        return b"".join(
            encode_feed_event(FeedEvent(event="sold", product_id=product_id, version=version)) for version in versions
        )

    came = [frames("a", range(1, 500)), frames("b", range(7, 9)), frames("a", range(500, 503))]
    told = [(event.product_id, event.version) for event, _ in worth_telling(came)]
    assert [it for it in told if it[0] == "b"] == [("b", 7), ("b", 8)]
    assert [it[1] for it in told if it[0] == "a"] == list(range(503 - CHANGES_TOLD_COUNT, 503))
    assert [it[1] for it in told[-3:]] == [500, 501, 502]
    assert worth_telling([]) == []
