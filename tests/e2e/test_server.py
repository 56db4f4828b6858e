"""What a client sees of a running server: bytes, order, ends, and what the server cannot be made to do."""

import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale.launch import ServerProcess

PURCHASE, CONFIRM, STATUS, PING, SUBSCRIBE = 1, 3, 5, 6, 16
Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """One store for all, that of `server`."""
    return module_home


# The exchange of the README, bytes for bytes


def test_the_first_exchange_of_the_protocol_is_answered_bytes_for_bytes(wire: Any, store: "redis.Redis") -> None:
    store.set("product:iphone15:stock", 100)
    wire.send(b'\x01\x00\x00\x00\x2e{"product_id":"iphone15","user_id":"user_0_0"}')
    expected = (
        rb'\x01\x00\x00\x00(.)\{"status":"SUCCESS","remaining_stock":99,'
        rb'"order_id":"[0-9a-f]{11}-0000000002-[0-9a-f]{8}-iphone15","version":2\}'
    )
    header = wire.read(5)
    found = re.fullmatch(expected, header + wire.read(header[4]))
    assert found
    assert found[1][0] == len(found[0]) - 5
    assert store.get("product:iphone15:stock") == "99"
    assert store.lrange("product:iphone15:buyers", 0, -1) == ["user_0_0"]


def test_the_last_unit_says_that_none_remain_and_then_all_is_sold_out(
    wire: Any, store: "redis.Redis", product_id: str
) -> None:
    store.set(f"product:{product_id}:stock", 1)
    request = wire.frame(PURCHASE, {"product_id": product_id, "user_id": "u"})
    wire.send(request * 2)
    assert wire.receive_raw()[1].startswith(b'{"status":"SUCCESS","remaining_stock":0,"order_id":"')
    assert wire.receive_raw() == (PURCHASE, b'{"status":"SOLD_OUT"}')
    sold_out = {"status": "OK", "remaining_stock": 0, "sold": 1, "held": 0, "state": "open"}
    assert wire.ask(STATUS, {"product_id": product_id}) == sold_out


def test_unknown_fields_of_a_request_are_ignored(wire: Any, store: "redis.Redis", product_id: str) -> None:
    store.set(f"product:{product_id}:stock", 1)
    request = {"colour": [1, {"x": None}], "product_id": product_id, "user_id": "u", "hold_seconds": "many"}
    assert wire.ask(PURCHASE, request) == {"status": "SUCCESS", "remaining_stock": 0}


# Errors: their exact words, and whether the connection stays

ERRORS_THAT_STAY = {
    "unknown type": (0x99, b'{"product_id":"a","user_id":"b"}', "unknown message type"),
    "type 0": (0x00, b"", "unknown message type"),
    "push type": (0x11, b'{"product_id":"a","user_id":"b"}', "unknown message type"),
    "type 255": (0xFF, b"\xff" * 100, "unknown message type"),
    "empty payload": (PURCHASE, b"", "invalid json"),
    "not json": (PURCHASE, b"hello", "invalid json"),
    "cut json": (PURCHASE, b'{"product_id":"a","user_id":', "invalid json"),
    "json and more": (PURCHASE, b'{"product_id":"a","user_id":"b"} x', "invalid json"),
    "list": (PURCHASE, b'["a","b"]', "invalid json"),
    "null": (PURCHASE, b"null", "invalid json"),
    "product is a number": (PURCHASE, b'{"product_id":7,"user_id":"b"}', "invalid json"),
    "user is a number": (PURCHASE, b'{"product_id":"a","user_id":7}', "invalid user_id"),
    "user too long": (PURCHASE, b'{"product_id":"a","user_id":"%s"}' % (b"x" * 257), "invalid user_id"),
    "product is null": (PURCHASE, b'{"product_id":null,"user_id":"b"}', "invalid json"),
    "bad utf-8": (PURCHASE, b'{"product_id":"a","user_id":"\xff\xfe"}', "invalid json"),
    "bad utf-8 in an unknown field": (PURCHASE, b'{"product_id":"a","user_id":"b","x":"\xff"}', "invalid json"),
    "lone surrogate": (PURCHASE, b'{"product_id":"a","user_id":"\\ud800"}', "invalid json"),
    "very deep": (PURCHASE, b"[" * 50_000, "invalid json"),
    "deep unknown field": (PURCHASE, b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "invalid json"),
    "no user": (PURCHASE, b'{"product_id":"a"}', "missing product_id or user_id"),
    "no product": (PURCHASE, b'{"user_id":"b"}', "missing product_id or user_id"),
    "nothing": (PURCHASE, b"{}", "missing product_id or user_id"),
    "empty user": (PURCHASE, b'{"product_id":"a","user_id":""}', "missing product_id or user_id"),
    "empty product": (PURCHASE, b'{"product_id":"","user_id":"b"}', "missing product_id or user_id"),
    "status of nothing": (STATUS, b"{}", "missing product_id or user_id"),
    "status not json": (STATUS, b"x", "invalid json"),
    "no such product": (PURCHASE, b'{"product_id":"no-such","user_id":"b"}', "product not found"),
    "status of no such product": (STATUS, b'{"product_id":"no-such"}', "product not found"),
    "product too long": (PURCHASE, b'{"product_id":"%s","user_id":"b"}' % (b"x" * 257), "product not found"),
    "status of a product too long": (STATUS, b'{"product_id":"%s"}' % (b"x" * 65_000), "product not found"),
    "subscription to a product too long": (SUBSCRIBE, b'{"product_id":"%s"}' % (b"x" * 257), "product not found"),
    "hold of a product too long": (CONFIRM, b'{"code":"%s.%s"}' % (b"A" * 22, b"x" * 257), "hold not found"),
}


