"""The commands about schedules as an operator meets them: their words, their exit codes, their width."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from flashsale.domain.schedules import Due, Schedule, period_begin
from flashsale.orders.database import Database, database_url
from flashsale.orders.tables import products
from flashsale.store.embedded import EmbeddedStore
from tests.command_line import Result, call_here

ADD = ("add", "hourly", "--every", "1h", "--items", "10000", "--limit", "10", "--numbered")
SALE = r"sale_\d{10}_[0-9a-f]{8}"


@pytest.fixture
def home(embedded: EmbeddedStore, module_home: Path) -> Iterator[Path]:
    """The directory of a store of this module's own, which is empty, and runs on between two commands."""
    with client_of(module_home / "store") as store:
        store.flushall()
    return module_home / "store"


def client_of(home: Path) -> "redis.Redis":
    return redis.Redis(unix_socket_path=str(home / "valkey.sock"), decode_responses=True)


def run(home: Path, *arguments: str, command: str = "schedule") -> Result:
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return call_here([command, *arguments, "--home", str(home)], environment | {"TZ": "UTC"})


def said(result: Result) -> list[str]:
    """Return what a command that succeeded prints, which fits a terminal."""
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80, result.stdout
    return lines


def refused(result: Result, code: int) -> str:
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1, "one sentence"
    return result.stderr


def test_a_schedule_is_added_listed_and_removed(home: Path) -> None:
    assert said(run(home, "list")) == ["no schedules"]
    first, terms, now = said(run(home, *ADD))
    assert first == "✓ Schedule 'hourly' added"
    assert terms == "  10000 numbered items every 1h, at most 10 for one user"
    assert re.fullmatch(rf"  now {SALE} until 20\d\d-\d\d-\d\d \d\d:00:00\+00:00, 10000 left", now)
    assert said(run(home, *ADD))[0] == first.replace("added", "is there already")

    head, row = said(run(home, "list"))
    assert head.split() == ["name", "every", "items", "limit", "current", "sale", "left", "next"]
    assert re.fullmatch(rf"hourly +1h +10000 +10  {SALE} +10000  \d\d:00:00", row)
    sale = row.split()[4]
    assert said(run(home, command="products")) == [sale]
    shown = "\n".join(said(run(home, sale, command="status")))
    for line in ("Remaining Stock:   10000", "Limit:             10 units per user", "Numbered:          yes"):
        assert line in shown
    assert re.search(r"Window: +from .*:00:00\+00:00 to .*:00:00\+00:00\nState: +open\nHolds: +15m", shown)

    done, rest = said(run(home, "remove", "hourly"))
    assert done == "✓ Schedule 'hourly' removed"
    assert rest.startswith(f"  {sale} goes on until 20")
    assert said(run(home, "list")) == ["no schedules"]
    assert refused(run(home, "remove", "hourly"), 1) == "Schedule 'hourly' not found\n"
    assert said(run(home, command="products")) == [sale]


def test_other_terms_are_refused_unless_they_are_meant(home: Path) -> None:
    said(run(home, *ADD))
    other = ("add", "hourly", "--every", "30m", "--items", "5", "--hold", "2h", "--keep", "3h")
    assert refused(run(home, *other), 1) == (
        "Schedule 'hourly' has other terms: --replace changes them from its next sale on\n"
    )
    first, terms, now, *rest = said(run(home, *other, "--replace"))
    assert (first, terms, rest) == ("✓ Schedule 'hourly' changed", "  5 units every 30m", [])
    assert now.endswith(", 10000 left"), "the sale that goes on has the terms it began with"
    shown = json.loads(run(home, "list", "--json").stdout)["schedules"]
    assert shown == [
        {
            "name": "hourly",
            "every_s": 1_800,
            "items": 5,
            "limit": None,
            "numbered": False,
            "hold_s": 7_200,
            "hold_max_s": 7_200,
            "keep_s": 10_800,
            "product_id": shown[0]["product_id"],
            "remaining_stock": 10_000,
            "next_begins_at": shown[0]["next_begins_at"],
        }
    ]
    assert shown[0]["next_begins_at"] % 3_600 == 0, "not before that sale is over"
    other = ("add", "hourly", "--every", "168h", "--items", "5", "--replace")
    *_, then = said(run(home, *other))
    assert then.startswith("  then none until 2"), "a longer period may begin long after that sale"


