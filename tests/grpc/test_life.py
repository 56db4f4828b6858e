"""A gRPC door's life: with and without its libraries, over several workers, while the store is silent, and its end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flashsale.grpc.orders_pb2 import PurchaseRequest, StatusRequest, WatchRequest
from flashsale.grpc.orders_pb2_grpc import OrderServiceStub
from flashsale.store.admin import Admin
from tests.e2e.conftest import children_of
from tests.grpc.client import PATIENCE_S, refused
from tests.grpc.frames import Frames, block

BUYERS_COUNT = 40
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Else all channels of a process share one."""


def purchase(product_id, request_id):
    return PurchaseRequest(item_id=product_id, request_id=request_id, user_id="ann", quantity=1)


def init(home, product_id, stock):
    async def run() -> None:
        async with Admin(f"unix://{home}/valkey.sock") as admin:
            await admin.init(product_id, stock)

    asyncio.run(run())


def is_loaded(pid):
    """Whether a process has gRPC in memory."""
    return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()


def test_workers_share_the_port(start_server, home, product_id):
    server = start_server("--grpc", "127.0.0.1:0", "--workers", "2")
    init(home, product_id, 100)
    workers = children_of(server.pid)
    assert [is_loaded(pid) for pid in (server.pid, *workers)] == [False, True, True]  # what forks has no threads
    before = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in workers}
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=OWN_CONNECTION) for _ in range(24)]
    orders = [OrderServiceStub(channel) for channel in channels]
    left = {
        order.Purchase(purchase(product_id, str(n)), timeout=PATIENCE_S).remaining for n, order in enumerate(orders)
    }
    assert left == set(range(76, 100))
    assert all(len(os.listdir(f"/proc/{pid}/fd")) > count for pid, count in before.items())
    for channel in channels:
        channel.close()
    assert server.stop() == 0


def test_without_the_setting_nothing_of_it_is_loaded(start_server):
    server = start_server()
    assert server.grpc_port == 0
    assert not is_loaded(server.pid)


def test_libraries_that_are_missing_are_one_clear_line(home, environment, tmp_path):
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(name='grpc')")
    flags = ["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--home", str(home)]
    done = subprocess.run(
        [sys.executable, "-m", "flashsale", "serve", *flags, "--workers", "2"],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gRPC needs grpc: install 'flashsale[grpc]'\n"


def test_who_comes_too_often_is_told_when_to_come_again(start_server, home, product_id):
    settings = {"FLASHSALE_RATE_USER": "1/h", "FLASHSALE_RATE_CLIENT": "2/h", "FLASHSALE_TRUSTED_PROXIES": "127.0.0.1"}
    server = start_server("--grpc", "127.0.0.1:0", **settings)
    init(home, product_id, 100)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        orders = OrderServiceStub(channel)

        def buy(user_id: str, client: str) -> tuple[str, str]:
            request = PurchaseRequest(item_id=product_id, request_id=user_id, user_id=user_id, quantity=1)
            call = orders.Purchase.future(request, timeout=PATIENCE_S, metadata=(("x-forwarded-for", client),))
            code, told = call.code().name, dict(call.trailing_metadata())
            assert code == "OK" or 1000 < int(told["retry-after"]) <= 3600
            return code, told.get("reason", "")

        refused = ("RESOURCE_EXHAUSTED", "rate-limited")
        assert buy("ann", "192.0.2.1") == ("OK", "")
        assert buy("ann", "192.0.2.1") == refused
        assert buy("bob", "192.0.2.1") == ("OK", "")
        assert buy("cy", "192.0.2.1") == refused
        assert buy("cy", "192.0.2.2") == ("OK", "")
        streams = [orders.Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S) for _ in range(3)]
        assert [next(stream).events[0].event for stream in streams[:2]] == ["subscribed"] * 2
        with pytest.raises(grpc.RpcError) as error:
            next(streams[2])
        assert dict(error.value.trailing_metadata())["reason"] == "rate-limited"


def test_a_store_that_is_silent(start_server, home, store, product_id):
    settings = {"FLASHSALE_QUEUE_COUNT_MAX": "1", "FLASHSALE_STORE_DEADLINE_S": "0.5"}
    server = start_server("--grpc", "127.0.0.1:0", **settings)
    init(home, product_id, 100)
    store_pid = store.info("server")["process_id"]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        orders = OrderServiceStub(channel)
        orders.Purchase(purchase(product_id, "first"), timeout=PATIENCE_S)
        os.kill(store_pid, signal.SIGSTOP)
        try:
            calls = [orders.Purchase.future(purchase(product_id, str(n)), timeout=PATIENCE_S) for n in range(5)]
            told = Counter(
                (
                    call.code().name,
                    dict(call.trailing_metadata()).get("reason"),
                    dict(call.trailing_metadata()).get("retry-after"),
                )
                for call in calls
            )
        finally:
            os.kill(store_pid, signal.SIGCONT)
        assert told["DEADLINE_EXCEEDED", "unknown", "1"] == 1
        assert told["UNAVAILABLE", "unavailable", "1"] == 1
        assert told["UNAVAILABLE", "busy", "1"] == 3
    assert server.stop() == 0