@pytest.mark.parametrize("name", ERRORS_THAT_STAY)
def test_an_error_has_its_exact_words_and_the_connection_stays(wire: Any, name: str) -> None:
    kind, payload, words = ERRORS_THAT_STAY[name]
    wire.send(wire.frame(kind, payload))
    answered, answer = wire.receive_raw()
    assert answered == kind
    assert answer == json.dumps({"status": "ERROR", "error": words}, separators=(",", ":")).encode()
    wire.ping()


@pytest.mark.parametrize("length", [64 * 1024 + 1, 2**24, 2**31, 2**32 - 1])
def test_a_payload_too_large_is_refused_by_its_header_and_the_connection_ends(wire: Any, length: int) -> None:
    good = wire.frame(PING, b"before")
    wire.send(good + struct.pack(">BI", PURCHASE, length))
    assert wire.receive_raw() == (PING, b"before")
    assert wire.receive() == (PURCHASE, {"status": "ERROR", "error": "payload too large"})
    assert wire.ended()


def test_a_payload_of_exactly_the_limit_is_taken(wire: Any) -> None:
    payload = random.Random(1).randbytes(64 * 1024)
    wire.send_meanwhile(wire.frame(PING, payload))
    assert wire.receive_raw() == (PING, payload)


def test_who_still_sends_a_payload_too_large_gets_the_answer_all_the_same(wire: Any) -> None:
    wire.send_meanwhile(struct.pack(">BI", PURCHASE, 1024 * 1024) + b"x" * 1024 * 1024)
    time.sleep(0.3)  # the server has answered and ended while much is still on its way
    assert wire.receive() == (PURCHASE, {"status": "ERROR", "error": "payload too large"})
    assert wire.ended()


# Pipelining, order, chunking


def test_five_thousand_requests_in_one_write_are_answered_in_order(
    wire: Any, store: "redis.Redis", product_id: str
) -> None:
    count = 5_000
    store.set(f"product:{product_id}:stock", count - 100)
    wire.send_meanwhile(
        b"".join(wire.frame(PURCHASE, {"product_id": product_id, "user_id": f"u{n}"}) for n in range(count))
    )
    answers = [wire.receive()[1] for _ in range(count)]
    sold = [{"status": "SUCCESS", "remaining_stock": count - 101 - n} for n in range(count - 100)]
    assert answers == sold + [{"status": "SOLD_OUT"}] * 100
    assert store.lrange(f"product:{product_id}:buyers", 0, -1) == [f"u{n}" for n in reversed(range(count - 100))]


