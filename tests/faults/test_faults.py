"""Whatever is killed, stopped or changed: nothing confirmed is lost, and nobody who was refused is sold anything.

Each test breaks one thing while a crowd buys, waits until selling goes on, and checks the crowd against the store.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale.launch import ServerProcess

PRODUCT = "p"
STORE_BACK_S = 5.0  # service resumes by itself so soon after the store's restart
DEADLINE_S = 2.0  # nobody waits longer for an answer while the store is silent
AT_ONCE_S = 0.05  # and nobody waits at all once others have waited in vain, but for one now and then
SLACK_S = 1.0  # for a busy machine
END_S = 10.0
SOON = {"FLASHSALE_STORE_DEADLINE_S": "0.5"}  # where the deadline is not the question, for the tests' own sake

StartServer = Callable[..., ServerProcess]
GatherCrowd = Callable[..., Awaitable[Any]]
StorePid = Callable[[], int]


def percentile_95(answers: list[Any]) -> float:
    """Return what 95 of 100 did not wait longer than."""
    return sorted(a.answered_at - a.asked_at for a in answers)[len(answers) * 95 // 100]


def workers_of(server: ServerProcess) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc to find a server's workers")
    return [int(pid) for pid in children.read_text().split()]


async def test_kill_9_of_the_server_loses_nothing(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    server = start_server()
    crowd = await gather_crowd(server, store)
    for _ in range(2):
        await asyncio.to_thread(server.kill)
        server = await asyncio.to_thread(start_server, port=server.port)
        await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "LOST")


async def test_kill_9_of_the_store_loses_nothing_and_it_comes_back_by_itself(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd, store_pid: StorePid
) -> None:
    crowd = await gather_crowd(start_server(), store)
    for _ in range(3):
        killed_at = time.monotonic()
        os.kill(store_pid(), signal.SIGKILL)
        await asyncio.sleep(0.02)  # for what was answered already to arrive
        assert await crowd.sees("SUCCESS") - killed_at < STORE_BACK_S
    await crowd.stop()
    crowd.check(store, "unavailable", "UNKNOWN")


async def test_kill_9_of_everything_at_once_loses_nothing(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd, store_pid: StorePid
) -> None:
    server = start_server("--workers", "2")
    crowd = await gather_crowd(server, store)
    for pid in (store_pid(), server.pid, *workers_of(server)):
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(server.wait)
    await asyncio.to_thread(start_server, port=server.port)
    await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "LOST", "unavailable", "UNKNOWN")


async def test_kill_9_of_all_workers_and_the_store_is_survived_by_their_supervisor(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd, store_pid: StorePid
) -> None:
    server = start_server("--workers", "2")
    crowd = await gather_crowd(server, store)
    for pid in (store_pid(), *workers_of(server)):
        os.kill(pid, signal.SIGKILL)
    await crowd.sees("SUCCESS", timeout_s=15)
    await crowd.stop()
    crowd.check(store, "LOST", "unavailable", "UNKNOWN")


async def test_a_store_that_stops_is_answered_for_within_the_deadline_and_resumes(
    start_server: StartServer,
    store: "redis.Redis",
    gather_crowd: GatherCrowd,
    store_pid: StorePid,
    stopped: Callable[[int], None],
) -> None:
    crowd = await gather_crowd(start_server(), store)
    pid = store_pid()
    stopped(pid)
    await asyncio.sleep(0.1)
    silent_from = time.monotonic()
    await crowd.sees("unavailable", 20)
    await asyncio.sleep(0.1)  # for those who had waited for as long to be told
    open_from = time.monotonic()
    await crowd.sees("unavailable", 300)
    silent_to = time.monotonic()
    os.kill(pid, signal.SIGCONT)
    assert await crowd.sees("SUCCESS") - silent_to < STORE_BACK_S
    await crowd.stop()
    meanwhile = [a for a in crowd.answers if silent_from < a.answered_at and a.asked_at < silent_to]
    asked_in_vain = {a.kind for a in meanwhile if silent_from < a.asked_at and a.answered_at < silent_to}
    assert asked_in_vain <= {"unavailable", "UNKNOWN"}
    assert percentile_95(meanwhile) < DEADLINE_S + SLACK_S
    refused = [a for a in meanwhile if open_from < a.asked_at and a.answered_at < silent_to]
    assert {a.kind for a in refused} == {"unavailable"}, "they were not sent"
    assert percentile_95(refused) < AT_ONCE_S
    crowd.check(store, "unavailable", "UNKNOWN")


async def test_a_server_told_to_end_while_its_store_is_stopped_ends_in_time(
    start_server: StartServer,
    store: "redis.Redis",
    gather_crowd: GatherCrowd,
    store_pid: StorePid,
    stopped: Callable[[int], None],
) -> None:
    server = start_server()
    crowd = await gather_crowd(server, store)
    pid = store_pid()
    stopped(pid)
    await crowd.sees("unavailable", 1)
    await asyncio.sleep(2)  # it is trying to bring its store back
    told_at = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    crowd._stopping = True
    assert await asyncio.to_thread(server.wait, END_S) == 0, "it was still there"
    assert time.monotonic() - told_at < END_S
    os.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(start_server, port=server.port)
    await crowd.stop()
    crowd.check(store, "unavailable", "UNKNOWN", "LOST")


def test_a_server_whose_worker_starts_again_without_a_store_ends_in_time(
    start_server: StartServer, store_pid: StorePid, stopped: Callable[[int], None]
) -> None:
    server = start_server("--workers", "2")
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    workers = children.read_text().split()
    stopped(store_pid())
    os.kill(int(workers[0]), signal.SIGKILL)
    deadline = time.monotonic() + END_S
    while workers[0] in children.read_text().split() or len(children.read_text().split()) < 2:
        assert time.monotonic() < deadline, "the worker was not replaced"
        time.sleep(0.05)
    told_at = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait(END_S) == 0, "it was still there"
    assert time.monotonic() - told_at < END_S


async def test_lost_scripts_are_seen_by_nobody(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(), store)
    for _ in range(12):
        store.script_flush()
        await asyncio.sleep(0.1)
    await crowd.stop()
    crowd.check(store)


async def test_connections_cut_again_and_again_lose_nothing_and_sell_nothing_twice(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(), store)
    for _ in range(30):
        store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await crowd.sees("SUCCESS", 1)
    await crowd.stop()
    crowd.check(store)  # each was resolved by sending the batch again with its sequence


async def test_a_sale_whose_stock_vanishes_is_unavailable_and_never_sold_out(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(), store)
    left = store.getdel(f"product:{PRODUCT}:stock")
    await crowd.sees("unavailable", 50)
    store.set(f"product:{PRODUCT}:stock", left)
    await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "unavailable")


async def test_keys_that_are_not_what_they_should_be_stop_the_sale_and_change_nothing(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(**SOON), store)
    for key, value in (("stock", "many"), ("stock", ["1"]), ("buyers", "nobody"), ("sessions", "x")):
        name = f"product:{PRODUCT}:{key}"
        with store.pipeline(transaction=True) as plant:
            plant.rename(name, "aside")
            plant.set(name, value) if isinstance(value, str) else plant.rpush(name, *value)
            plant.execute()
        await crowd.sees("unavailable", 20)
        store.rename("aside", name)
        await crowd.sees("SUCCESS", 20)
    await crowd.stop()
    crowd.check(store, "unavailable")


async def test_a_store_made_weaker_while_it_runs_sells_no_more_once_it_is_looked_at(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(**SOON), store)
    store.config_set("appendfsync", "everysec")
    store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # it looks whenever it connects
    await crowd.sees("unavailable", 10)
    sold = store.llen(f"product:{PRODUCT}:buyers")
    await crowd.sees("unavailable", 10)
    assert store.llen(f"product:{PRODUCT}:buyers") == sold
    store.config_set("appendfsync", "always")
    await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "unavailable", "UNKNOWN")


async def test_a_store_without_memory_sells_nothing_by_halves_and_recovers(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(**SOON), store)
    store.config_set("maxmemory", 1)
    await crowd.sees("unavailable", 10)
    store.config_set("maxmemory", 0)
    await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "unavailable")


async def test_a_read_only_replica_does_not_sell_and_sells_again_as_a_primary(
    start_server: StartServer, store: "redis.Redis", gather_crowd: GatherCrowd
) -> None:
    crowd = await gather_crowd(start_server(**SOON), store)
    store.replicaof("127.0.0.1", "1")
    await crowd.sees("unavailable", 10)
    store.replicaof("no", "one")
    await crowd.sees("SUCCESS")
    await crowd.stop()
    crowd.check(store, "unavailable", "UNKNOWN")
