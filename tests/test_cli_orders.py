"""The commands about orders as a user meets them: their words, their exit codes.

Most run in this process: the entry point does the same there, and importing the database library anew takes longest.
"""

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from flashsale.domain.sale import Change, Kind, Portion
from flashsale.orders.database import Database, database_url
from flashsale.orders.moving import bury, move
from flashsale.store.embedded import EmbeddedStore
from tests.command_line import Result, call_here

PATIENCE_S = 30.0
AT_MS = 1_900_000_000_123
EPOCH = "0000000a"
MANY = 3_000
COLUMNS = (
    "order_id,product_id,epoch,version,user_id,quantity,item_id,request_id,hold_version,status,created_at,refunded_at,"
    "refund_version,remaining"
)


def environment(**more: str) -> dict[str, str]:
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "DATABASE_URL", "POSTGRES_URL", "DB_", "_FLASHSALE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def run(*arguments: str | Path, **settings: str) -> Result:
    return call_here([str(argument) for argument in arguments], environment(**settings))


def said(result: Result) -> str:
    """Return what a command that succeeded printed."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, code: int = 1) -> str:
    """Return the one line on stderr with which a command failed."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.rstrip("\n")


def sale(product_id: str, *users: str) -> Portion:
    """A sale in which these have bought, the last of them twice and once refunded."""
    units = len(users) + 2
    changes = [Change(kind=Kind.OPENED, version=1, at_ms=AT_MS, remaining=units, quantity=units)]
    for number, user in enumerate([*users, users[-1]], start=2):
        changes.append(
            Change(kind=Kind.SOLD, version=number, at_ms=AT_MS + number, remaining=0, user_id=user, quantity=1)
        )
    last = changes[-1].version
    changes.append(
        Change(
            kind=Kind.REFUNDED,
            version=last + 1,
            at_ms=AT_MS + last,
            remaining=0,
            user_id=users[-1],
            quantity=1,
            ref=last,
        )
    )
    return Portion(product_id, EPOCH, changes)


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """A home directory whose database has orders."""

    async def fill() -> None:
        database = Database(database_url(None, module_home))
        await database.upgrade()
        async with database.writing() as connection:
            portions = [sale("p", "a", "b=\x1b[31m,\"'", "ü"), sale("dead", "d"), sale("many", *["m"] * MANY)]
            await move(connection, portions)
            poison = Change(
                kind=Kind.SOLD, version=7, at_ms=AT_MS, remaining=0, user_id="x\x1b\0", quantity=1, request_id="r"
            )
            await bury(connection, Portion("p", EPOCH, [poison]), "too\x1blong")
        await database.close()

    asyncio.run(fill())
    return module_home


# orders


def test_orders_is_a_command_of_its_own(home: Path) -> None:
    command = [sys.executable, "-m", "flashsale", "orders", "p", "--home", str(home)]
    done = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", check=True)
    assert (done.stdout, done.stderr) == (said(run("orders", "p", "--home", home)), "")


def test_orders_lists_those_of_all_products_by_time(home: Path) -> None:
    lines = said(run("orders", "--home", home)).splitlines()
    assert lines[0] == f"=== Orders ({4 + 2 + MANY + 1} total) ==="
    assert lines[1].split() == ["time", "status", "units", "item", "user", "order"]
    times = [line.split()[0] for line in lines[2:]]
    assert times == sorted(times)


def test_each_order_of_a_product_is_a_line_and_no_name_can_play_tricks(home: Path) -> None:
    lines = said(run("orders", "p", "--home", home)).splitlines()
    assert lines[0] == "=== Orders of p (4 total) ==="
    assert lines[2].split() == [
        "2030-03-17T17:46:40.125Z",
        "confirmed",
        "1",
        "-",
        "a",
        "1ba60d3387d-0000000002-0000000a-p",
    ]
    assert [line.split()[1] for line in lines[2:]] == ["confirmed", "confirmed", "confirmed", "refunded"]
    assert "\x1b" not in "".join(lines)


def test_orders_of_a_user_are_his_alone(home: Path) -> None:
    assert said(run("orders", "--user", "d", "--home", home)).startswith("=== Orders (2 total) ===")
    assert said(run("orders", "p", "--user", "d", "--home", home)) == "=== Orders of p (0 total) ===\n"
    assert said(run("orders", "nothing", "--home", home)) == "=== Orders of nothing (0 total) ===\n"


def test_orders_as_json_are_the_rows(home: Path) -> None:
    rows = json.loads(said(run("orders", "p", "--json", "--home", home)))
    assert [row["user_id"] for row in rows] == ["a", "b=\x1b[31m,\"'", "ü", "ü"]
    assert list(rows[0]) == COLUMNS.split(",")
    assert rows[3]["refunded_at"] == "2030-03-17T17:46:40.128Z"
    assert json.loads(said(run("orders", "nothing", "--json", "--home", home))) == []


def test_a_product_may_be_named_like_a_command(home: Path) -> None:
    assert said(run("orders", "list", "dead", "--home", home)).startswith("=== Orders of dead (2 total) ===")
    assert said(run("orders", "--home", home, "dead")).startswith("=== Orders of dead (2 total) ===")


# export


