"""What a subscriber hears of a running server over a running store, and what breaks on the way."""

import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale.launch import ServerProcess

PURCHASE, RESERVE, CONFIRM, STATUS, SUBSCRIBE, EVENT, NOTICE = 1, 2, 3, 5, 0x10, 0x11, 0
PATIENCE_S = 30.0
Connect = Callable[..., Any]
Until = Callable[..., None]


def subscribe(wire: Any, product_id: str | None, after_version: int | None = None, **more: Any) -> Any:
    request = {"product_id": product_id, "after_version": after_version, **more}
    return wire.ask(SUBSCRIBE, {name: value for name, value in request.items() if value is not None})


def ask(wire: Any, kind: int, **request: Any) -> Any:
    """Return the whole answer to a request, with its version and its order id."""
    wire.send(wire.frame(kind, request))
    answered, answer = wire.receive_raw()
    assert answered == kind, answer
    return json.loads(answer)


def hear(wire: Any, count: int) -> list[Any]:
    """Return the next events; nothing else may come."""
    found = []
    for _ in range(count):
        kind, event = wire.receive()
        assert kind == EVENT, event
        found.append(event)
    return found


def versions(events: list[Any]) -> list[int]:
    return [event["version"] for event in events]


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """One store for all, that of `server`."""
    return module_home


@pytest.fixture
def sale(server: ServerProcess, store: "redis.Redis", product_id: str) -> str:
    """A sale of a million units, set by hand."""
    store.set(f"product:{product_id}:stock", 1_000_000)
    return product_id


def test_live_events_tell_all_that_may_be_told(wire: Any, sale: str) -> None:
    assert subscribe(wire, sale) == {"status": "SUBSCRIBED", "product_id": sale, "version": 0}
    answer = ask(wire, PURCHASE, product_id=sale, user_id="a", quantity=2, request_id="secret")
    opened, sold = hear(wire, 2)
    epoch = answer["order_id"].split("-")[2]
    at = int(answer["order_id"].split("-")[0], 16) // 1000
    common = {"product_id": sale, "timestamp": at}
    assert opened == {
        "event": "opened",
        **common,
        "version": 1,
        "remaining": 10**6,
        "quantity": 10**6,
        "epoch": epoch,
    }
    assert sold == {
        "event": "sold", **common, "version": 2, "remaining": 999_998, "buyer": "a", "quantity": 2,
        "order_id": answer["order_id"],
    }  # fmt: skip
    hold = wire.ask(RESERVE, {"product_id": sale, "user_id": "b"})
    [held] = hear(wire, 1)
    order = ask(wire, CONFIRM, code=hold["code"])
    [confirmed] = hear(wire, 1)
    assert (held["event"], confirmed["event"]) == ("held", "confirmed")
    assert confirmed["order_id"] == order["order_id"]
    assert hold["code"].partition(".")[0] not in json.dumps([held, confirmed])


def test_replay_begins_behind_the_version_and_goes_over_into_live(
    wire: Any, connect: Connect, server: ServerProcess, sale: str
) -> None:
    with connect(server.port) as buyer:
        buyer.send(b"".join(buyer.frame(PURCHASE, {"product_id": sale, "user_id": f"u{n}"}) for n in range(500)))
        for _ in range(500):
            buyer.receive()
        answer = subscribe(wire, sale, 100)
        assert answer["version"] == 501
        assert versions(hear(wire, 401)) == list(range(101, 502))
        buyer.buy(sale, "late")
        assert versions(hear(wire, 1)) == [502]


def test_answers_keep_their_order_while_events_flow(
    wire: Any, connect: Connect, server: ServerProcess, sale: str
) -> None:
    subscribe(wire, sale)
    with connect(server.port) as crowd:
        count = 3_000
        crowd.send_meanwhile(
            b"".join(crowd.frame(PURCHASE, {"product_id": sale, "user_id": f"u{n}"}) for n in range(count))
        )
        wire.send_meanwhile(
            b"".join(
                wire.frame(6, str(n).encode()) + wire.frame(PURCHASE, {"product_id": sale, "user_id": f"w{n}"})
                for n in range(300)
            )
        )
        drained = threading.Thread(target=lambda: [crowd.receive() for _ in range(count)])
        drained.start()
        answers, events = [], []
        while len(answers) < 600 or len(events) < count + 301:
            kind, payload = wire.receive_raw()
            (events if kind == EVENT else answers).append((kind, payload))
        drained.join()
    assert [kind for kind, _ in answers] == [6, PURCHASE] * 300
    assert [payload for _, payload in answers[::2]] == [str(n).encode() for n in range(300)]
    decoded = [json.loads(payload) for _, payload in events]
    assert versions(decoded) == list(range(1, count + 302))
    mine = [event["version"] for event in decoded if event.get("buyer", "").startswith("w")]
    assert mine == [json.loads(payload)["version"] for _, payload in answers[1::2]]


