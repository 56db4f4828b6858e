"""The table of faults: each breaks something under the crowd, and mends what nobody else would."""

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg

from flashsale.crash import VARIABLE
from flashsale.domain.answers import Success
from flashsale.domain.requests import Purchase
from flashsale.store.admin import Admin
from tests.faults.run import Fault, Needs, Run
from tests.faults.scene import KILLED, PATIENCE_S, children_of, now, until

SERVER_LABELS = ("after-read", "after-script", "before-reply")
MOVER_LABELS = ("after-fetch", "before-commit", "after-commit", "after-note")


# The servers


async def kill_servers(run: Run) -> int:
    """F1: now this one, now that one."""
    for number in run.chance.sample([0, 1], 2):
        await asyncio.to_thread(run.scene.kill, number)
        await asyncio.sleep(run.chance.uniform(0, 0.3))
        since = now()
        await asyncio.to_thread(run.scene.start, number)
        await run.sells()
    return since


async def crash_server(run: Run) -> int:
    """F2: at each step of a batch; its supervisor starts it again, to die there again."""
    for label in SERVER_LABELS:
        await asyncio.to_thread(run.scene.crash, label, 2 if run.long else 1, at=run.chance.randint(1, 40))
    since = now()
    await asyncio.to_thread(run.scene.restart)
    return since


async def crash_mover(run: Run) -> int:
    """F2: at each step of moving."""
    for label in MOVER_LABELS if run.long else run.chance.sample(MOVER_LABELS, 3):
        await asyncio.to_thread(run.scene.crash, label, 2 if run.long else 1, at=run.chance.randint(1, 3))
    since = now()
    await asyncio.to_thread(run.scene.restart)
    return since