async def listen(stream, heard):
    async for response in stream:
        heard.extend(event.version for event in response.events if event.event != "subscribed")


async def test_a_server_that_ends_answers_what_it_has_taken(start_server, home, product_id):
    server = start_server("--grpc", "127.0.0.1:0", FLASHSALE_DRAIN_DELAY_S="0.3")
    async with Admin(f"unix://{home}/valkey.sock") as admin:
        await admin.init(product_id, 1_000_000)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            orders = OrderServiceStub(channel)
            bought: list[int] = []
            ends: list[tuple[str, str]] = []
            in_the_middle = asyncio.Event()

            async def buy(buyer: int) -> None:
                number = 0
                while True:
                    number += 1
                    try:
                        order = await orders.Purchase(purchase(product_id, f"{buyer}-{number}"), timeout=PATIENCE_S)
                    except grpc.aio.AioRpcError as error:
                        ends.append((error.code().name, dict(error.trailing_metadata()).get("reason", "")))
                        return
                    bought.append(order.version)
                    if len(bought) == 100:
                        in_the_middle.set()

            async def watch() -> tuple[str, list[int]]:
                heard: list[int] = []
                stream = orders.Watch(WatchRequest(product_id=product_id, after_version=0))
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await listen(stream, heard)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
                return dict(error.value.trailing_metadata())["reason"], heard

            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            watching = asyncio.create_task(watch())
            buying = [asyncio.create_task(buy(buyer)) for buyer in range(BUYERS_COUNT)]
            await in_the_middle.wait()
            os.kill(server.pid, signal.SIGTERM)
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            told_at = len(bought)
            await asyncio.gather(*buying)
            assert len(bought) > told_at, "between NOT_SERVING and the end it sells"
            reason, heard = await watching
        assert await asyncio.to_thread(server.wait) == 0
    # CANCELLED: it came as the server ended, which did not take it
    assert set(ends) <= {("UNAVAILABLE", "unavailable"), ("UNAVAILABLE", ""), ("CANCELLED", "")}
    assert len(bought) == len(set(bought))
    assert reason == "ending"
    assert heard == list(range(1, len(heard) + 1))
    again = start_server("--grpc", "127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{again.grpc_port}") as channel:
        status = await asyncio.to_thread(OrderServiceStub(channel).Status, StatusRequest(product_id=product_id))
        assert status.sold == len(bought), "each sale was told to its buyer"
    said = (home / "server.log").read_text()
    assert "Traceback" not in said, said


def test_calls_that_take_too_long_are_cancelled_at_the_end(start_server, home, store, product_id):
    server = start_server("--grpc", "127.0.0.1:0", FLASHSALE_DRAIN_TIMEOUT_S="1", FLASHSALE_STORE_DEADLINE_S="30")
    init(home, product_id, 100)
    store_pid = store.info("server")["process_id"]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        orders = OrderServiceStub(channel)
        assert refused(orders.Purchase, purchase("other", "r"))[0] == "NOT_FOUND"
        os.kill(store_pid, signal.SIGSTOP)
        try:
            call = orders.Purchase.future(purchase(product_id, "r"), timeout=PATIENCE_S)
            assert refused(orders.Purchase, purchase("", ""))[0] == "INVALID_ARGUMENT"  # so the first one is there
            os.kill(server.pid, signal.SIGTERM)
            assert call.code().name in {"UNAVAILABLE", "CANCELLED"}
        finally:
            os.kill(store_pid, signal.SIGCONT)
    assert server.wait() == 0


def test_a_watcher_of_health_that_takes_nothing_keeps_nobody_waiting(start_server, home):
    server = start_server("--grpc", "127.0.0.1:0", FLASHSALE_DRAIN_DELAY_S="2")
    with (
        Frames(server.grpc_port, window=0) as slow,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        slow.call(1, "/grpc.health.v1.Health/Watch", b"")
        health = health_pb2_grpc.HealthStub(channel)
        quick = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(quick).status == health_pb2.HealthCheckResponse.SERVING
        listed = health.List(health_pb2.HealthListRequest(), timeout=PATIENCE_S).statuses
        assert {name: told.status for name, told in listed.items()} == {"": 1, "flashsale.v1.OrderService": 1}
        os.kill(server.pid, signal.SIGTERM)
        assert next(quick).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.wait() == 0
    said = (home / "server.log").read_text()
    assert "Traceback" not in said, said


@pytest.mark.parametrize("flags", [[], ["--no-orders"]])
def test_a_connection_that_takes_nothing_does_not_hold_the_end_up(start_server, home, flags):
    server = start_server("--grpc", "127.0.0.1:0", *flags, FLASHSALE_DRAIN_TIMEOUT_S="5")
    with block(server.grpc_port):
        os.kill(server.pid, signal.SIGTERM)
        began = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - began < 5
    said = (home / "server.log").read_text()
    assert "Traceback" not in said, said
    assert "ERROR" not in said, said