def test_who_comes_back_after_a_reset_link_misses_nothing_and_hears_nothing_twice(
    connect: Connect, server: ServerProcess, sale: str
) -> None:
    stop = threading.Event()

    def sell() -> None:
        with connect(server.port) as buyer:
            while not stop.is_set():
                buyer.buy(sale, "u")

    selling = threading.Thread(target=sell)
    selling.start()
    heard: list[int] = []
    try:
        for _ in range(8):
            wire = connect(server.port)
            subscribe(wire, sale, heard[-1] if heard else 0)
            heard += versions(hear(wire, 40))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.socket.close()  # a reset, with events on their way
    finally:
        stop.set()
        selling.join()
    assert heard == list(range(1, 321))


def test_what_was_trimmed_is_a_gap(wire: Any, store: "redis.Redis", sale: str) -> None:
    for n in range(10):
        wire.buy(sale, f"u{n}")
    store.xtrim(f"product:{sale}:orders", maxlen=3, approximate=False)
    subscribe(wire, sale, 2)
    gap, *rest = hear(wire, 4)
    assert gap == {"event": "gap", "product_id": sale, "version": 8, "after_version": 2}
    assert versions(rest) == [9, 10, 11]
    store.xtrim(f"product:{sale}:orders", maxlen=0)
    subscribe(wire, sale, 4)
    assert hear(wire, 1) == [{"event": "gap", "product_id": sale, "version": 11, "after_version": 4}]
    wire.buy(sale, "u")
    assert versions(hear(wire, 1)) == [12]


def test_a_product_deleted_and_opened_again_is_followed(
    wire: Any, connect: Connect, server: ServerProcess, store: "redis.Redis", sale: str
) -> None:
    for n in range(5):
        wire.buy(sale, f"u{n}")
    subscribe(wire, sale)
    store.delete(*(f"product:{sale}:{part}" for part in ("stock", "buyers", "sale", "orders")))
    store.set(f"product:{sale}:stock", 10)
    with connect(server.port) as buyer:
        buyer.buy(sale, "first")
    reset, opened, sold = hear(wire, 3)
    assert reset["event"] == "reset"
    assert (opened["event"], opened["version"], opened["remaining"]) == ("opened", 1, 10)
    assert (sold["event"], sold["version"], sold["buyer"]) == ("sold", 2, "first")


def test_all_products_with_those_to_come(wire: Any, store: "redis.Redis", sale: str) -> None:
    wire.buy(sale, "u")
    assert subscribe(wire, None) == {"status": "SUBSCRIBED", "version": 0}
    new = f"{sale}-new"
    store.set(f"product:{new}:stock", 5)
    begun = time.monotonic()
    wire.send(wire.frame(PURCHASE, {"product_id": new, "user_id": "u"}))
    heard: dict[str, list[str]] = {sale: [], new: []}
    while heard[new] != ["opened", "sold"] or heard[sale] != ["subscribed"]:
        kind, event = wire.receive()
        if kind == EVENT and event["product_id"] in heard:
            heard[event["product_id"]].append(event["event"])
    assert time.monotonic() - begun < 5


def test_refusals(wire: Any, store: "redis.Redis", sale: str) -> None:
    assert subscribe(wire, "no-such") == {"status": "ERROR", "error": "product not found"}
    assert subscribe(wire, None, 3) == {"status": "ERROR", "error": "invalid after_version"}
    store.set(f"product:{sale}-odd:stock", 1)
    store.set(f"product:{sale}-odd:sale", "no hash")
    assert subscribe(wire, f"{sale}-odd")["status"] == "UNAVAILABLE"
    for number in range(65):
        store.set(f"product:{sale}-{number}:stock", 1)
        answer = subscribe(wire, f"{sale}-{number}")
        assert answer["status"] == ("BUSY" if number == 64 else "SUBSCRIBED")
    assert subscribe(wire, f"{sale}-0")["status"] == "SUBSCRIBED"


def test_a_ledger_that_is_none_holds_up_no_other(wire: Any, store: "redis.Redis", sale: str) -> None:
    odd = f"{sale}-odd"
    store.set(f"product:{odd}:stock", 1)
    for name in (odd, sale):
        subscribe(wire, name)
    store.set(f"product:{odd}:orders", "no stream")
    time.sleep(0.5)
    wire.buy(sale, "u")
    assert versions(hear(wire, 2)) == [1, 2]


# What breaks


@pytest.fixture
def selling(start_server: Callable[..., ServerProcess], store: "redis.Redis", sale: str) -> ServerProcess:
    """A server of one's own."""
    return start_server(FLASHSALE_WRITE_TIMEOUT_S="1", FLASHSALE_IDLE_TIMEOUT_S="1", FLASHSALE_FRAME_TIMEOUT_S="1")


def test_a_subscriber_may_be_silent_and_others_may_not(selling: ServerProcess, connect: Connect, sale: str) -> None:
    with connect(selling.port) as wire, connect(selling.port) as idle:
        subscribe(wire, sale)
        idle.ping()
        assert idle.ended()
        with connect(selling.port) as buyer:
            buyer.buy(sale, "u")
        assert versions(hear(wire, 2)) == [1, 2]


