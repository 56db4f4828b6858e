"""`/metrics` and `/live`: what they show of a sale that is going on, and what the README says of them."""

import asyncio
import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
import redis
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from flashsale.domain.requests import Subscribe
from flashsale.http.prometheus import COLLECTED, Written
from flashsale.launch import ServerProcess
from flashsale.live import ProductView
from flashsale.metrics import Board
from flashsale.store.admin import Admin
from flashsale.wire import encode_request
from tests.http.client import Http, Raw
from tests.test_readme import rows

PATIENCE_S = 20.0


class Product(Struct, frozen=True, forbid_unknown_fields=True):
    product_id: str
    units: int
    remaining: int
    sold: int
    held: int
    state: str
    lag: int


class Worker(Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    pid: int
    rate: float
    p99_ms: float | None
    connections: int
    up_s: float


class Live(Struct, frozen=True, forbid_unknown_fields=True):
    """What others build on: each name, and nothing else."""

    at: float
    rate: float
    outcomes: dict[str, float]
    totals: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    connections: dict[str, int]
    queue: int
    batch: float
    store_up: bool
    store_round_trip_ms: float | None
    products: list[Product]
    workers: list[Worker]


decode = msgspec.json.Decoder(Live).decode


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics(client: Http) -> Samples:
    answered = client.ask("GET", "/metrics")
    assert answered.status == 200
    assert answered.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answered.raw.decode())
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return found[name, frozenset(labels.items())]


def shows_products(found: Samples) -> bool:
    return any(name.startswith("flashsale_product_") for name, _ in found)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def buy(client: Http, product_id: str, number: int) -> int:
    body = {"request_id": f"{product_id}-{number}", "user_id": f"u{number}", "item_id": product_id, "quantity": 1}
    return client.ask("POST", "/api/purchase", body).status


def test_the_table_in_the_readme_is_what_is_collected() -> None:
    board = Board(1)
    board.slots[0].begin(1, 0.0)
    product = ProductView(product_id="p", units=1, remaining=1, sold=0, held=0, state="open", lag=0)
    families = {family.name: family for family in Written(board.read(), [product], 1.0).collect()}
    assert len(families) == len(COLLECTED)
    shown = rows("Metrics")
    assert len({name for name, *_ in shown}) == len(shown) == len(COLLECTED)
    for name, kind, labels, meaning in shown:
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (kind, meaning)
        assert name.endswith("_total") == (kind == "counter")
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert found == set(re.findall(r"\w+", labels))


def test_the_example_in_the_readme_is_a_snapshot() -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    [example] = re.findall(r'^\{"at":.*?^```', readme, re.MULTILINE | re.DOTALL)
    assert decode(example.removesuffix("```")).workers


def test_while_the_store_is_away_nothing_is_said_of_products() -> None:
    names = {family.name for family in Written([], None, 1.0).collect()}
    assert not [name for name in names if name.startswith("flashsale_product")]
    up = [family for family in Written([], None, 1.0).collect() if family.name == "flashsale_store_up"]
    assert [sample.value for sample in up[0].samples] == [0.0]


def test_what_is_asked_over_every_door_is_counted(
    server: ServerProcess, http_client: Http, open_sale: Callable[..., str]
) -> None:
    product_id = open_sale(2)
    before = metrics(http_client)
    assert [buy(http_client, product_id, number) for number in range(4)] == [200, 200, 410, 410]
    assert http_client.ask("GET", "/nowhere").status == 404
    with Raw(server.http_port) as raw:
        raw.send(b"GET / HTTP/9\r\n\r\n")
        assert raw.read().startswith(b"HTTP/1.1 400 ")
    after: Samples = {}

    def shows_it() -> bool:
        nonlocal after
        after = metrics(http_client)
        sold = "flashsale_product_sold_units", frozenset({("product", product_id)})
        return after.get(sold) == 2

    until(shows_it)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("flashsale_requests_total", operation="purchase", outcome="SUCCESS") == 2
    assert grown("flashsale_requests_total", operation="purchase", outcome="SOLD_OUT") == 2
    assert grown("flashsale_latency_seconds_count") == grown("flashsale_latency_seconds_bucket", le="+Inf") == 4
    assert 0 < grown("flashsale_latency_seconds_sum") < 4
    assert grown("flashsale_batch_requests_sum") == grown("flashsale_worker_requests_total", worker="0") == 4
    assert grown("flashsale_store_round_trip_seconds_count") == 4
    assert grown("flashsale_http_responses_total", **{"class": "4xx"}) == 4
    assert grown("flashsale_http_responses_total", **{"class": "2xx"}) >= 3
    assert value(after, "flashsale_store_up") == 1
    assert value(after, "flashsale_store_connects_total") == 1
    for name, expected in {"units": 2, "remaining_units": 0, "held_units": 0, "ledger_lag_changes": 3}.items():
        assert value(after, f"flashsale_product_{name}", product=product_id) == expected
    assert value(after, "flashsale_product_state", product=product_id, state="open") == 1
    until(lambda: value(metrics(http_client), "flashsale_connections", door="http") == 1)  # the other is gone
    assert ("flashsale_product_state", frozenset({("product", product_id), ("state", "closed")})) not in after


