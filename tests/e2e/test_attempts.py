"""What a crowd was told is what stands in the database, or it is counted there as dropped; nothing is there twice."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from flashsale.domain.attempts import KINDS
from flashsale.domain.sale import Terms
from flashsale.errors import DatabaseError
from flashsale.launch import ServerProcess
from flashsale.orders.database import Database, database_url
from flashsale.store.admin import Admin
from tests.history.crowd import Crowd, Habits
from tests.history.record import Call, Sale, compare_clocks
from tests.orders import plain

PURCHASE = 1
PATIENCE_S = 30.0
END_S = 10.0
FILE = "orders.db"
StartServer = Callable[..., ServerProcess]
Until = Callable[..., None]
Connect = Callable[..., Any]
Children = Callable[[int], list[int]]
_NAMES = dict(KINDS)


def run(*arguments: str | Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flashsale", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)


def told(call: Call) -> tuple[Any, ...]:
    """Return what a row must say of a call."""
    request, answer = call.request, call.answer
    product_id = request.product_id
    status = type(answer).__struct_config__.tag
    detail = getattr(answer, "error", None) or ("duplicate" if getattr(answer, "duplicate", False) else None)
    item_id = getattr(answer, "item_id", None) or getattr(request, "item_id", None)
    rest = getattr(request, "quantity", None), item_id, getattr(request, "request_id", None)
    return (
        product_id,
        request.user_id or None,
        _NAMES[type(request)],
        *rest,
        status,
        detail,
        getattr(answer, "version", None) or None,
    )


def recorded(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("product_id", "user_id", "kind", "quantity", "item_id", "request_id", "outcome", "detail", "version")
    return tuple(row[name] for name in names)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, home: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{home / FILE}"
    made: str = request.getfixturevalue("postgres").make_database()
    return made


async def test_the_rows_are_what_a_crowd_was_told(
    start_server: StartServer,
    home: Path,
    url: str,
    environment: dict[str, str],
    children: Children,
    lives: Callable[[int], bool],
) -> None:
    flags = ("--record-attempts", "--orders", "--workers", "2", "--database", url)
    server = await asyncio.to_thread(start_server, *flags)
    processes = children(server.pid)
    async with (
        Redis.from_url(f"unix://{home / 'valkey.sock'}") as client,
        Admin(f"unix://{home / 'valkey.sock'}") as admin,
    ):
        clock_ms = await compare_clocks(client)
        sales = [
            Sale("crowd", 60, Terms(limit=6, hold_s=1, hold_total_s=2)),
            Sale("seats", 200, Terms(limit=20, hold_s=1, hold_total_s=2, numbered=True)),
        ]
        for sale in sales:
            await admin.init(sale.product_id, sale.stock, sale.terms)
        habits = Habits(clients=40, seconds=1.5, calls_min=1_000, calls_max=3_000, pause_max_s=0.1, cuts=0)
        crowd = Crowd([server.port], sales, lambda: time.monotonic() * 1e3 + clock_ms, seed=1, habits=habits)
        await crowd.run()
    database = Database(database_url(url, home))
    async with asyncio.timeout(PATIENCE_S):
        while not await first_rows(database):  # noqa: ASYNC110 - the recorder is nice: it comes when others rest
            await asyncio.sleep(0.1)
    began = time.monotonic()
    assert await asyncio.to_thread(server.stop) == 0  # at once: the last attempts are still on their way
    assert time.monotonic() - began < END_S
    assert not any(map(lives, processes))
    calls = [call for call in crowd.recorder.calls if type(call.request) in _NAMES]
    assert all(call.answer is not None for call in calls)
    outcomes = Counter(type(call.answer).__struct_config__.tag for call in calls)
    assert outcomes.keys() >= {"SUCCESS", "HELD", "CANCELLED", "SOLD_OUT", "ITEM_TAKEN", "MISMATCH", "ERROR"}
    rows = await plain.read_attempts(database)
    dropped = await plain.read_dropped(database)
    await database.close()
    missing = Counter(map(told, calls)) - Counter(map(recorded, rows))
    assert not Counter(map(recorded, rows)) - Counter(map(told, calls))
    unrecorded_count, uncertain_count = logged_counts(home)
    assert 0 <= missing.total() - sum(dropped.values()) - unrecorded_count <= uncertain_count
    counted = await asyncio.to_thread(
        run, "attempts", "crowd", "--counts", "--json", "--database", url, environment=environment
    )
    of_crowd = Counter(row["outcome"] for row in rows if row["product_id"] == "crowd")
    assert json.loads(counted.stdout) == {"dropped": sum(dropped.values()), "counts": dict(of_crowd)}


async def first_rows(database: Database) -> list[dict[str, Any]]:
    try:
        return await plain.read_attempts(database)
    except DatabaseError:  # there is no table yet
        return []


def logged_counts(home: Path) -> tuple[int, int]:
    """Return of how many attempts the log says that they are not recorded, and that they may not be.

    Both are 0 unless the recorder had no processor to the end; it says nothing else that is wrong.
    """
    counts: Counter[str] = Counter()
    for line in re.findall(r".*(?:ERROR|Traceback).*", (home / "server.log").read_text()):
        found = re.search(r"ERROR (\d+) attempts (are|may) not", line)
        assert found, line
        counts[found[2]] += int(found[1])
    return counts["are"], counts["may"]


def ask_many(connection: Any, count: int, first: int = 0, name: str = "u") -> Counter[str]:
    """Buy for so many users, some hundred at once; return how often what was told."""
    outcomes: Counter[str] = Counter()
    for begin in range(first, first + count, 500):
        some = range(begin, min(begin + 500, first + count))
        frames = [connection.frame(PURCHASE, {"product_id": "p", "user_id": f"{name}{number}"}) for number in some]
        connection.send_meanwhile(b"".join(frames))
        outcomes.update(json.loads(connection.receive_raw()[1])["status"] for _ in some)
    return outcomes


def read(home: Path) -> tuple[list[str], dict[str, int]]:
    """Return the users of the attempts in the file, in order, and how many were dropped why."""
    with closing(sqlite3.connect(f"file:{home / FILE}?mode=ro", uri=True)) as file:
        users = [user for (user,) in file.execute("SELECT user_id FROM attempts ORDER BY id")]
        dropped = file.execute("SELECT reason, sum(attempt_count) FROM attempts_dropped GROUP BY reason")
        return users, dict(dropped.fetchall())


def settled_count(home: Path) -> int:
    try:
        users, dropped = read(home)
    except sqlite3.OperationalError:  # there is no table yet
        return 0
    return len(users) + sum(dropped.values())


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Have nobody else write into the database."""
    with closing(sqlite3.connect(home / FILE, timeout=PATIENCE_S, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.faults
def test_a_recorder_that_is_killed_is_replaced_and_what_it_had_is_counted(
    start_server: StartServer,
    connect: Connect,
    until: Until,
    home: Path,
    environment: dict[str, str],
    children: Children,
) -> None:
    server = start_server("--record-attempts")
    run("init", "p", "1000", "--home", home, environment=environment)
    until(lambda: len(children(server.pid)) == 2)
    with connect(server.port) as client:
        assert ask_many(client, 1_000) == {"SUCCESS": 1_000}
        until(lambda: settled_count(home) == 1_000)
        with locked(home):  # the recorder has some in its hands
            assert ask_many(client, 4_000, first=1_000) == {"SOLD_OUT": 4_000}
            recorder = max(children(server.pid))  # it is started last
            os.kill(recorder, signal.SIGKILL)
            until(lambda: len(children(server.pid)) == 2 and recorder not in children(server.pid))
        assert ask_many(client, 1_000, first=5_000) == {"SOLD_OUT": 1_000}
        until(lambda: settled_count(home) >= 6_000)
    assert server.stop() == 0
    users, dropped = read(home)
    assert len(users) + sum(dropped.values()) == 6_000
    assert len(set(users)) == len(users)
    assert dropped.keys() <= {"killed"}
    assert {f"u{number}" for number in (*range(1_000), *range(5_000, 6_000))} <= set(users)


@pytest.mark.faults
def test_while_the_database_is_locked_selling_goes_on_and_what_there_is_no_room_for_is_counted(
    start_server: StartServer, connect: Connect, until: Until, home: Path, environment: dict[str, str]
) -> None:
    server = start_server("--record-attempts", FLASHSALE_ATTEMPTS_SIZE_MAX="65536")
    run("init", "p", "1000", "--home", home, environment=environment)
    until((home / FILE).exists)
    with connect(server.port) as client:
        ask_many(client, 100)
        until(lambda: settled_count(home) == 100)
        with locked(home):
            ask_many(client, 8_900, first=100, name="u" * 200)  # fewer of them fit into the pipe
        until(lambda: settled_count(home) >= 9_000)
    assert server.stop() == 0
    users, dropped = read(home)
    assert dropped.keys() == {"full"}
    assert 0 < len(users) == len(set(users)) == 9_000 - dropped["full"]
    table = run("attempts", "p", "--counts", "--home", home, environment=environment)
    assert table.stdout.startswith(f"=== Attempts of p ({len(users)} total) ===\n")
    assert table.stderr == f"{dropped['full']} attempts, of whatever products, were dropped: they are no rows\n"