async def stop_server(run: Run) -> int:
    """F3: as a debugger would."""
    for seconds in (1, 5, 30) if run.long else (1,):
        server = run.chance.choice(run.scene.servers)
        pids = [server.pid, *children_of(server.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        since = now()
        await run.sells()
    return since


# The store


async def kill_store(run: Run) -> int:
    """F4: the servers start it again."""
    for _ in range(5 if run.long else 1):
        await run.sells()
        await asyncio.sleep(run.chance.uniform(0, 0.1))
        since = now()
        os.kill(run.scene.store_pid(), signal.SIGKILL)
    return since


async def kill_store_with_slow_disk(run: Run) -> int:
    """F5: while everybody waits for an fsync."""
    tracer = await asyncio.to_thread(run.scene.slow_disk, "delay_enter=200000")
    await asyncio.sleep(1)
    since = now()
    os.kill(run.scene.store_pid(), signal.SIGKILL)
    await asyncio.to_thread(tracer.wait)
    return since


async def kill_store_that_is_behind(run: Run) -> int:
    """F5 where the store answers without waiting: while what it has answered is not even written."""
    tracer = await asyncio.to_thread(run.scene.slow_disk, "delay_enter=3000000")
    await asyncio.to_thread(
        until, lambda: run.scene.store.info()["aof_buffer_length"] > 10_000, "a store that is behind"
    )
    since = now()
    os.kill(run.scene.store_pid(), signal.SIGKILL)
    await asyncio.to_thread(tracer.wait)
    return since


async def fail_fsync(run: Run) -> int:
    """F6: the store exits rather than answer."""
    pid = run.scene.store_pid()
    since = now()
    tracer = await asyncio.to_thread(run.scene.slow_disk, "error=EIO")
    await asyncio.to_thread(tracer.wait)  # with the store
    await asyncio.to_thread(until, lambda: not lives(pid), "the store's end: what it answers after that may be lost")
    return since


async def fill_disk(run: Run) -> int:
    """F7: the store has no place for another byte, and then it has again."""
    filler = run.scene.home / "filler"
    await asyncio.to_thread(fill, filler)
    await run.in_vain(20)
    filler.unlink()
    return now()


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(65_536))
            except OSError:
                return


async def stall_store(run: Run) -> int:
    """F8: it says nothing for longer than the servers wait; what was asked meanwhile is decided once at most."""
    pid = run.scene.store_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(3 if run.long else 2.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    if run.long:
        run.scene.store.client_pause(3_000)
        await asyncio.sleep(3)
    return now()


async def flush_scripts(run: Run) -> int:
    """F9: at 10 Hz."""
    for _ in range(30 if run.long else 8):
        run.scene.store.script_flush()
        await asyncio.sleep(0.1)
    run.scene.store.script_flush()
    return now()


async def delete_stock(run: Run) -> int:
    """F10: a stock that is not there is not a stock of none; an operator puts it back."""
    key = f"product:{run.sales[0].product_id}:stock"
    stock = run.scene.store.getdel(key)
    await run.in_vain(20, run.sales[0].product_id)
    run.scene.store.set(key, stock)
    return now()


async def fill_memory(run: Run) -> int:
    """F11: nothing can be written, until there is memory again."""
    run.scene.store.config_set("maxmemory", 1)
    await run.in_vain(20)
    run.scene.store.config_set("maxmemory", 0)
    return now()


async def plant_types(run: Run) -> int:
    """F12: keys that are not what they should be."""
    parts = ["stock", "buyers", "users", "requests"]
    for part in parts if run.long else run.chance.sample(parts, 2):
        name = f"product:{run.sales[0].product_id}:{part}"
        await asyncio.to_thread(until, lambda name=name: run.scene.store.exists(name), f"the key {name}")
        with run.scene.store.pipeline(transaction=True) as plant:
            plant.rename(name, "aside")
            plant.set(name, "many")
            plant.execute()
        await run.in_vain(5, run.sales[0].product_id)
        run.scene.store.rename("aside", name)
        await run.sells(5)
    return now()


async def cut_connections(run: Run) -> int:
    """F13: of all clients, again and again."""
    for turn in range(30 if run.long else 8):
        kind = "pubsub" if turn % 4 == 3 else "normal"
        run.scene.store.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await asyncio.sleep(0.1)
    return now()


# The database: selling goes on meanwhile


async def kill_database(run: Run) -> int:
    """F19."""
    sql = run.scene.sql
    assert sql is not None
    await asyncio.to_thread(sql.kill)
    await run.sells(50)
    since = now()
    await asyncio.to_thread(sql.start)
    return since


async def kill_database_that_all_wait_for(run: Run) -> int:
    """F19 where nothing is told before it is a row."""
    sql = run.scene.sql
    assert sql is not None
    await asyncio.to_thread(sql.kill)
    await run.in_vain(40)
    since = now()
    await asyncio.to_thread(sql.start)
    return since


async def stop_database(run: Run) -> int:
    """F20: all its processes."""
    sql = run.scene.sql
    assert sql is not None
    pids = [sql.pid, *children_of(sql.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await run.sells(50)
        await asyncio.sleep(30 if run.long else 0.5)
        await run.sells(50)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return now()


async def lock_file(run: Run) -> int:
    """F20: somebody writes, and takes his time."""
    with closing(sqlite3.connect(run.scene.database_url.removeprefix("sqlite:///"), timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        await run.sells(50)
        await asyncio.sleep(5 if run.long else 0.5)
        connection.rollback()
    return now()


async def lock_tables(run: Run) -> int:
    """F20: the same, and then somebody who locks rows in another order than the mover."""
    connection = await asyncpg.connect(run.scene.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
            await run.sells(50)
            await asyncio.sleep(5 if run.long else 0.5)
        first, second = sorted(sale.product_id for sale in run.sales[:2])
        row = "SELECT 1 FROM products WHERE product_id = $1 FOR UPDATE"
        try:
            async with asyncio.timeout(10), connection.transaction():
                await connection.execute(row, second)
                await run.sells(20)  # of both, most likely: the mover has the first and waits for the second
                await connection.execute(row, first)
        except asyncpg.DeadlockDetectedError:
            pass  # or the mover is the one who has to try again
    finally:
        await connection.close()
    return now()


# The movers


async def crash_two_movers(run: Run) -> int:
    """F21: both die behind their commits, before they could note them."""
    scene = run.scene
    await asyncio.to_thread(scene.crash, "after-commit", 1, at=2)
    before = scene.told(0, KILLED)
    for _ in range(4 if run.long else 2):
        worker = await asyncio.to_thread(scene.start_worker, **{VARIABLE: "after-commit:2"})
        assert await asyncio.to_thread(worker.wait, PATIENCE_S) == -signal.SIGKILL
    await asyncio.to_thread(until, lambda: scene.told(0, KILLED) > before, "the other mover's death")
    since = now()
    await asyncio.to_thread(scene.restart)
    return since


async def trim_ledger(run: Run) -> int:
    """F22: of a sale of its own, as nothing can be right with it any more: it is said, and not passed over."""
    scene, product_id = run.scene, f"{run.sales[0].product_id}-trimmed"
    os.kill(scene.mover, signal.SIGSTOP)
    try:
        async with Admin(scene.url) as admin:
            await admin.init(product_id, 100)
        for number in range(8):
            assert isinstance(await run.ask(scene.ports[1], Purchase(product_id, f"u{number}")), Success)
        scene.store.xtrim(f"product:{product_id}:orders", maxlen=3, approximate=False)
    finally:
        os.kill(scene.mover, signal.SIGCONT)
    gap = f"the ledger of product '{product_id}' goes on with version 7, the tables hold what came up to version 0"
    await asyncio.to_thread(until, lambda: scene.told(0, gap) > 0, "nobody says that changes are missing")
    return now()


FAULTS = [
    Fault(
        "F1", "kill -9 of a server", "the other serves; the same answers", kill_servers, 2,
        also="faults/test_faults.py::test_kill_9_of_the_server_loses_nothing",
    ),
    Fault("F2 server", "killed at each step of a batch", "one effect, one row", crash_server, 2),
    Fault("F2 mover", "killed at each step of moving", "one row", crash_mover, 2),
    Fault("F3", "a server stops", "unknown for its clients", stop_server, 2),
    Fault(
        "F4", "kill -9 of the store", "nothing lost", kill_store, 5,
        also="faults/test_faults.py::test_kill_9_of_the_store_loses_nothing_and_it_comes_back_by_itself",
    ),
    Fault(
        "F5", "kill -9 of the store on a slow disk", "nothing lost", kill_store_with_slow_disk, 5,
        also="faults/test_fsync.py::test_a_sale_is_confirmed_after_its_fsync_and_nothing_else_waits_for_one",
    ),
    Fault("F6", "an fsync fails", "fails closed, comes back", fail_fsync, 5),
    Fault("F7", "the disk is full", "fails closed, comes back", fill_disk, 5, needs=Needs.SMALL_DISK),
    Fault(
        "F8", "the store stalls", "unknown at the deadline", stall_store, 5,
        also="faults/test_faults.py::test_a_store_that_stops_is_answered_for_within_the_deadline_and_resumes",
    ),
    Fault(
        "F9", "scripts flushed at 10 Hz", "seen by nobody", flush_scripts, 1, quiet=True,
        also="faults/test_faults.py::test_lost_scripts_are_seen_by_nobody",
    ),
    Fault(
        "F10", "a stock is deleted", "unavailable, never sold out", delete_stock, 1,
        also="faults/test_faults.py::test_a_sale_whose_stock_vanishes_is_unavailable_and_never_sold_out",
    ),
    Fault(
        "F11", "the store has no memory", "unavailable, nothing by halves", fill_memory, 1,
        also="faults/test_faults.py::test_a_store_without_memory_sells_nothing_by_halves_and_recovers",
    ),
    Fault(
        "F12", "keys of a wrong type", "unavailable", plant_types, 1,
        also="faults/test_faults.py::test_keys_that_are_not_what_they_should_be_stop_the_sale_and_change_nothing",
    ),
    Fault(
        "F13", "connections to the store cut", "seen by nobody", cut_connections, 1, quiet=True,
        also="e2e/test_subscribe.py::test_the_servers_own_links_to_the_store_may_break",
    ),
    Fault(
        "F19", "kill -9 of the database", "selling goes on", kill_database, 5, needs=Needs.DATABASE,
        also="orders/test_mover.py::test_the_database_goes_and_comes_back_and_the_rows_are_complete",
    ),
    Fault("F20 stopped", "the database stops", "selling goes on", stop_database, 5, needs=Needs.DATABASE),
    Fault(
        "F20 locked", "tables locked, rows dead-locked", "selling goes on", lock_tables, 5, needs=Needs.POSTGRESQL,
        also="orders/test_mover.py::test_a_database_that_is_locked_for_a_while_is_waited_for",
    ),
    Fault("F20 file", "the file is locked", "selling goes on", lock_file, 5, needs=Needs.FILE),
    Fault(
        "F21", "two movers killed behind their commits", "one row", crash_two_movers, 2,
        also="e2e/test_orders.py::test_two_workers_beside_servers_that_move_nothing_make_one_row_of_each_order",
    ),
    Fault(
        "F22", "a ledger trimmed before it was moved", "a gap is told", trim_ledger, 1,
        also="orders/test_mover.py::test_a_gap_in_a_ledger_blocks_only_its_own_product",
    ),
]  # fmt: skip
_STRICT = {"F2 mover", "F4", "F21"}
STRICT_FAULTS = [
    Fault("F19", "kill -9 of the database", "unavailable", kill_database_that_all_wait_for, 5, needs=Needs.DATABASE),
    *(fault for fault in FAULTS if fault.number in _STRICT),
]
"""Those at servers that tell of nothing before it is in the database."""