def test_a_snapshot_is_what_was_agreed(http_client: Http, open_sale: Callable[..., str]) -> None:
    product_id = open_sale(3)
    assert buy(http_client, product_id, 0) == 200
    seen: list[Live] = []

    def shows() -> bool:
        answered = http_client.ask("GET", "/live?once")
        assert (answered.status, answered.headers["content-type"]) == (200, "application/json")
        seen.append(decode(answered.raw))
        is_sold = any(view.product_id == product_id and view.sold == 1 for view in seen[-1].products)
        return is_sold and seen[-1].connections == {"tcp": 0, "http": 1, "grpc": 0}

    until(shows)
    last = seen[-1]
    assert abs(last.at - time.clock_gettime(time.CLOCK_REALTIME)) < PATIENCE_S
    assert last.totals["SUCCESS"] >= 1
    assert last.outcomes.keys() == last.totals.keys()
    assert last.store_up
    assert [(worker.number, worker.connections) for worker in last.workers] == [(0, 1)]


def test_snapshots_come_while_somebody_listens(server: ServerProcess) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/live")
        answer = connection.getresponse()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [answer.readline() + answer.readline() for _ in range(2)]
    first, second = [decode(event.removeprefix(b"data: ").removesuffix(b"\n\n")) for event in events]
    assert 0 < second.at - first.at < PATIENCE_S


def test_a_store_that_is_silent_is_not_shown_as_it_was(
    http_client: Http, module_home: Path, open_sale: Callable[..., str]
) -> None:
    open_sale(1)
    until(lambda: shows_products(metrics(http_client)))
    with redis.Redis(unix_socket_path=str(module_home / "valkey.sock")) as store:
        store.execute_command("CLIENT", "PAUSE", 2_000, "ALL")
        found: Samples = {}

        def is_away() -> bool:
            nonlocal found
            found = metrics(http_client)
            return value(found, "flashsale_store_up") == 0

        until(is_away)
        assert not shows_products(found)
        snapshot = decode(http_client.ask("GET", "/live?once").raw)
        assert (snapshot.store_up, snapshot.products) == (False, [])
        store.execute_command("CLIENT", "UNPAUSE")
    until(lambda: value(metrics(http_client), "flashsale_store_up") == 1)


@pytest.fixture(scope="module")
def two_workers(short_dir: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """A server of two workers, one of which is killed."""
    flags = ["--listen", "127.0.0.1:0", "--home", str(short_dir / "two"), "--workers", "2"]
    with ServerProcess(flags, environment=environment, log=subprocess.DEVNULL) as server:
        yield server


def by_whoever_answers(server: ServerProcess) -> Live:
    """Return what one of the workers shows."""
    with closing(Http(server.http_port)) as client:
        return decode(client.ask("GET", "/live?once").raw)


def test_whichever_worker_answers_has_them_all_counted_also_after_one_was_killed(
    two_workers: ServerProcess, short_dir: Path
) -> None:
    async def open_it() -> None:
        async with Admin(f"unix://{short_dir}/two/valkey.sock") as admin:
            await admin.init("p", 100)

    asyncio.run(open_it())

    def buy_some(first: int, last: int) -> None:
        for number in range(first, last):  # each by a connection of its own, so that both workers have some
            with closing(Http(two_workers.http_port)) as client:
                assert buy(client, "p", number) == 200

    def all_see(count: int) -> bool:
        seen = [by_whoever_answers(two_workers) for _ in range(12)]
        return all(live.totals == {"SUCCESS": count} and len(live.workers) == 2 for live in seen)

    buy_some(0, 24)
    until(lambda: all_see(24))
    first, second = by_whoever_answers(two_workers).workers
    with closing(Http(two_workers.http_port)) as client:
        found = metrics(client)
        shares = [value(found, "flashsale_worker_requests_total", worker=worker) for worker in "01"]
        assert sum(shares) == value(found, "flashsale_requests_total", operation="purchase", outcome="SUCCESS") == 24
        assert all(shares), "one of them had none"
    os.kill(first.pid, signal.SIGKILL)

    seen = [first, second]

    def is_back() -> bool:
        nonlocal seen
        with suppress(OSError):  # the dead one does not answer
            seen = by_whoever_answers(two_workers).workers
        return seen[0].pid != first.pid

    until(is_back)
    assert seen[1].pid == second.pid
    assert seen[0].up_s < seen[1].up_s
    until(lambda: all_see(24))
    buy_some(24, 36)
    until(lambda: all_see(36))
    until(lambda: sum(by_whoever_answers(two_workers).connections.values()) <= 1)  # none is left of the dead


def test_who_follows_a_sale_over_tcp_is_counted(
    server: ServerProcess, http_client: Http, open_sale: Callable[..., str]
) -> None:
    def present() -> list[float]:
        found = metrics(http_client)
        return [value(found, "flashsale_connections", door="tcp"), value(found, "flashsale_subscribers")]

    assert present() == [0, 0]
    with Raw(server.port) as raw:
        raw.send(encode_request(Subscribe(open_sale(1))))
        until(lambda: present() == [1, 1])
    until(lambda: present() == [0, 0])
