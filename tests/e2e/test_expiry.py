"""Holds end by themselves, within a second of their deadline, whichever servers live, and never early."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from flashsale.launch import ServerProcess

RESERVE, CONFIRM = 2, 3
Connect = Callable[..., Any]
StartServer = Callable[..., ServerProcess]


def store_time(store: "redis.Redis") -> float:
    seconds, microseconds = store.time()
    return seconds + microseconds / 1e6


def reserve(client: Any, product_id: str = "p", seconds: int = 1, **fields: object) -> dict[str, Any]:
    request = {"product_id": product_id, "user_id": "u", "hold_seconds": seconds, **fields}
    answer: dict[str, Any] = client.ask(RESERVE, request)
    assert answer["status"] == "HELD", answer
    return answer


def returned_at(store: "redis.Redis", stock: int, product_id: str = "p") -> float:
    """Wait until so many units are left, without asking any server; return the store's time."""
    deadline = time.monotonic() + 30
    while int(store.get(f"product:{product_id}:stock") or -1) != stock:
        assert time.monotonic() < deadline, "the units never came back"
        time.sleep(0.005)
    return store_time(store)


def ended(store: "redis.Redis", product_id: str = "p") -> list[str]:
    """Return the kinds of the ledger's changes, in order."""
    kinds = []
    for _, message in store.xrange(f"product:{product_id}:orders"):
        kinds += [change[0] for change in json.loads(message.get("changes", "[]"))]
        kinds += ["sold"] * len(json.loads(message.get("sales", "[0,[]]"))[1])
    return kinds


def test_units_come_back_when_nobody_asks_and_not_early(
    start_server: StartServer, store: "redis.Redis", connect: Connect
) -> None:
    server = start_server()
    store.set("product:p:stock", 10)
    with connect(server.port) as client:
        for _ in range(3):  # the second and third find a product that the calendar knows
            held = reserve(client, quantity=3)
            assert held["remaining_stock"] == 7
            back_at = returned_at(store, 10)
            assert held["expires_at"] <= back_at <= held["expires_at"] + 1
            assert client.ask(CONFIRM, {"code": held["code"]}) == {"status": "EXPIRED"}
    assert ended(store) == ["opened", *["held", "expired"] * 3]
    assert store.zrange("products_due", 0, -1) == []


def test_another_server_returns_what_the_dead_one_held(
    start_server: StartServer, store: "redis.Redis", connect: Connect
) -> None:
    first, _second = start_server(), start_server()
    store.set("product:p:stock", 10)
    with connect(first.port) as client:
        held = reserve(client, seconds=2)
    first.kill()
    assert returned_at(store, 10) <= held["expires_at"] + 1
    assert ended(store) == ["opened", "held", "expired"], "once, whoever does it"


def test_three_servers_return_each_hold_once(start_server: StartServer, store: "redis.Redis", connect: Connect) -> None:
    servers = [start_server() for _ in range(3)]
    products = [f"p{number}" for number in range(10)]
    store.mset({f"product:{name}:stock": 500 for name in products})
    with connect(servers[0].port) as client:
        last = 0
        for name in products:
            for number in range(50):
                request = {"product_id": name, "user_id": f"u{number}", "quantity": 2, "hold_seconds": 3}
                client.send(client.frame(RESERVE, request))
            last = [client.receive()[1]["expires_at"] for _ in range(50)][-1]
    for name in products:
        assert returned_at(store, 500, name) <= last + 1
        assert ended(store, name) == ["opened", *["held"] * 50, *["expired"] * 50]


def test_holds_that_expire_while_everything_is_dead_come_back_with_the_first_server(
    start_server: StartServer, store: "redis.Redis", connect: Connect
) -> None:
    server = start_server()
    store.set("product:p:stock", 10)
    with connect(server.port) as client:
        held = reserve(client)
    server.kill()
    time.sleep(1.2)
    port = start_server().port  # starts the store again if it ended with its last user
    begun_at = store_time(store)
    assert returned_at(store, 10) <= max(begun_at, held["expires_at"]) + 1
    with connect(port) as client:
        assert client.ask(CONFIRM, {"code": held["code"]}) == {"status": "EXPIRED"}


def test_the_store_killed_across_the_deadline_loses_no_hold(
    start_server: StartServer, store: "redis.Redis", connect: Connect, until: Callable[..., None]
) -> None:
    server = start_server()
    store.set("product:p:stock", 10)
    with connect(server.port) as client:
        late = reserve(client, seconds=1)
        early = reserve(client, seconds=60)
        os.kill(store.info("server")["process_id"], signal.SIGKILL)
        until(lambda: client.buy("p", "u")["status"] == "SUCCESS")
        assert returned_at(store, 10 - 1 - 1) <= late["expires_at"] + 6
        assert client.ask(CONFIRM, {"code": early["code"]})["status"] == "SUCCESS"
    assert ended(store).count("expired") == 1


def test_a_product_deleted_by_hand_is_forgotten_by_the_sweepers(
    start_server: StartServer, store: "redis.Redis", connect: Connect, until: Callable[..., None]
) -> None:
    server = start_server()
    store.set("product:p:stock", 10)
    with connect(server.port) as client:
        reserve(client)
    store.delete(*store.scan_iter("product:p:*"))
    until(lambda: store.zcard("products_due") == 0)
