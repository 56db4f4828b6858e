"""What a watcher hears of a running server: in order, from where it was, at its own pace."""

import asyncio
import time
from collections.abc import Iterator

import grpc
import pytest

from flashsale import Client
from flashsale.domain.requests import Pause
from flashsale.grpc.orders_pb2 import PurchaseRequest, SaleEvent, WatchRequest, WatchResponse
from flashsale.grpc.orders_pb2_grpc import OrderServiceStub
from flashsale.store.admin import Admin
from tests.grpc.client import PATIENCE_S

SALES_COUNT = 2_000
WRITE_TIMEOUT_S = 1.0
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
SMALL_BUFFERS = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
"""Else a client takes 4 MiB that nobody reads."""


def hear(stream: Iterator[WatchResponse], version: int) -> list[SaleEvent]:
    """Return what a stream tells, up to that version."""
    events: list[SaleEvent] = []
    while not events or events[-1].version < version:
        events += next(stream).events
    return events


def watch(orders, product_id, **more):
    return orders.Watch(WatchRequest(product_id=product_id, **more), timeout=PATIENCE_S)


def buy(orders, product_id, number):
    request = PurchaseRequest(item_id=product_id, user_id="ann", request_id=str(number), quantity=number)
    return orders.Purchase(request, timeout=PATIENCE_S)


def test_a_watcher_hears_every_change(orders, open_sale, operate):
    product_id = open_sale(100)
    stream = watch(orders, product_id)
    [begun] = next(stream).events
    assert (begun.event, begun.product_id, begun.version, len(begun.epoch)) == ("subscribed", product_id, 1, 8)
    order = buy(orders, product_id, 2)
    operate(lambda admin: admin.change(Pause(product_id)))
    sold, paused = hear(stream, 3)
    assert sold.timestamp == paused.timestamp > 1_700_000_000
    sold.timestamp = paused.timestamp = 0
    assert sold == SaleEvent(
        event="sold",
        product_id=product_id,
        version=2,
        remaining=98,
        buyer="ann",
        quantity=2,
        order_id=order.order_id,
    )
    assert paused == SaleEvent(event="paused", product_id=product_id, version=3, remaining=98)
    stream.cancel()


def test_a_watcher_that_was_away_goes_on_where_it_was(orders, open_sale):
    product_id = open_sale(100)
    stream = watch(orders, product_id)
    epoch = next(stream).events[0].epoch
    for number in range(1, 6):
        buy(orders, product_id, number)
    assert [event.quantity for event in hear(stream, 4)][:3] == [1, 2, 3]
    stream.cancel()
    stream = watch(orders, product_id, after_version=4, epoch=epoch)
    assert next(stream).events[0].version == 6
    assert [event.quantity for event in hear(stream, 6)] == [4, 5]
    stream.cancel()
    everything = watch(orders, product_id, after_version=0)
    next(everything)
    events = hear(everything, 6)
    assert [event.version for event in events] == [1, 2, 3, 4, 5, 6]
    assert (events[0].event, events[0].epoch, events[0].quantity) == ("opened", epoch, 100)
    everything.cancel()


def test_a_watcher_that_knows_another_sale_is_told_so(orders, open_sale):
    product_id = open_sale(5)
    stream = watch(orders, product_id, after_version=1, epoch="00000000")
    assert [event.event for event in hear(stream, 1)] == ["subscribed"]
    reset, opened = (event for _ in range(2) for event in next(stream).events)
    assert (reset.event, reset.version, opened.event, opened.version) == ("reset", 0, "opened", 1)
    stream.cancel()


def test_the_same_is_heard_over_tcp(orders, open_sale, server):
    product_id = open_sale(100)
    for number in range(1, 4):
        buy(orders, product_id, number)

    async def hear_over_tcp():
        async with Client(server.host, server.port) as client:
            subscription = client.subscribe(product_id, after_version=0)
            return [await anext(subscription) for _ in range(4)]

    stream = watch(orders, product_id, after_version=0)
    next(stream)
    for ours, theirs in zip(hear(stream, 4), asyncio.run(hear_over_tcp()), strict=True):
        for name in (
            "event",
            "product_id",
            "version",
            "timestamp",
            "remaining",
            "buyer",
            "quantity",
            "order_id",
            "epoch",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.item_number == theirs.item_id
    stream.cancel()


def test_watchers_that_go_without_a_word_disturb_nobody(server, orders, open_sale):
    product_id = open_sale(10_000)
    stays = watch(orders, product_id)
    next(stays)
    version = 1
    for _ in range(5):
        channels = [grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=OWN_CONNECTION) for _ in range(4)]
        streams = [watch(OrderServiceStub(channel), product_id, after_version=0) for channel in channels]
        for stream in streams:
            next(stream)
        for _ in range(20):
            version = buy(orders, product_id, version).version
        for channel in channels:
            channel.close()
    assert [event.version for event in hear(stays, version)] == list(range(2, version + 1))
    stays.cancel()


def test_a_watcher_that_takes_nothing_is_parted_from_and_loses_nothing(start_server, home, product_id):
    server = start_server("--grpc", "127.0.0.1:0", FLASHSALE_WRITE_TIMEOUT_S=str(WRITE_TIMEOUT_S))

    async def sell() -> None:
        async with Admin(f"unix://{home}/valkey.sock") as admin:
            await admin.init(product_id, SALES_COUNT)
        async with Client(server.host, server.port) as client:
            await asyncio.gather(*(client.purchase(product_id, f"user-{number}") for number in range(SALES_COUNT)))

    asyncio.run(sell())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=SMALL_BUFFERS) as channel:
        orders = OrderServiceStub(channel)
        slow = watch(orders, product_id, after_version=0)
        next(slow)
        quick = watch(orders, product_id, after_version=0)
        next(quick)
        assert [event.version for event in hear(quick, SALES_COUNT + 1)] == list(range(1, SALES_COUNT + 2))
        time.sleep(WRITE_TIMEOUT_S + 0.5)  # being slow is what it does
        events: list[SaleEvent] = []
        with pytest.raises(grpc.RpcError) as error:
            events.extend(event for response in slow for event in response.events)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.value.trailing_metadata()) == {"reason": "too-slow"}
        last = events[-1].version
        assert [event.version for event in events] == list(range(1, last + 1))
        assert last < SALES_COUNT
        again = watch(orders, product_id, after_version=last, epoch=events[0].epoch)
        next(again)
        assert [event.version for event in hear(again, SALES_COUNT + 1)] == list(range(last + 1, SALES_COUNT + 2))
        quick.cancel()
        again.cancel()
    assert server.stop() == 0