def test_an_export_as_csv_reads_back_as_it_was(home: Path) -> None:
    text = said(run("export", "p", "--csv", "--home", home))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == COLUMNS
    assert [row["user_id"] for row in rows] == ["a", "b=\x1b[31m,\"'", "ü", "ü"]
    assert rows[0] == {
        "order_id": "1ba60d3387d-0000000002-0000000a-p",
        "product_id": "p",
        "epoch": EPOCH,
        "version": "2",
        "user_id": "a",
        "quantity": "1",
        "item_id": "",
        "request_id": "",
        "hold_version": "",
        "status": "confirmed",
        "created_at": "2030-03-17T17:46:40.125Z",
        "refunded_at": "",
        "refund_version": "",
        "remaining": "0",
    }


def test_an_export_of_more_than_a_page_is_whole_and_in_order(home: Path) -> None:
    lines = said(run("export", "many", "--jsonl", "--home", home)).splitlines()
    assert [json.loads(line)["version"] for line in lines] == list(range(2, MANY + 3))


@pytest.mark.parametrize("form", ["--csv", "--jsonl"])
def test_an_export_may_be_cut_short_by_its_reader(home: Path, form: str) -> None:
    command = f"{sys.executable} -m flashsale export many {form} --home {home} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_an_export_wants_to_know_how(home: Path) -> None:
    for forms in [], ["--csv", "--jsonl"]:
        result = run("export", "p", *forms, "--home", home)
        assert result.returncode == 2
        assert "say how: --csv or --jsonl" in result.stderr


# Dead letters


def test_dead_lists_what_the_database_did_not_take_and_retry_writes_it(home: Path) -> None:
    text = said(run("orders", "dead", "--home", home))
    assert text.startswith("=== Dead letters (1 total) ===\n1: version 7 of p, 2030-03-17T17:46:40.123Z\n")
    assert "too\\x1blong" in text
    assert "\x1b" not in text
    [row] = json.loads(said(run("orders", "dead", "--json", "--home", home)))
    assert (row["version"], row["error"], json.loads(row["entry"])["user_id"]) == (7, "too\x1blong", "x\x1b\0")
    assert refused(run("orders", "retry", "2", "--home", home)) == "There is no dead letter 2"
    assert said(run("orders", "retry", "1", "--home", home)) == "✓ Dead letter 1 is in the database\n"
    assert refused(run("orders", "retry", "1", "--home", home)) == "There is no dead letter 1"
    assert said(run("orders", "dead", "--home", home)) == "=== Dead letters (0 total) ===\n"
    assert json.loads(said(run("orders", "--user", "x\x1b", "--json", "--home", home))) == []


# The database


def test_upgrade_makes_the_tables_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'orders.db'}"
    assert said(run("db", "upgrade", "--database", url)).startswith("✓ 0001 ")
    assert said(run("db", "upgrade", "--database", url)) == "✓ The tables are up to date\n"
    assert said(run("db", "upgrade", DATABASE_URL=url)) == "✓ The tables are up to date\n"


@pytest.mark.parametrize(
    ("url", "told", "code"),
    [
        ("nonsense", "the database URL is none: give one such as postgresql://user:password@host/name", 2),
        ("postgresql://u:hidden@h:port/x", "the database URL is none: give one such as", 2),
        ("oracle://u:hidden@h/x", "'oracle' is no database that is known here: give one of sqlite, postgres", 2),
        ("postgresql://u:hidden@127.0.0.1:1/x", "cannot reach the database at postgresql://u:***@127.0.0.1:1/x: ", 1),
        ("mysql://u:hidden@127.0.0.1:1/x", "the database at mysql://u:***@127.0.0.1:1/x", 1),
        ("sqlite:////nowhere/at/all/x.db", "there is no directory /nowhere/at/all for the database", 2),
    ],
)
def test_a_database_that_cannot_be_had_is_one_sentence(url: str, told: str, code: int) -> None:
    for command in (["orders"], ["db", "upgrade"]):
        sentence = refused(run(*command, "--database", url), code)
        assert told in sentence
        assert "hidden" not in sentence


# The worker


@pytest.fixture
def store(home: Path) -> Iterator["redis.Redis"]:
    held = EmbeddedStore(home)
    held.acquire()
    with redis.Redis(unix_socket_path=str(home / "valkey.sock"), decode_responses=True) as client:
        yield client
    held.release()


def test_a_worker_moves_until_it_is_told_to_end(home: Path, store: "redis.Redis", tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'orders.db'}"
    said(run("init", "w", "5", "--home", home))
    said(run("restock", "w", "2", "--home", home))
    command = [sys.executable, "-m", "flashsale", "worker", "--home", str(home), "--database", url]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        assert line == f"Worker started - Redis: unix://{home / 'valkey.sock'} (embedded), database: {url}\n"
        deadline = time.monotonic() + PATIENCE_S
        while store.hget("product:w:sale", "moved") != "2":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=PATIENCE_S)
        assert (worker.returncode, out) == (0, "")


def test_a_worker_whose_database_is_none_says_so_at_once(home: Path) -> None:
    assert "known here" in refused(run("worker", "--home", home, "--database", "oracle://h/x"), 2)