def test_answers_of_every_kind_come_in_the_order_of_their_requests(
    wire: Any, store: "redis.Redis", product_id: str
) -> None:
    chance = random.Random(2)
    stock, sold, frames, expected = 700, 0, [], []
    store.set(f"product:{product_id}:stock", stock)
    for number in range(4_000):
        match chance.randrange(5):
            case 0:
                frames.append(wire.frame(PING, str(number).encode()))
                expected.append((PING, str(number).encode()))
            case 1:
                frames.append(wire.frame(STATUS, {"product_id": product_id}))
                counts = {"remaining_stock": stock, "sold": sold, "held": 0, "state": "open"}
                expected.append((STATUS, {"status": "OK", **counts}))
            case 2:
                frames.append(wire.frame(0x77, b""))
                expected.append((0x77, {"status": "ERROR", "error": "unknown message type"}))
            case 3:
                frames.append(wire.frame(PURCHASE, {"product_id": "no-such", "user_id": "u"}))
                expected.append((PURCHASE, {"status": "ERROR", "error": "product not found"}))
            case _ if stock:
                stock, sold = stock - 1, sold + 1
                frames.append(wire.frame(PURCHASE, {"product_id": product_id, "user_id": f"u{number}"}))
                expected.append((PURCHASE, {"status": "SUCCESS", "remaining_stock": stock}))
            case _:
                frames.append(wire.frame(PURCHASE, {"product_id": product_id, "user_id": f"u{number}"}))
                expected.append((PURCHASE, {"status": "SOLD_OUT"}))
    assert stock == 0
    wire.send_meanwhile(b"".join(frames))
    for kind, answer in expected:
        got = wire.receive_raw() if kind == PING else wire.receive()
        assert got == (kind, answer)


def test_a_request_that_comes_byte_by_byte_is_a_request(wire: Any, store: "redis.Redis", product_id: str) -> None:
    store.set(f"product:{product_id}:stock", 5)
    request = wire.frame(PURCHASE, {"product_id": product_id, "user_id": "ü"}) + wire.frame(PING, b"end")
    for position in range(len(request)):
        wire.send(request[position : position + 1])
        time.sleep(0.001)
    assert wire.receive() == (PURCHASE, {"status": "SUCCESS", "remaining_stock": 4})
    assert wire.receive_raw() == (PING, b"end")


def test_who_shuts_his_side_still_gets_every_answer(wire: Any, store: "redis.Redis", product_id: str) -> None:
    store.set(f"product:{product_id}:stock", 3_000)
    request = wire.frame(PURCHASE, {"product_id": product_id, "user_id": "u"})

    def send_and_shut() -> None:
        wire.socket.sendall(request * 3_000)
        wire.socket.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=send_and_shut)
    writer.start()
    answers = [wire.receive()[1]["remaining_stock"] for _ in range(3_000)]
    writer.join()
    assert answers == list(reversed(range(3_000)))
    assert wire.ended()


def test_many_products_on_one_connection_are_sold_apart(wire: Any, store: "redis.Redis", product_id: str) -> None:
    names = [f"{product_id}-{number}" for number in range(200)]
    store.mset({f"product:{name}:stock": number % 3 for number, name in enumerate(names)})
    wire.send_meanwhile(
        b"".join(wire.frame(PURCHASE, {"product_id": name, "user_id": "u"}) for _ in range(3) for name in names)
    )
    for turn in range(3):
        for number in range(200):
            left = number % 3 - turn - 1
            expected = {"status": "SUCCESS", "remaining_stock": left} if left >= 0 else {"status": "SOLD_OUT"}
            assert wire.receive() == (PURCHASE, expected)


def test_the_same_user_may_buy_again(wire: Any, store: "redis.Redis", product_id: str) -> None:
    store.set(f"product:{product_id}:stock", 3)
    assert [wire.buy(product_id, "again")["remaining_stock"] for _ in range(3)] == [2, 1, 0]
    assert store.lrange(f"product:{product_id}:buyers", 0, -1) == ["again"] * 3


@pytest.mark.parametrize("user_id", ["日本", 'quote"and\\slash', "line\nbreak", "\x1b[31m", "u" * 256])
def test_a_user_id_is_kept_as_it_is(wire: Any, store: "redis.Redis", product_id: str, user_id: str) -> None:
    store.set(f"product:{product_id}:stock", 1)
    assert wire.buy(product_id, user_id)["status"] == "SUCCESS"
    assert store.lrange(f"product:{product_id}:buyers", 0, -1) == [user_id]


def test_a_product_id_with_odd_characters_is_one_like_any_other(
    wire: Any, store: "redis.Redis", product_id: str
) -> None:
    odd = f'{product_id} {{x}} * "é"\n:stock'
    store.set(f"product:{odd}:stock", 1)
    assert wire.buy(odd, "u") == {"status": "SUCCESS", "remaining_stock": 0}