def test_a_sale_that_is_gone_is_told(home: Path) -> None:
    said(run(home, *ADD))
    sale = said(run(home, "list"))[1].split()[4]
    said(run(home, sale, command="reset"))
    assert re.fullmatch(rf"hourly +1h +10000 +10  {sale} +-  \d\d:00:00", said(run(home, "list"))[1])
    assert said(run(home, *ADD))[2].endswith(", cannot be sold")
    with client_of(home) as store:
        store.hset("schedules_opened", "hourly", "somebody else's")
        assert refused(run(home, *ADD), 1).startswith("cannot reach Redis at unix:")
        store.delete("schedules_opened")
        store.hset("schedules", "hourly", "somebody else's")
        assert refused(run(home, *ADD), 1).startswith("Schedule 'hourly' has other terms")
    assert said(run(home, *ADD, "--replace"))[0].startswith("✓ Schedule 'hourly' added")


def test_a_sale_that_the_database_knows_is_not_opened_once_more(home: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'orders.db'}"
    week_s = 168 * 3_600  # a period of this length ends during no test
    with client_of(home) as store:
        due = Due(Schedule(name="weekly", every_s=week_s, item_count=9), period_begin(week_s, int(store.time()[0])))
    sums = {"initial": 9, "restocked": 0, "early": 0, "sold": 8, "held": 0, "opened_at": 0, "changed_at": 1}
    row = {"product_id": due.product_id, "epoch": due.epoch, "version": 9, "state": "open"}

    async def know() -> None:
        database = Database(database_url(url, tmp_path))
        await database.upgrade()
        async with database.writing() as connection:
            await connection.execute(sa.insert(products), [sums | row])
        await database.close()

    asyncio.run(know())
    add = ("add", "weekly", "--every", "168h", "--items", "9", "--database", url)
    first, _, now, hint = said(run(home, *add))
    assert first == "✓ Schedule 'weekly' added"
    assert re.fullmatch(rf"  now {due.product_id} until .*, cannot be sold", now)
    assert hint == f"  the database knows more of it: flashsale recover {due.product_id}"
    with client_of(home) as store:
        assert store.keys(f"product:{due.product_id}:*") == [f"product:{due.product_id}:sale"]
    assert run(home, due.product_id, "--database", url, command="recover").returncode == 0
    assert said(run(home, *add))[2].endswith(", 1 left")


@pytest.mark.parametrize("database", ["postgresql://127.0.0.1:1/shop", "sqlite:///{}/empty.db", "nonsense"])
def test_without_a_database_the_sale_of_the_period_is_opened(home: Path, tmp_path: Path, database: str) -> None:
    result = run(home, *ADD, "--database", database.format(tmp_path))
    assert result.returncode == 0
    assert result.stdout.splitlines()[2].endswith(", 10000 left")
    assert result.stderr.startswith("The database is left out: ") or database.startswith("sqlite")
    assert result.stderr.count("\n") <= 1


def test_the_table_is_as_wide_as_a_terminal_also_with_the_longest_name(home: Path) -> None:
    said(run(home, "add", "a" * 12, "--every", "90m", "--items", "10000"))
    said(run(home, "add", "b", "--every", "168h", "--items", "99999", "--limit", "5"))
    rows = said(run(home, "list"))
    assert [row.split()[:4] for row in rows[1:]] == [["a" * 12, "90m", "10000", "-"], ["b", "168h", "99999", "5"]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("x", "--every", "90s"), "'90s' is not a period: give whole minutes or hours, such as 5m or 1h, and 168h at"),
        (("x", "--every", "1d"), "'1d' is not a period"),
        (("x", "--every", "0h"), "'0h' is not a period"),
        (("x", "--every", "1.5h"), "'1.5h' is not a period"),
        (("x", "--every", "-1h"), "'-1h' is not a period"),
        (("x", "--every", "169h"), "'169h' is not a period"),
        (("a/b", "--every", "1h"), "'a/b' is not a schedule's name: give 1 to 12 letters"),
        (("x", "--every", "1h", "--items", "0"), "'0' is not a number of units"),
        (("x", "--every", "1h", "--items", "10000001", "--numbered"), "at most 10000000 units can be numbered"),
        (("x", "--every", "1h", "--keep", "59m"), "a sale is kept from 1h, when its last hold ends, to 366d after its"),
        (("x", "--every", "1h", "--keep", "367d"), "a sale is kept from 1h"),
        (("x", "--every", "1h", "--hold", "31d"), "a hold lasts from 1s to 30d"),
        (("x",), "Missing option '--every'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(home: Path, arguments: tuple[str, ...], sentence: str) -> None:
    items = () if "--items" in arguments else ("--items", "5")
    line = refused(run(home, "add", *arguments, *items), 2)
    assert sentence in line
    assert line.endswith("(see 'flashsale schedule add --help')\n")
    assert said(run(home, "list")) == ["no schedules"]
