"""What clients do wrong: each is told so, nobody else notices, and the log stays clean (see the fixture `server`)."""

import socket
import struct
import time
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.grpc.orders_pb2 import (
    CancelRequest,
    ConfirmRequest,
    ExtendRequest,
    PurchaseRequest,
    PurchaseResponse,
    ReserveRequest,
    StatusRequest,
    WatchRequest,
)
from tests.grpc.client import PATIENCE_S, refused
from tests.grpc.frames import CANCEL, REFLECTION, RESET, Frames

SERVICE = "/flashsale.v1.OrderService"
GOOD = {"item_id": "p", "user_id": "ann", "request_id": "r", "quantity": 1}
WRONG_PURCHASES = [
    ({"item_id": ""}, "missing required fields"),
    ({"user_id": ""}, "missing required fields"),
    ({"request_id": ""}, "missing required fields"),
    ({"quantity": 0}, "missing required fields"),
    ({"quantity": -1}, "missing required fields"),
    ({"quantity": 1_000_001}, "invalid quantity"),
    ({"quantity": 2**63 - 1}, "invalid quantity"),
    ({"quantity": 2**32 + 1}, "invalid quantity"),
    ({"user_id": "a\0b"}, "invalid user_id"),
    ({"user_id": "u" * 257}, "invalid user_id"),
    ({"user_id": "ü" * 129}, "invalid user_id"),
    ({"request_id": "r\0"}, "invalid request_id"),
    ({"request_id": "r" * 129}, "invalid request_id"),
    ({"item_number": -1}, "invalid item_id"),
    ({"item_number": 2**63 - 1}, "invalid item_id"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG_PURCHASES)
def test_a_purchase_that_is_wrong_in_itself(orders, fields, words):
    told = refused(orders.Purchase, PurchaseRequest(**GOOD | fields))
    assert told == ("INVALID_ARGUMENT", words, {"reason": "bad-request"})


def test_other_calls_that_are_wrong_in_themselves(orders):
    hold = {"product_id": "p", "user_id": "ann", "quantity": 1}
    code = "x" * 22 + ".p"
    for call, request, words in [
        (orders.Reserve, ReserveRequest(), "missing product_id or user_id"),
        (orders.Reserve, ReserveRequest(**hold | {"quantity": 0}), "invalid quantity"),
        (orders.Reserve, ReserveRequest(**hold, hold_seconds=-1), "invalid hold_seconds"),
        (orders.Reserve, ReserveRequest(**hold, hold_seconds=2**62), "invalid hold_seconds"),
        (orders.Confirm, ConfirmRequest(), "missing code"),
        (orders.Confirm, ConfirmRequest(code=code, request_id="\0"), "invalid request_id"),
        (orders.Cancel, CancelRequest(), "missing code"),
        (orders.Extend, ExtendRequest(code=code, hold_seconds=-5), "invalid hold_seconds"),
        (orders.Status, StatusRequest(), "missing product_id or user_id"),
    ]:
        assert refused(call, request) == ("INVALID_ARGUMENT", words, {"reason": "bad-request"})
    for request, words in [
        (WatchRequest(), "missing product_id or user_id"),
        (WatchRequest(product_id="p", after_version=-1), "invalid after_version"),
        (WatchRequest(product_id="p", after_version=2**62), "invalid after_version"),
        (WatchRequest(product_id="p", epoch="e" * 65), "invalid epoch"),
    ]:
        with pytest.raises(grpc.RpcError) as error:
            next(orders.Watch(request, timeout=PATIENCE_S))
        assert (error.value.code().name, error.value.details()) == ("INVALID_ARGUMENT", words)


def test_scripts_in_ids_are_ids(orders, open_sale):
    product_id = open_sale(9, name="'; DROP TABLE orders; --<script>%0a")
    request = PurchaseRequest(**GOOD | {"item_id": product_id, "user_id": "return redis.call('FLUSHALL')\r\n"})
    assert orders.Purchase(request, timeout=PATIENCE_S).remaining == 8


def test_a_message_that_cannot_be_read(channel):
    for raw in b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe":  # no field, cut off, no UTF-8
        told = refused(channel.unary_unary(f"{SERVICE}/Purchase"), raw)
        assert told == ("INVALID_ARGUMENT", "the message cannot be read", {"reason": "unreadable"})


def test_a_message_that_is_too_large(channel):
    largest = field(15, b"x" * 65_531)  # a field that is not known
    assert len(largest) == 65_535
    told = refused(channel.unary_unary(f"{SERVICE}/Purchase"), largest)
    assert told == ("INVALID_ARGUMENT", "missing required fields", {"reason": "bad-request"})
    code, words, _ = refused(channel.unary_unary(f"{SERVICE}/Purchase"), largest + b"xx")
    assert (code, words.split(" (")[0]) == ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max")


def test_metadata_that_are_too_large(channel):
    call = channel.unary_unary(f"{SERVICE}/Purchase")
    with pytest.raises(grpc.RpcError) as error:
        call(b"", timeout=PATIENCE_S, metadata=(("x", "y" * 10_000),))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused(channel):
    """It could be a thousand times as large in memory."""
    call = channel.unary_unary(f"{SERVICE}/Purchase")
    with pytest.raises(grpc.RpcError) as error:
        call(b"x" * 1000, timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_that_there_is_not(channel):
    for path in f"{SERVICE}/Refund", "/other.Service/Purchase", "/", "/OtherOrderService/Purchase":
        assert refused(channel.unary_unary(path), b"")[0] == "UNIMPLEMENTED"


# Below gRPC


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def begin(path: bytes) -> bytes:
    """Return what an HTTP/2 client sends to begin, and a call."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers"}
    fields[b"content-type"] = b"application/grpc"
    head = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields.items())
    settings_frame = frame(4, 0, 0, b"")
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame + frame(1, 4, 1, head) + frame(0, 1, 1, b"\0" * 5)


def buy(orders, request):
    """Buy at a server that comes and goes, as the README has it: with the same id, until there is an answer."""
    while True:
        try:
            return orders.Purchase(request, timeout=PATIENCE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:  # the one that ended has done it
                return PurchaseResponse.FromString(dict(error.trailing_metadata())["first-response-bin"])
            if error.code() not in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}:
                raise


def test_a_path_that_is_no_text_ends_nothing_but_its_connection(server, orders, open_sale):
    """It ends grpc.aio's server; what is under way goes on, and another server takes new calls (core.py)."""
    product_id = open_sale(100)
    stream = orders.Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S)
    next(stream)
    for number in range(3):
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=PATIENCE_S) as client:
            client.sendall(begin(b"/\xff\xfe/Purchase"))
            while b"Server shutdown" not in client.recv(65_536):
                pass
        request = PurchaseRequest(**GOOD | {"item_id": product_id, "request_id": f"r{number}"})
        order = buy(orders, request)
        assert order.remaining == 99 - number
        if not number:
            assert next(stream).events[0].order_id == order.order_id
    stream.cancel()