def test_at_the_end_a_subscriber_gets_all_it_was_sent_and_the_end_of_the_stream(
    selling: ServerProcess, connect: Connect, sale: str
) -> None:
    with connect(selling.port) as wire:
        subscribe(wire, sale)
        wire.buy(sale, "u")
        assert versions(hear(wire, 2)) == [1, 2]
        os.kill(selling.pid, signal.SIGTERM)
        assert wire.ended()
    begun = time.monotonic()
    assert selling.wait() == 0
    assert time.monotonic() - begun < 5


def blocked_clients(store: "redis.Redis") -> list[Any]:
    return [client for client in store.client_list() if client["cmd"] == "xread"]


def test_the_servers_own_links_to_the_store_may_break(
    selling: ServerProcess, connect: Connect, store: "redis.Redis", sale: str, until: Until
) -> None:
    with connect(selling.port) as wire, connect(selling.port) as buyer:
        subscribe(wire, sale)
        buyer.buy(sale, "first")
        heard = versions(hear(wire, 2))
        for turn in range(5):
            until(lambda: blocked_clients(store))
            for client in blocked_clients(store):
                store.client_kill_filter(_id=client["id"])
            for n in range(20):
                buyer.buy(sale, f"u{turn}-{n}")
            heard += versions(hear(wire, 20))
        assert heard == list(range(1, 103))


def test_the_store_may_be_killed_and_come_back(
    selling: ServerProcess, connect: Connect, store: "redis.Redis", sale: str
) -> None:
    with connect(selling.port) as wire, connect(selling.port) as buyer:
        subscribe(wire, sale)
        heard = []
        for turn in range(3):
            buyer.buy(sale, f"u{turn}")
            heard += versions(hear(wire, 2 if turn == 0 else 1))
            os.kill(store.info("server")["process_id"], signal.SIGKILL)
            while buyer.ask(STATUS, {"product_id": sale})["status"] != "OK":
                time.sleep(0.05)
        last = ask(buyer, PURCHASE, product_id=sale, user_id="last")["version"]
        while heard[-1] < last:
            heard += versions(hear(wire, 1))
        assert heard == list(range(1, last + 1))
        late = subscribe(wire, sale, 0)
        assert late["version"] == last
        assert versions(hear(wire, last)) == heard


def memory_of(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def frames_of(data: bytes) -> list[tuple[int, Any]]:
    """Return the frames, of which none may be cut."""
    found, position = [], 0
    while position < len(data):
        kind, size = struct.unpack_from(">BI", data, position)
        found.append((kind, json.loads(data[position + 5 : position + 5 + size])))
        position += 5 + size
    assert position == len(data)
    return found


def read_to_the_end(it: socket.socket) -> bytes:
    """Return all that still comes."""
    parts = []
    with it:
        while part := it.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_slow_subscribers_are_told_why_they_are_dropped_and_cost_nothing(
    start_server: Callable[..., ServerProcess], connect: Connect, sale: str
) -> None:
    server = start_server(FLASHSALE_WRITE_TIMEOUT_S="6")  # and so they have from second 6 to 12 to hear of it
    with connect(server.port) as wire, connect(server.port) as buyer:
        subscribe(wire, sale)
        slow = []
        for _ in range(30):
            it = socket.socket()
            it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            it.connect(("127.0.0.1", server.port))
            it.settimeout(PATIENCE_S)
            it.sendall(wire.frame(SUBSCRIBE, {"product_id": sale, "after_version": 0}))
            slow.append(it)
        before = memory_of(server.pid)
        heard: list[Any] = []
        large = {"product_id": sale, "user_id": "\x01" * 85}  # six bytes each, in an event
        batch = b"".join(buyer.frame(PURCHASE, large) for _ in range(500))
        for turn in range(30):
            buyer.send_meanwhile(batch)
            for _ in range(500):
                buyer.receive()
            heard += hear(wire, 500 + (turn == 0))
            if turn == 14:  # 7,500 events of 650 bytes: more than the kernel keeps for anyone
                blocked_at = time.monotonic()
        assert versions(heard) == list(range(1, 15_002))
        grown = memory_of(server.pid) - before
        assert grown < 48 << 20, f"{grown >> 20} MiB for 30 who are owed 10 MiB each"
        time.sleep(max(0.0, blocked_at + 8 - time.monotonic()))
        with ThreadPoolExecutor(len(slow)) as readers:
            received = list(readers.map(read_to_the_end, slow))
        for data in received:
            [(first, _), *events, last] = frames_of(data)
            assert first == SUBSCRIBE
            assert last == (NOTICE, {"status": "ERROR", "error": "subscriber too slow"})
            assert [(kind, event["version"]) for kind, event in events] == [
                (EVENT, version) for version in range(1, len(events) + 1)
            ]
        buyer.buy(sale, "last")
        assert versions(hear(wire, 1)) == [15_002]