def test_every_sale_is_published_in_order_and_then_that_all_is_sold_out(
    wire: Any, store: "redis.Redis", product_id: str
) -> None:
    store.set(f"product:{product_id}:stock", 3)
    before = store.time()[0]
    with store.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("flashsale_events")
        channel.get_message(timeout=5)
        wire.send(b"".join(wire.frame(PURCHASE, {"product_id": product_id, "user_id": f'u"{n}'}) for n in range(5)))
        [wire.receive() for _ in range(5)]
        events: list[dict[str, Any]] = []
        while not events or events[-1]["event"] != "sold_out":
            message = channel.get_message(timeout=10)
            if message is not None:
                events.append(json.loads(message["data"]))
    times = [event.pop("timestamp") for event in events]
    assert [event.pop("version", 0) for event in events] == [2, 3, 4, 0]
    assert all(isinstance(moment, int) and before <= moment <= before + 60 for moment in times)
    assert events == [
        {"event": "purchase", "product_id": product_id, "buyer": 'u"0', "remaining": 2, "quantity": 1},
        {"event": "purchase", "product_id": product_id, "buyer": 'u"1', "remaining": 1, "quantity": 1},
        {"event": "purchase", "product_id": product_id, "buyer": 'u"2', "remaining": 0, "quantity": 1},
        {"event": "sold_out", "product_id": product_id},
    ]


# What it cannot be made to do


def test_an_honest_client_is_served_while_others_send_rubbish(
    server: ServerProcess, connect: Connect, until: Callable[..., None], store: "redis.Redis", product_id: str
) -> None:
    chance = random.Random(3)
    store.set(f"product:{product_id}:stock", 1_000_000)
    valid = connect.frame(PURCHASE, {"product_id": "no-such", "user_id": "u"})
    stop, served, wrong = threading.Event(), [], []

    def honest() -> None:
        with connect(server.port) as client:
            while not stop.is_set():
                answer = client.buy(product_id, "honest")
                (served if answer["status"] == "SUCCESS" else wrong).append(answer)

    buyer = threading.Thread(target=honest)
    buyer.start()
    try:
        rubbish = [valid[:cut] for cut in range(len(valid))]
        rubbish += [chance.randbytes(chance.randrange(1, 2_000)) for _ in range(150)]
        rubbish += [struct.pack(">BI", 1, size) + chance.randbytes(size) for size in range(0, 300, 3)]
        rubbish += [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PING\r\n"]
        for number, data in enumerate(rubbish):
            with connect(server.port) as client:
                client.send(data)
                if number % 3 == 0:  # gone without a word: a reset
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif number % 3 == 1:
                    with suppress(OSError):
                        client.socket.shutdown(socket.SHUT_WR)
                        while client.socket.recv(1 << 16):
                            pass
        until(lambda: len(served) > 100)
    finally:
        stop.set()
        buyer.join()
    assert not wrong


def test_an_honest_client_is_served_while_another_floods_the_server_with_empty_requests(
    server: ServerProcess, connect: Connect
) -> None:
    stop = threading.Event()
    segment = connect.frame(PURCHASE, b"") * 20_000

    def flood(it: socket.socket) -> None:
        with suppress(OSError):
            while not stop.is_set():
                it.sendall(segment)

    def read(it: socket.socket) -> None:
        with suppress(OSError):
            while it.recv(1 << 20):
                pass

    with connect(server.port) as client, connect(server.port) as attacker:
        threads = [threading.Thread(target=target, args=(attacker.socket,)) for target in (flood, read)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.3)
            begun_at = time.monotonic()
            for _ in range(20):
                client.ping()
            assert time.monotonic() - begun_at < 5, "each takes milliseconds, and took seconds once"
        finally:
            stop.set()
            attacker.socket.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_rubbish_after_good_frames_leaves_the_good_ones_answered(
    server: ServerProcess, connect: Connect, store: "redis.Redis", product_id: str
) -> None:
    store.set(f"product:{product_id}:stock", 100)
    valid = connect.frame(PURCHASE, {"product_id": product_id, "user_id": "u"})
    for cut in range(0, len(valid), 7):
        with connect(server.port) as client:
            client.send(valid + valid[:cut])
            client.socket.shutdown(socket.SHUT_WR)
            assert client.receive()[1]["status"] == "SUCCESS"
            assert client.ended()
    with connect(server.port) as client:
        client.send(valid + b"\x01\xff\xff\xff\xff" + valid)
        assert client.receive()[1]["status"] == "SUCCESS"
        assert client.receive()[1] == {"status": "ERROR", "error": "payload too large"}
        assert client.ended()