def test_what_is_no_http2_is_closed(server, orders):
    for raw in b"\x01\x00\x00\x00\x02{}", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100:
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=PATIENCE_S) as client:
            client.sendall(raw)
            try:
                while client.recv(65_536):
                    pass
            except ConnectionResetError:
                pass
    assert refused(orders.Status, StatusRequest(product_id="nothing"))[0] == "NOT_FOUND"


# Whatever comes

TOLD = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS"}
CALLS = ("Purchase", "Reserve", "Confirm", "Cancel", "Extend", "Status", "Watch")
FIELDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=300),
)


def ask_raw(channel: grpc.Channel, name: str, raw: bytes) -> str:
    """Return the code that a call ends with."""
    if name == "Watch":
        call = channel.unary_stream(f"{SERVICE}/{name}")(raw, timeout=PATIENCE_S)
    else:
        call = channel.unary_unary(f"{SERVICE}/{name}").future(raw, timeout=PATIENCE_S)
    return str(call.code().name)


def field(number: int, value: str | bytes | int) -> bytes:
    """Return a field as it is sent."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


ANYTHING = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(1, 8), FIELDS), max_size=8).map(
        lambda fields: b"".join(field(number, value) for number, value in fields)
    ),
)


@given(st.sampled_from(CALLS), ANYTHING)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered(channel, name, raw):
    assert ask_raw(channel, name, raw) in TOLD


@given(ANYTHING)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_to_health_is_answered(channel, raw):
    call = channel.unary_unary("/grpc.health.v1.Health/Check").future(raw, timeout=PATIENCE_S)
    assert call.code().name in {"OK", "NOT_FOUND", "INVALID_ARGUMENT"}


@given(ANYTHING)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_to_reflection_is_answered(channel, raw):
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = channel.stream_stream(path)(iter([raw]), timeout=PATIENCE_S)
    with suppress(grpc.RpcError):
        list(call)
    assert call.code().name in {"OK", "INVALID_ARGUMENT"}


def test_who_sends_nonsense_and_goes_is_not_logged(server):
    """See the fixture: a traceback in the log fails these tests."""
    for path in "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION:
        with Frames(server.grpc_port) as frames:
            for number in range(100):
                frames.call(2 * number + 1, path, b"\xff", last=False)
                time.sleep(number % 10 * 0.0002)
                frames.send(RESET, 0, 2 * number + 1, CANCEL)
    with Frames(server.grpc_port) as frames:
        for number, path in enumerate(("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION)):
            frames.call(2 * number + 1, path, b"\xff")
            assert b"unreadable" in frames.end_of(2 * number + 1)[-1][1]


def test_the_server_is_still_there(channel):
    health = health_pb2_grpc.HealthStub(channel)
    told = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert told.status == health_pb2.HealthCheckResponse.SERVING
