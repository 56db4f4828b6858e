"""The command about attempts as a user meets it: a process of its own, its words, its exit codes."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flashsale.orders.database import Database, database_url
from flashsale.orders.inserting import insert
from flashsale.orders.tables import attempt_recorders, attempts, attempts_dropped

PATIENCE_S = 30.0
AT_MS = 1_900_000_000_123
MANY = 4_500
NEVER = "nothing is recorded unless a server runs with --record-attempts\n"
DROPPED = "12 attempts, of whatever products, were dropped: they are no rows\n"

Result = subprocess.CompletedProcess[str]


def run(*arguments: str | Path) -> Result:
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "DATABASE_URL", "POSTGRES_URL")
    return subprocess.run(
        [sys.executable, "-m", "flashsale", "attempts", *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if not name.startswith(ours)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )


def row(product_id: str, user_id: str | None, outcome: str, **more: Any) -> dict[str, Any]:
    names = ("quantity", "item_id", "request_id", "detail", "version")
    known = {"at": AT_MS, "product_id": product_id, "user_id": user_id, "kind": "purchase", "outcome": outcome}
    return known | dict.fromkeys(names) | more


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """A home directory whose database has attempts."""
    rows = [
        row("p", "ann", "SUCCESS", quantity=2, item_id=7, version=3),
        row("p", "b\x1b[31m", "ERROR", quantity=1, detail="no\x1bway"),
        row("p", None, "EXPIRED", kind="confirm"),
        row("q", "ann", "SOLD_OUT", quantity=1),
        *(row("many", f"u{number}", "SOLD_OUT", quantity=1) for number in range(MANY)),
    ]
    dropped = [
        {"at": AT_MS, "attempt_count": count, "reason": reason} for count, reason in ((5, "full"), (7, "killed"))
    ]

    async def fill() -> None:
        database = Database(database_url(None, module_home))
        await database.upgrade()
        async with database.writing() as connection:
            await insert(connection, attempts, rows)
            await insert(connection, attempts_dropped, dropped)
            await insert(connection, attempt_recorders, [{"name": "r", "settled": len(rows) + 12}])
        await database.close()

    asyncio.run(fill())
    return module_home


def test_attempts_of_a_product_are_lines_and_no_name_can_play_tricks(home: Path) -> None:
    result = run("p", "--home", home)
    assert (result.returncode, result.stderr) == (0, DROPPED)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["===", "Attempts", "of", "p", "(3", "total)", "==="],
        ["time", "outcome", "kind", "units", "item", "version", "user"],
        ["2030-03-17T17:46:40.123Z", "SUCCESS", "purchase", "2", "7", "3", "ann"],
        ["2030-03-17T17:46:40.123Z", "ERROR", "purchase", "1", "-", "-", "b\\x1b[31m", "(no\\x1bway)"],
        ["2030-03-17T17:46:40.123Z", "EXPIRED", "confirm", "-", "-", "-", "-"],
    ]


def test_those_of_a_user_or_with_an_outcome_alone(home: Path) -> None:
    for flags, count in (
        (["--user", "ann"], 1),
        (["--outcome", "error"], 1),
        (["--user", "ann", "--outcome", "ERROR"], 0),
    ):
        assert run("p", *flags, "--home", home).stdout.startswith(f"=== Attempts of p ({count} total) ===\n")
    wrong = run("p", "--outcome", "WON", "--home", home)
    assert wrong.returncode == 2
    assert "'WON' is not one of" in wrong.stderr


def test_counts_are_a_small_table(home: Path) -> None:
    assert run("many", "--counts", "--home", home).stdout == (
        f"=== Attempts of many ({MANY} total) ===\noutcome   attempts\nSOLD_OUT      {MANY}\n"
    )
    assert json.loads(run("p", "--counts", "--json", "--home", home).stdout) == {
        "dropped": 12,
        "counts": {"ERROR": 1, "EXPIRED": 1, "SUCCESS": 1},
    }


def test_as_json_all_pages_are_one_object(home: Path) -> None:
    result = run("many", "--json", "--home", home)
    assert result.stderr == DROPPED
    found = json.loads(result.stdout)
    assert found["dropped"] == 12
    assert [found["user_id"] for found in found["attempts"]] == [f"u{number}" for number in range(MANY)]


def test_where_no_server_ever_recorded_it_says_so(tmp_path: Path) -> None:
    result = run("p", "--home", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "=== Attempts of p (0 total) ===\n", NEVER)


def test_a_database_that_cannot_be_had_is_one_sentence() -> None:
    result = run("p", "--database", "oracle://h/x")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
