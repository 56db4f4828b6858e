"""The bounds of a door, and what it does when it meets a bug: a real one, in this process."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flashsale.domain.answers import BUSY
from flashsale.feed import Feed
from flashsale.grpc import door as door_module
from flashsale.grpc.door import GrpcDoor, GrpcLimits
from flashsale.grpc.orders_pb2 import PurchaseRequest, WatchRequest
from flashsale.grpc.orders_pb2_grpc import OrderServiceStub
from flashsale.grpc.rates import address_of
from flashsale.sockets import Port
from flashsale.store.admin import Admin
from flashsale.store.ledger import RedisLedger
from flashsale.subscriptions import FeedLimits
from tests.grpc.client import PATIENCE_S
from tests.grpc.frames import GOAWAY, REFLECTION, Frames

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
PURCHASE = PurchaseRequest(item_id="p", request_id="r", user_id="ann", quantity=1)


async def be_busy(request):
    return BUSY


@asynccontextmanager
async def open_door(store_url, ask=be_busy, *, feed_limits=None, **limits):
    """The address of a door in this process, whose watchers follow that store."""
    bounds = {
        "payload_size_max": 65_536,
        "connection_count_max": 100,
        "in_flight_count_max": 100,
        "idle_timeout_s": 60,
        "frame_timeout_s": 10,
        "write_timeout_s": 10,
    }

    async def nothing_waits():
        pass

    feed = Feed(RedisLedger(store_url), RedisLedger(store_url), feed_limits)
    door = GrpcDoor(ask, feed, GrpcLimits(**bounds | limits))
    async with AsyncExitStack() as stack:
        port = stack.enter_context(Port("127.0.0.1", 0))
        await door.start(port.bind())
        yield str(port)
        await door.drain(nothing_waits(), timeout_s=5)
        await feed.close()


async def test_watchers_are_bounded(store_url, product_id):
    async with Admin(store_url) as admin:
        await admin.init(product_id, 1)
    request = WatchRequest(product_id=product_id)
    for bounds in {"watcher_count_max": 1}, {"feed_limits": FeedLimits(cursor_count_max=1)}:
        async with open_door(store_url, **bounds) as address, grpc.aio.insecure_channel(address) as channel:
            orders = OrderServiceStub(channel)
            first = orders.Watch(request)
            await first.read()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await orders.Watch(request).read()
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(error.value.trailing_metadata()) == {"reason": "busy", "retry-after": "1"}
            first.cancel()
            while True:  # until the server knows
                stream = orders.Watch(request)
                try:
                    await stream.read()
                except grpc.aio.AioRpcError:
                    continue
                stream.cancel()
                break


async def test_streams_of_health_are_bounded(store_url):
    async with open_door(store_url, borrowed_count_max=1) as address, grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        first = health.Watch(health_pb2.HealthCheckRequest())
        assert (await first.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await health.Watch(health_pb2.HealthCheckRequest()).read()
        assert dict(error.value.trailing_metadata())["reason"] == "busy"
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        first.cancel()


async def test_calls_under_way_are_bounded(store_url, product_id):
    async with Admin(store_url) as admin:
        await admin.init(product_id, 1)
    async with open_door(store_url, call_count_max=1) as address, grpc.aio.insecure_channel(address) as channel:
        orders = OrderServiceStub(channel)
        stream = orders.Watch(WatchRequest(product_id=product_id))
        await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await orders.Purchase(PurchaseRequest())
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream.cancel()


async def test_connections_are_bounded(store_url):
    async with open_door(store_url, connection_count_max=1) as address, AsyncExitStack() as stack:
        told = []
        for _ in range(2):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OWN_CONNECTION))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await OrderServiceStub(channel).Purchase(PURCHASE, timeout=PATIENCE_S)
            told.append(dict(error.value.trailing_metadata() or ()).get("reason"))
        assert told == ["busy", None]


async def test_a_message_that_does_not_come_is_late(store_url):
    never = asyncio.Event()

    async def keep_waiting():
        await never.wait()
        yield b""

    async with open_door(store_url, frame_timeout_s=0.2) as address, grpc.aio.insecure_channel(address) as channel:
        for name in "Purchase", "Watch":
            call = channel.stream_unary(f"/flashsale.v1.OrderService/{name}")(keep_waiting(), timeout=PATIENCE_S)
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(await call.trailing_metadata()) == {"reason": "late"}
            never.set()
            never.clear()


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION])
async def test_calls_of_health_and_reflection_without_a_message_are_late(store_url, path):
    async with open_door(store_url, frame_timeout_s=0.2, call_count_max=1) as address:
        with Frames(int(address.rpartition(":")[2])) as frames:
            frames.call(1, path)
            heard = await asyncio.to_thread(frames.end_of, 1)
        assert b"late" in heard[-1][1]
        async with grpc.aio.insecure_channel(address) as channel:
            told = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert told.status == health_pb2.HealthCheckResponse.SERVING


async def test_streams_count_that_have_sent_nothing(store_url):
    async with open_door(store_url, borrowed_count_max=1) as address:
        with Frames(int(address.rpartition(":")[2])) as frames:
            frames.call(1, "/grpc.health.v1.Health/Watch")
            frames.call(3, REFLECTION)
            heard = await asyncio.to_thread(frames.end_of, 3)
            assert b"busy" in heard[-1][1]


async def test_a_watcher_that_takes_not_even_the_first_response_is_told_so(store_url, product_id):
    async with Admin(store_url) as admin:
        await admin.init(product_id, 1)
    request = WatchRequest(product_id=product_id).SerializeToString()
    async with open_door(store_url, write_timeout_s=0.2, watcher_count_max=1) as address:
        with Frames(int(address.rpartition(":")[2]), window=0) as frames:
            frames.call(1, "/flashsale.v1.OrderService/Watch", request)
            await asyncio.sleep(1)  # being slow is what it does
            async with grpc.aio.insecure_channel(address) as channel:
                other = OrderServiceStub(channel).Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S)
                await other.read()  # the slow one's place is free
                other.cancel()
            frames.open_window(1, 65_535)
            heard = await asyncio.to_thread(frames.end_of, 1)
            assert b"too-slow" in heard[-1][1]


async def test_a_call_without_a_message_is_unreadable(store_url):
    async with open_door(store_url) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary("/flashsale.v1.OrderService/Purchase")(iter(()), timeout=PATIENCE_S)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(await call.trailing_metadata()) == {"reason": "unreadable"}


async def test_who_takes_no_responses_is_parted_from_at_last(store_url, product_id, monkeypatch):
    monkeypatch.setattr(door_module, "CONNECTION_AGE_S", 0.5)
    monkeypatch.setattr(door_module, "CONNECTION_GRACE_S", 0.5)
    async with Admin(store_url) as admin:
        await admin.init(product_id, 1)
    async with open_door(store_url) as address, grpc.aio.insecure_channel(address) as channel:
        stream = OrderServiceStub(channel).Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S)
        await stream.read()
        with Frames(int(address.rpartition(":")[2]), window=0) as frames:
            frames.call(1, "/flashsale.v1.OrderService/Purchase", PURCHASE.SerializeToString())
            kinds = await asyncio.to_thread(lambda: [kind for kind, *_ in frames.take()])
            assert GOAWAY in kinds
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "reason" not in dict(error.value.trailing_metadata() or ())
        again = OrderServiceStub(channel).Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S)
        await again.read()
        again.cancel()


async def test_no_call_fails_because_its_connection_is_old(store_url, monkeypatch):
    monkeypatch.setattr(door_module, "CONNECTION_AGE_S", 0.2)
    states = []

    async def ask(request):
        await asyncio.sleep(0.01)
        return BUSY

    async def watch(channel):
        while True:
            states.append(channel.get_state())
            await channel.wait_for_state_change(states[-1])

    async def call(orders):
        while states.count(grpc.ChannelConnectivity.READY) < 4:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await orders.Purchase(PURCHASE, timeout=PATIENCE_S)
            assert dict(error.value.trailing_metadata() or ()).get("reason") == "busy", error.value

    async with (
        open_door(store_url, ask) as address,
        grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel,
    ):
        watching = asyncio.create_task(watch(channel))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(call(OrderServiceStub(channel)) for _ in range(20)))
        watching.cancel()


async def test_calls_of_a_server_that_has_failed_are_answered_at_the_end(store_url):
    asked, done = asyncio.Event(), asyncio.Event()

    async def ask(request):
        asked.set()
        await done.wait()
        return BUSY

    async with AsyncExitStack() as stack:
        door = open_door(store_url, ask)
        address = await door.__aenter__()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        call = OrderServiceStub(channel).Purchase(PURCHASE, timeout=PATIENCE_S)
        await asked.wait()
        with Frames(int(address.rpartition(":")[2])) as frames:
            frames.call(1, "/\udcff")  # no UTF-8: another server takes its place
            await asyncio.sleep(0.5)
        asyncio.get_running_loop().call_later(0.3, done.set)
        await door.__aexit__(None, None, None)
        assert done.is_set(), "the end waits for it"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert dict(error.value.trailing_metadata())["reason"] == "busy"


@pytest.mark.parametrize("given", ["cart-4711", "no id"])
async def test_a_bug_is_logged_and_told_without_its_words(store_url, caplog, given):
    async def ask(request):
        raise ValueError("a secret")

    async with open_door(store_url, ask) as address, grpc.aio.insecure_channel(address) as channel:
        metadata = (("x-request-id", given),)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await OrderServiceStub(channel).Purchase(PURCHASE, timeout=PATIENCE_S, metadata=metadata)
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.value.details()
    told = dict(error.value.trailing_metadata())
    assert (told["reason"], told["x-request-id"] == given) == ("defect", given == "cart-4711")
    assert [record.message for record in caplog.records if record.exc_info] == ["PurchaseRequest failed"]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:4711", "2001:db8::1"),
        ("ipv6:[::1]:4711", "::1"),
        ("unix:/tmp/socket", ""),
        ("", ""),
    ],
)
def test_who_calls(peer, address):
    assert address_of(peer) == address
