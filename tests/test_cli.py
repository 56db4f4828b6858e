"""The command line as a user meets it: its words, its exit codes; each command a process, but where many are tried."""

import asyncio
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from flashsale import Client, __version__
from flashsale.domain.answers import Answer, Held, Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
)
from flashsale.launch import ServerProcess
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from tests.command_line import Result, call_here

PATIENCE_S = 30.0
COMMANDS = (
    "serve", "init", "restock", "refund", "pause", "resume", "close", "reset", "status", "buyers", "holds", "products",
    "audit", "schedule", "watch", "demo", "completion",
)  # fmt: skip

Argument = str | bytes


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without the settings of flashsale, plus `more`."""
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "_FLASHSALE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def start(*arguments: Argument, **settings: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flashsale", *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(process: "subprocess.Popen[str]") -> Result:
    with process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return Result(process.args, process.returncode, out, err)


def run(*arguments: Argument, **settings: str) -> Result:
    return finish(start(*arguments, **settings))


def run_all(calls: Sequence[Sequence[Argument]], **settings: str) -> list[Result]:
    """Run many calls, in this process."""
    return [call_here(arguments, environment(**settings)) for arguments in calls]


def said(result: Result) -> str:
    """Return what a command that succeeded printed."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, code: int) -> str:
    """Return the one line on stderr with which a command failed."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.rstrip("\n")


@pytest.fixture(scope="module")
def home(module_home: Path) -> Iterator[Path]:
    """A directory with a running embedded store, held by this process so that commands need not start it."""
    held = EmbeddedStore(module_home)
    held.acquire()
    yield module_home
    held.release()


@pytest.fixture
def empty_home(temporary_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """A directory without a store."""
    with temporary_home() as path:
        yield path


@pytest.fixture(scope="module")
def store(home: Path) -> Iterator["redis.Redis"]:
    with redis.Redis(unix_socket_path=str(home / "valkey.sock"), decode_responses=True) as client:
        yield client


@pytest.fixture
def product() -> str:
    return f"p-{uuid4().hex[:12]}"


@pytest.fixture
def sale(store: "redis.Redis", product: str) -> str:
    """A product of which 58 units are sold and 42 are left."""
    store.set(f"product:{product}:stock", 42)
    store.lpush(f"product:{product}:buyers", *(f"user_{number}_0" for number in range(58)))
    return product


async def decide(home: Path, product: str, *requests: Request) -> list[Answer]:
    """Have requests decided in the store of a home, as one batch."""
    engine = RedisEngine(f"unix://{home}/valkey.sock")
    try:
        [answers] = await engine.commit([Batch(product, requests, 1)], timeout_s=PATIENCE_S)
    finally:
        await engine.close()
    assert isinstance(answers, list), answers
    return answers


async def sell(home: Path, product: str, *users: str) -> list[Answer]:
    return await decide(home, product, *(Purchase(product, user) for user in users))


# The words of the README


def test_an_operators_day_in_the_words_of_the_readme(home: Path, store: "redis.Redis") -> None:
    at = ("--home", str(home))
    assert said(run("init", "iphone15", "100", *at)) == "✓ Product 'iphone15' initialized with 100 units\n"
    assert store.get("product:iphone15:stock") == "100"
    asyncio.run(sell(home, "iphone15", *(f"user_{number}_0" for number in range(58))))
    assert said(run("status", "iphone15", *at)) == (
        "\n=== Product Status: iphone15 ===\n"
        "Remaining Stock:   42\n"
        "Successful Buyers: 58\n"
        "Sold:              58 units\n"
        "Held:              0 units\n"
        "Limit:             none\n"
        "Window:            always\n"
        "State:             open\n"
        "Holds:             15m, extended 1h at most\n"
        "Numbered:          no\n"
    )
    buyers = "".join(f"{number + 1}. user_{number}_0\n" for number in range(58))
    assert said(run("buyers", "iphone15", *at)) == f"=== Buyers for iphone15 (58 total) ===\n{buyers}"
    assert "iphone15\n" in said(run("products", *at))
    assert said(run("reset", "iphone15", *at)) == "✓ Product 'iphone15' reset (deleted)\n"
    assert store.keys("product:iphone15:*") == []
    assert refused(run("status", "iphone15", *at), 1) == "Product 'iphone15' not found"


def test_json_is_pure_and_whole(home: Path, store: "redis.Redis", sale: str) -> None:
    odd = f'{sale}-"é"'
    store.set(f"product:{odd}:stock", 0)
    at = ("--home", str(home), "--json")
    status, buyers, products, none = run_all(
        [("status", sale, *at), ("buyers", sale, *at), ("products", *at), ("buyers", odd, *at)]
    )
    assert json.loads(said(status)) == {
        "product_id": sale,
        "remaining_stock": 42,
        "successful_buyers": 58,
        "sold": 58,
        "held": 0,
        "limit": None,
        "opens_at": None,
        "closes_at": None,
        "hold_s": 900,
        "hold_max_s": 3600,
        "numbered": False,
        "state": "open",
        "version": 0,
    }
    assert json.loads(said(buyers)) == {"product_id": sale, "buyers": [f"user_{n}_0" for n in range(58)]}
    assert {sale, odd} <= set(json.loads(said(products))["products"])
    assert json.loads(said(none)) == {"product_id": odd, "buyers": []}


def test_an_unknown_product_is_not_found(home: Path) -> None:
    calls = [("status", "x"), ("buyers", "x"), ("reset", "x"), ("status", "x", "--json"), ("buyers", "x", "--json")]
    for result in run_all([(*call, "--home", str(home)) for call in calls]):
        assert refused(result, 1) == "Product 'x' not found"


def test_a_product_with_buyers_is_started_anew_only_by_force(home: Path, store: "redis.Redis", sale: str) -> None:
    line = refused(run("init", sale, "7", "--home", str(home)), 1)
    assert "58 buyers" in line
    assert "--force" in line
    assert store.get(f"product:{sale}:stock") == "42"
    assert store.llen(f"product:{sale}:buyers") == 58
    assert said(run("init", sale, "7", "--force", "--home", str(home))) == (
        f"✓ Product '{sale}' initialized with 7 units\n"
    )
    assert store.get(f"product:{sale}:stock") == "7"
    assert store.llen(f"product:{sale}:buyers") == 0


# Wrong usage


def test_what_cannot_be_a_sale_is_refused_with_a_sentence(home: Path, store: "redis.Redis", product: str) -> None:
    wrong: list[tuple[Argument, ...]] = [
        ("init", product, "abc"),
        ("init", product, "-1"),
        ("init", product, str(2**63)),
        ("init", product, "1.5"),
        ("init", product, ""),
        ("init", "", "5"),
        ("init", "a" * 257, "5"),
        ("init", "a\x1b[2J", "5"),
        ("init", b"a\xff", "5"),
        ("status", ""),
    ]
    before = set(store.keys("*"))
    for call, result in zip(wrong, run_all([(*call, "--home", str(home)) for call in wrong]), strict=True):
        line = refused(result, 2)
        assert len(line) > 20, (call, line)
        assert "\x1b" not in line
    assert set(store.keys("*")) == before


def test_what_is_not_a_command_or_an_option_is_wrong_usage(home: Path, empty_home: Path) -> None:
    toml = {name: str(empty_home / f"{name}.toml") for name in ("broken", "unknown", "type", "home")}
    Path(toml["broken"]).write_text("listen = [")
    Path(toml["unknown"]).write_text("lisen = ':8080'\n")
    Path(toml["type"]).write_text("workers = 'many'\n")
    Path(toml["home"]).write_text('home = "a\\u0000b"\n')
    at = ("--home", str(home))
    calls: list[tuple[Argument, ...]] = [
        ("no-such-command",),
        ("--no-such-option",),
        ("status", "--no-such-option", "x", *at),
        ("status", *at),
        ("init", "x", "5", "--no-such-option", *at),
        ("completion", "tcsh"),
        ("status", "x", "--redis", "ftp://x"),
        ("reset", "x", "--redis", ""),
        ("status", "x", "--redis", "a..b:6379"),
        ("status", "x", "--home", ""),
        ("status", "x", "--home", "~no-such-user/x"),
        ("demo", "--home", ""),
        ("serve", "--listen", "a..b:80", *at),
        ("status", "x", *at, "--config", str(empty_home / "missing.toml")),
        *(("status", "x", *at, "--config", toml[name]) for name in ("broken", "unknown", "type")),
        ("status", "x", "--config", toml["home"]),
    ]
    for call, result in zip(calls, run_all(calls), strict=True):
        assert refused(result, 2), call


def test_a_command_imports_no_database(home: Path) -> None:
    """It would take two thirds of the time of each of them."""
    words = f"sys.argv = ['flashsale', 'products', '--home', {str(home)!r}]"
    end = "atexit.register(lambda: print('sqlalchemy' in sys.modules))"
    code = f"import atexit, sys; from flashsale import cli; {words}; {end}; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_help_version_and_completion(home: Path) -> None:
    calls = [("--help",), ("--version",), *((command, "-h") for command in COMMANDS)]
    main, version, *helps = map(said, run_all(calls))
    assert version.strip().endswith(__version__)
    for command, text in zip(COMMANDS, helps, strict=True):
        assert re.search(rf"^  {command} +\S", main, re.MULTILINE), f"{command} is not in the list"
        assert f" {command} " in text.splitlines()[0]
    for script in map(said, run_all([("completion", shell) for shell in ("bash", "zsh", "fish")])):
        assert "_FLASHSALE_COMPLETE" in script
    completed = run(_FLASHSALE_COMPLETE="bash_complete", COMP_WORDS="flashsale st", COMP_CWORD="1")
    assert "status" in completed.stdout
    assert completed.returncode == 0


def test_terms_that_make_no_sale_are_refused_with_a_sentence(home: Path, store: "redis.Redis", product: str) -> None:
    wrong = {
        ("--limit", "0"): "'0' is not a number of units: give a whole number from 1 to 99999999999999",
        ("--limit", "-1"): "not a number of units",
        ("--hold", "0s"): "a hold lasts from 1s to 30d",
        ("--hold", "31d"): "a hold lasts from 1s to 30d",
        ("--hold", "15"): "not a duration",
        ("--hold-max", "10m"): "a hold of 15m cannot end after 10m at the latest",
        ("--opens-at", "+2h", "--closes-at", "+1h"): "would close before it opens",
        ("--closes-at", "2020-01-01T00:00:00Z"): "would be closed already",
        ("--opens-at", "2036-01-01T00:00:00"): "has no time zone",
        ("--opens-at", "soon"): "is not a time",
        ("--opens-at", "+99999999999d"): "after the year 9999",
    }
    calls: list[tuple[str, ...]] = [("init", product, "5", *flags, "--home", str(home)) for flags in wrong]
    calls.append(("init", product, "10000001", "--numbered", "--home", str(home)))
    for result, reason in zip(run_all(calls), [*wrong.values(), "at most 10000000 units"], strict=True):
        assert reason in refused(result, 2)
    assert store.keys(f"product:{product}:*") == []


def test_what_is_no_change_of_a_sale_is_refused_with_a_sentence(home: Path, product: str) -> None:
    order = f"00000000001-0000000002-abcdef01-{product}"
    calls: dict[tuple[str, ...], tuple[int, str]] = {
        ("restock", product, "0"): (2, "from 1 to 99999999999999"),
        ("restock", product, "-5"): (2, "not a number of units"),
        ("restock", product, "5"): (1, f"Product '{product}' not found"),
        ("refund", "x\x1b[2J"): (2, "'x\\x1b[2J' is not an order id"),
        ("refund", order): (1, f"Product '{product}' not found"),
        ("pause", product): (1, f"Product '{product}' not found"),
        ("resume", product): (1, f"Product '{product}' not found"),
        ("close", product, "--json"): (1, f"Product '{product}' not found"),
        ("holds", product): (1, f"Product '{product}' not found"),
        ("audit", product): (1, f"Product '{product}' not found"),
        ("audit", "--repair", product): (1, f"Product '{product}' not found"),
    }
    results = run_all([(*call, "--home", str(home)) for call in calls])
    for result, (code, reason) in zip(results, calls.values(), strict=True):
        assert reason in refused(result, code)


# A sale with terms


def test_an_operators_day_with_all_that_can_be_done(home: Path, store: "redis.Redis", product: str) -> None:
    at = ("--home", str(home))
    opened = said(run("init", product, "9", "--limit", "3", "--closes-at", "+1h", "--hold", "2h", "--numbered", *at))
    lines = opened.splitlines()
    assert lines[0] == f"✓ Product '{product}' initialized with 9 units"
    assert re.fullmatch(r"  closes \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", lines[1])
    assert lines[2:] == ["  at most 3 for one user", "  holds last 2h, extended 2h at most", "  each unit has a number"]

    [bought, *held] = asyncio.run(
        decide(home, product, Purchase(product, "a"), *(Reserve(product, u, hold_seconds=600) for u in ("b\x1b", "c")))
    )
    assert isinstance(bought, Success)
    assert said(run("refund", bought.order_id, *at)) == f"✓ Order '{bought.order_id}' refunded, 7 left\n"
    assert said(run("refund", bought.order_id, *at)) == f"✓ Order '{bought.order_id}' was refunded before, 7 left\n"
    unknown = bought.order_id.replace("-0000000002-", "-0000000003-")
    assert refused(run("refund", unknown, *at), 1) == f"Order '{unknown}' not found"

    shown = said(run("holds", product, *at)).splitlines()
    assert shown[0] == f"=== Holds for {product} (2 total) ==="
    assert shown[1].split() == ["code", "units", "item", "expires", "in", "at", "user"]
    codes = sorted(answer.code for answer in held if isinstance(answer, Held))
    rows = sorted(line.split() for line in shown[2:])
    assert [row[0] for row in rows] == codes
    assert {(row[1], row[2], row[-1]) for row in rows} == {("1", "2", "b\\x1b"), ("1", "3", "c")}
    assert re.search(r"  (?:10m|9m \d+s) +\d\d:\d\d:\d\d  ", shown[2])
    pure = json.loads(said(run("holds", product, "--json", *at)))
    assert sorted(row["code"] for row in pure["holds"]) == codes
    assert {row["user_id"] for row in pure["holds"]} == {"b\x1b", "c"}
    assert {(row["quantity"], row["item_id"], row["request_id"]) for row in pure["holds"]} == {
        (1, 2, None),
        (1, 3, None),
    }

    assert said(run("restock", product, "5", *at)) == f"✓ Product '{product}' restocked with 5 units, 12 left\n"
    for command, once, twice in (
        ("resume", "is not paused", "is not paused"),
        ("pause", "paused", "is paused already"),
        ("resume", "resumed", "is not paused"),
        ("close", "closed", "is closed already"),
    ):
        assert said(run(command, product, *at)) == f"✓ Product '{product}' {once}\n"
        assert said(run(command, product, *at)) == f"✓ Product '{product}' {twice}\n"
    assert refused(run("pause", product, *at), 1) == f"Product '{product}' stays as it was: the sale is closed"
    assert json.loads(said(run("close", product, "--json", *at))) == {
        "product_id": product,
        "remaining_stock": 12,
        "version": 9,
        "already": True,
    }

    status = said(run("status", product, *at)).splitlines()
    assert all(len(line) <= 80 for line in status)
    assert status[2:7] == [
        "Remaining Stock:   12",
        "Successful Buyers: 0",
        "Sold:              0 units",
        "Held:              2 units",
        "Limit:             3 units per user",
    ]
    assert re.fullmatch(r"Window:            to \S+ \S+", status[7])
    assert status[8:] == [
        "State:             closed",
        "Holds:             2h, extended 2h at most",
        "Numbered:          yes",
    ]
    assert said(run("audit", product, *at)) == (f"✓ {product}: 14 units = 12 left + 2 held + 0 sold; versions 1 to 9\n")


def test_a_sale_that_opens_later_says_so(home: Path, product: str) -> None:
    at = ("--home", str(home))
    said(run("init", product, "1", "--opens-at", "+5m", "--closes-at", "+10m", *at))
    status = said(run("status", product, *at)).splitlines()
    assert re.fullmatch(r"Window:            from \S+ \S+ to \S+ \S+", status[7])
    assert status[8] == "State:             not open yet"
    pure = json.loads(said(run("status", product, "--json", *at)))
    assert pure["state"] == "not_open"
    assert pure["closes_at"] - pure["opens_at"] == 300


def test_a_sale_may_end_with_the_calendar_in_every_zone(home: Path, product: str) -> None:
    at = ("--home", str(home))
    for zone in ("Asia/Tokyo", "America/New_York"):
        opened = run("init", product, "1", "--closes-at", "9999-12-31T23:59:59Z", *at, TZ=zone)
        assert said(opened).splitlines()[1].startswith("  closes 9999-12-31 ")
        assert "Window:            to 9999-12-31 " in said(run("status", product, *at, TZ=zone))


def test_moments_that_no_calendar_has_are_shown_all_the_same(home: Path, store: "redis.Redis", product: str) -> None:
    at = ("--home", str(home))
    said(run("init", product, "2", *at))
    asyncio.run(decide(home, product, Reserve(product, "a")))
    store.hset(f"product:{product}:sale", "closes_at", 10**13)
    [(token, _)] = store.zrange(f"product:{product}:deadlines", 0, -1, withscores=True)
    store.zadd(f"product:{product}:deadlines", {token: 10**13})
    assert "Window:            to 10000000000000\n" in said(run("status", product, *at))
    assert said(run("holds", product, *at)).splitlines()[-1].split()[-2:] == ["-", "a"]


# The audit


def test_audit_tells_what_differs_and_repair_mends_it(home: Path, store: "redis.Redis", product: str) -> None:
    at = ("--home", str(home))
    said(run("init", product, "9", "--limit", "2", *at))
    asyncio.run(sell(home, product, "a", "b\x1b", "b\x1b"))
    store.set(f"product:{product}:stock", 50)
    store.hset(f"product:{product}:users", "b\x1b", 1)
    found = run("audit", product, *at)
    table = [
        f"✗ {product}: 3 differences",
        "  what                     is  should be",
        "  left + held + sold       53  9",
        "  stock                    50  6",
        "  units of user b\\x1b      1   2",
    ]
    assert [re.sub(" +", " ", line) for line in found.stdout.splitlines()] == [
        re.sub(" +", " ", line) for line in table
    ]
    assert (found.returncode, found.stderr) == (1, "")
    pure = run("audit", product, "--json", *at)
    assert pure.returncode == 1
    [report] = json.loads(pure.stdout)["products"]
    assert report["differences"][2] == {"what": "units of user b\x1b", "found": "1", "expected": "2"}
    ok = f"✓ {product}: 9 units = 6 left + 0 held + 3 sold; versions 1 to 4"
    mended = said(run("audit", "--repair", product, *at)).splitlines()
    assert (len(mended), mended[5:]) == (7, [f"✓ {product}: 3 mended, as the ledger says", ok])
    assert said(run("audit", "--repair", product, *at)) == f"{ok}\n"
    assert (store.get(f"product:{product}:stock"), store.hget(f"product:{product}:users", "b\x1b")) == ("6", "2")


def test_audit_of_all_products_goes_on_behind_one_that_is_broken(empty_home: Path, product: str) -> None:
    at = ("--home", str(empty_home))
    held = EmbeddedStore(empty_home)
    held.acquire()
    try:
        assert said(run("audit", *at)) == ""
        for name in ("a", "b", "many"):
            said(run("init", f"{product}-{name}", "9", *at))
        with redis.Redis(unix_socket_path=str(empty_home / "valkey.sock"), decode_responses=True) as store:
            store.set(f"product:{product}-hand:stock", 7)
            store.delete(f"product:{product}-a:orders")
            store.delete(f"product:{product}-b:stock")
            store.hset(f"product:{product}-many:refunds", mapping={str(n): 1 for n in range(30)})
        found = run("audit", *at)
        repaired = run("audit", "--repair", *at)
        pure = run("audit", "--repair", "--json", *at)
    finally:
        held.release()
    lines = found.stdout.splitlines()
    assert (found.returncode, found.stderr) == (1, "")
    assert lines[:2] == [f"✗ {product}-a: its ledger is gone", f"✗ {product}-b: 2 differences"]
    assert f"✓ {product}-hand: 7 left, set by hand; no ledger yet, nothing to compare" in lines
    assert lines[-1] == "  and 10 more"
    sentence = f"Product '{product}-a' was left as it is: its ledger is gone"
    assert (repaired.returncode, repaired.stderr) == (1, f"{sentence}\n")
    assert f"✓ {product}-b: 2 mended, as the ledger says" in repaired.stdout
    answer = json.loads(pure.stdout)
    assert (pure.returncode, answer["ok"]) == (1, False)
    assert [row["ok"] for row in answer["products"]] == [False, True, True, True]
    assert answer["products"][0] == {"product_id": f"{product}-a", "ok": False, "refused": sentence}


# Where the store is


def test_a_store_that_cannot_be_reached_is_one_line_and_shows_no_password() -> None:
    url = "redis://user:s3cret@127.0.0.1:1/0"
    calls = [
        ("status", "x", "--redis", url),
        ("init", "x", "5", "--redis", "127.0.0.1:1"),
        ("buyers", "x", "--redis", "unix:///no/such.sock?password=s3cret"),
        ("products", "--redis", "rediss://:s3cret@127.0.0.1:1"),
        ("reset", "x", "--yes", "--redis", url),
        ("status", "x", "--home", "/proc/nowhere"),
        ("status", "x", "--home", "/tmp/" + "long" * 30),
    ]
    for result in run_all(calls):
        line = refused(result, 1)
        assert "s3cret" not in line
    assert "s3cret" not in refused(run("status", "x", REDIS_URL="redis://:s3cret@127.0.0.1:port"), 2)


def test_flags_beat_the_environment_which_beats_the_file(home: Path, product: str, empty_home: Path) -> None:
    def url(database: int) -> str:
        return f"unix://{home}/valkey.sock?db={database}"

    for database in range(1, 5):
        with redis.Redis(unix_socket_path=str(home / "valkey.sock"), db=database) as client:
            client.set(f"product:{product}:stock", database)
    file = empty_home / "settings.toml"
    file.write_text(f'redis = "{url(1)}"\nworkers = 2\n')
    by_file = ("status", product, "--json", "--config", str(file))
    cases: list[tuple[int, tuple[str, ...], dict[str, str]]] = [
        (1, by_file, {}),
        (2, by_file, {"REDIS_ADDR": url(2)}),
        (3, by_file, {"REDIS_ADDR": url(2), "REDIS_URL": url(3)}),
        (3, by_file, {"REDIS_ADDR": url(2), "FLASHSALE_REDIS": url(3)}),
        (4, (*by_file, "--redis", url(4)), {"REDIS_ADDR": url(2), "REDIS_URL": url(3)}),
        (1, by_file, {"REDIS_URL": ""}),
    ]
    for database, arguments, variables in cases:
        assert json.loads(said(run(*arguments, **variables)))["remaining_stock"] == database


def test_the_home_comes_from_the_environment_and_has_a_default(empty_home: Path, product: str) -> None:
    given = empty_home / "given"
    user = empty_home / "user"
    said(run("init", product, "1", HOME=str(user), FLASHSALE_HOME=str(given)))
    said(run("init", product, "2", HOME=str(user)))
    default = user / ".local/state/flashsale"
    for place, stock in ((given, 1), (default, 2)):
        assert place.stat().st_mode & 0o777 == 0o700
        assert not (place / "valkey.sock").exists(), "the store outlives the command"
        status = json.loads(said(run("status", product, "--json", "--home", str(place))))
        assert status["remaining_stock"] == stock


async def test_commands_work_before_during_and_after_serve(empty_home: Path, product: str) -> None:
    at = ("--home", str(empty_home))
    said(await asyncio.to_thread(run, "init", product, "3", *at))
    server = await asyncio.to_thread(
        ServerProcess, ["--listen", "127.0.0.1:0", *at], environment=environment(), log=subprocess.DEVNULL
    )
    try:
        async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
            for number in range(2):
                assert isinstance(await client.purchase(product, f"u{number}"), Success)
            during = json.loads(said(await asyncio.to_thread(run, "status", product, "--json", *at)))
            assert (during["remaining_stock"], during["sold"], during["version"]) == (1, 2, 3)
            assert isinstance(await client.purchase(product, "u2"), Success)
    finally:
        assert await asyncio.to_thread(server.stop) == 0
    after = await asyncio.to_thread(run, "buyers", product, "--json", *at)
    assert json.loads(said(after))["buyers"] == ["u0", "u1", "u2"]


# What strangers chose to be called


def test_names_that_play_tricks_on_a_terminal_are_escaped(home: Path, store: "redis.Redis", product: str) -> None:
    tricks = ["\x1b[2J\x1b[31mred", "a\nb", "\u202eevil", "\x07", "日本", "tab\t"]
    odd = f"{product}\x1b[2J"
    store.set(f"product:{product}:stock", 0)
    store.rpush(f"product:{product}:buyers", *reversed(tricks))
    store.set(f"product:{odd}:stock", 0)
    at = ("--home", str(home))
    text, pure, products = map(
        said, run_all([("buyers", product, *at), ("buyers", product, *at, "--json"), ("products", *at)])
    )
    store.delete(f"product:{odd}:stock")
    assert text.splitlines()[1:] == [
        "1. \\x1b[2J\\x1b[31mred",
        "2. a\\nb",
        "3. \\u202eevil",
        "4. \\x07",
        "5. 日本",
        "6. tab\\t",
    ]
    assert json.loads(pure)["buyers"] == tricks
    assert f"{product}\\x1b[2J\n" in products
    assert "\x1b" not in text + pure + products


def test_bytes_that_are_not_utf_8_do_not_hide_the_other_buyers(home: Path, store: "redis.Redis", product: str) -> None:
    store.set(f"product:{product}:stock", 0)
    store.lpush(f"product:{product}:buyers", "first", b"\xff\xfe", "last")
    found = json.loads(said(run("buyers", product, "--json", "--home", str(home))))["buyers"]
    assert [found[0], found[2]] == ["first", "last"]


def test_a_hundred_thousand_buyers_come_in_order_of_purchase(home: Path, store: "redis.Redis", product: str) -> None:
    users = [f"user_{number}" for number in range(100_000)]
    store.set(f"product:{product}:stock", 0)
    for first in range(0, len(users), 5_000):
        store.lpush(f"product:{product}:buyers", *users[first : first + 5_000])
    at = ("--home", str(home))
    text, pure = map(said, run_all([("buyers", product, *at), ("buyers", product, *at, "--json")]))
    assert json.loads(pure)["buyers"] == users
    lines = text.splitlines()
    assert lines[0] == f"=== Buyers for {product} (100000 total) ==="
    assert lines[1:] == [f"{number}. {user}" for number, user in enumerate(users, 1)]

    # and whoever reads only the first lines gets them without a traceback
    for arguments in (("buyers", product, *at), ("buyers", product, *at, "--json")):
        with start(*arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == ""
            process.wait(PATIENCE_S)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ["buyers", "export --csv"])
def test_a_full_disk_is_one_line(home: Path, sale: str, command: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "flashsale", *command.split(), sale, "--home", str(home)],
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "the system refused: No space left on device\n")


@pytest.mark.parametrize("command", ["status", "export --csv"])
def test_a_closed_output_is_no_reason_to_fail(home: Path, sale: str, command: str) -> None:
    line = shlex.join([sys.executable, "-m", "flashsale", *command.split(), sale, "--home", str(home)])
    result = subprocess.run(
        ["sh", "-c", f"{line} >&-"], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_that_knows_no_check_mark_is_no_reason_to_fail(home: Path, product: str) -> None:
    result = run("init", product, "5", "--home", str(home), PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")


# Asking


def on_a_terminal(arguments: Sequence[str], answer: bytes) -> tuple[int, str]:
    """Run a command on a terminal and type an answer to its question; return its exit code and what was shown."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "flashsale", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        typed = False
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(ours, 4096)
            except OSError:  # its end is closed
                break
            if not data:
                break
            shown += data
            if not typed and b"?" in shown and shown.rstrip().endswith(b":"):
                os.write(ours, answer)
                typed = True
        os.close(ours)
        return process.wait(PATIENCE_S), shown.decode()


def test_reset_asks_on_a_terminal_and_only_there(home: Path, store: "redis.Redis", sale: str) -> None:
    call = ["reset", sale, "--home", str(home)]
    code, shown = on_a_terminal(call, b"n\n")
    assert code == 1
    assert f"Delete product '{sale}' with its buyers, holds and ledger?" in shown
    assert "Traceback" not in shown
    assert store.llen(f"product:{sale}:buyers") == 58
    code, shown = on_a_terminal(call, b"\n")  # the default is no
    assert (code, store.llen(f"product:{sale}:buyers")) == (1, 58)
    code, shown = on_a_terminal(call, b"y\n")
    assert code == 0
    assert f"✓ Product '{sale}' reset (deleted)" in shown
    assert not store.exists(f"product:{sale}:buyers", f"product:{sale}:stock")
    store.set(f"product:{sale}:stock", 1)
    code, shown = on_a_terminal([*call, "--yes"], b"")
    assert code == 0
    assert "?" not in shown


# Live


@pytest.fixture
def watch(home: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `watch` and wait until it does."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        process = start("watch", "--home", str(home), *arguments)
        started.append(process)
        return process

    yield begin
    for process in started:
        with process:
            process.kill()


async def test_watch_follows_the_sales_as_they_happen(
    home: Path, store: "redis.Redis", product: str, watch: Callable[..., "subprocess.Popen[str]"]
) -> None:
    other = f"{product}-other"
    store.mset({f"product:{product}:stock": 2, f"product:{other}:stock": 5})
    everything, one, pure = watch(), watch(product), watch("--json", product)
    for process in (everything, one, pure):
        assert process.stderr is not None
        assert await asyncio.to_thread(process.stderr.readline) == "watching…\n"
    server = await asyncio.to_thread(
        ServerProcess,
        ["--listen", "127.0.0.1:0", "--home", str(home)],
        environment=environment(),
        log=subprocess.DEVNULL,
    )
    try:
        async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
            await client.purchase(other, "alice")
            await client.purchase(product, "bob\x1b[2J")
            await client.purchase(product, "carol")
            await client.purchase(product, "dave")
            await client.purchase(other, "erin")
    finally:
        await asyncio.to_thread(server.stop)

    async def lines(process: "subprocess.Popen[str]", count: int) -> list[str]:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return [await asyncio.to_thread(process.stdout.readline) for _ in range(count)]

    clock = r"\d\d:\d\d:\d\d  "
    told = [
        f"{product}  bob\\x1b[2J bought, 1 left\n",
        f"{product}  carol bought, 0 left\n",
        f"{product}  sold out\n",
    ]
    for line, expected in zip(await lines(one, 3), told, strict=True):
        assert re.fullmatch(clock + re.escape(expected), line)
    expected_all = [f"{other}  alice bought, 4 left\n", *told, f"{other}  erin bought, 3 left\n"]
    for line, expected in zip(await lines(everything, 5), expected_all, strict=True):
        assert re.fullmatch(clock + re.escape(expected), line)
    events: list[dict[str, Any]] = [json.loads(line) for line in await lines(pure, 3)]
    for event in events:
        assert isinstance(event.pop("timestamp"), int)
    assert events == [
        {
            "event": "purchase",
            "product_id": product,
            "buyer": "bob\x1b[2J",
            "remaining": 1,
            "quantity": 1,
            "version": 2,
        },
        {"event": "purchase", "product_id": product, "buyer": "carol", "remaining": 0, "quantity": 1, "version": 3},
        {"event": "sold_out", "product_id": product},
    ]
    for process in (everything, one, pure):
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


async def test_watch_goes_on_behind_messages_that_make_no_sense(
    product: str, store: "redis.Redis", watch: Callable[..., "subprocess.Popen[str]"]
) -> None:
    text, pure = watch(product), watch("--json", product)
    messages = [
        b'{"event":"sold_out","product_id":"%b","timestamp":%d}' % (product.encode(), timestamp)
        for timestamp in (999_999_999_999_999, 10**30, -(10**15))
    ]
    messages.append(b'{"event":"sold_out","product_id":"%b","timestamp":5,"more":"\xff"}' % product.encode())
    for process in (text, pure):
        assert process.stderr is not None
        assert await asyncio.to_thread(process.stderr.readline) == "watching…\n"
    for message in messages:
        store.publish("flashsale_events", message)
    assert text.stdout is not None
    assert pure.stdout is not None
    for message in messages:
        clock, _, rest = (await asyncio.to_thread(text.stdout.readline)).partition("  ")
        assert rest == f"{product}  sold out\n"
        assert (clock == "--:--:--") == (message != messages[-1])
        assert await asyncio.to_thread(pure.stdout.readline) == message.decode(errors="replace") + "\n"


async def test_watch_tells_every_change(
    home: Path, product: str, watch: Callable[..., "subprocess.Popen[str]"]
) -> None:
    text, pure = watch(product), watch("--json", product)
    for process in (text, pure):
        assert process.stderr is not None
        assert await asyncio.to_thread(process.stderr.readline) == "watching…\n"
    said(await asyncio.to_thread(run, "init", product, "9", "--home", str(home)))
    requests: list[Request] = [Reserve(product, "al\x1bice", 2), Reserve(product, "bob"), Purchase(product, "carol", 3)]
    engine = RedisEngine(f"unix://{home}/valkey.sock")
    [[first, second, bought]] = await engine.commit([Batch(product, requests, 1)], timeout_s=PATIENCE_S)  # type: ignore[misc]
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    requests = [
        Extend(first.code, 1_000),
        Confirm(first.code),
        Cancel(second.code),
        Refund(bought.order_id),
        Restock(product, 4),
        Pause(product),
        Resume(product),
        Close(product),
    ]
    await engine.commit([Batch(product, requests, 2)], timeout_s=PATIENCE_S)
    await engine.close()
    expected = [
        "opened, 9 left",
        "al\\x1bice holds 2, 7 left",
        "bob holds 1, 6 left",
        "carol bought 3, 3 left",
        "al\\x1bice holds 2 for longer, 3 left",
        "al\\x1bice bought 2, 3 left",
        "bob gave 1 back, 4 left",
        "carol got a refund for 3, 7 left",
        "restocked with 4, 11 left",
        "paused",
        "resumed",
        "closed",
    ]
    assert text.stdout is not None
    assert pure.stdout is not None
    for version, line in enumerate(expected, 1):
        assert (await asyncio.to_thread(text.stdout.readline))[10:] == f"{product}  {line}\n"
        assert json.loads(await asyncio.to_thread(pure.stdout.readline))["version"] == version


def test_demo_in_an_empty_home_shows_a_whole_sale(empty_home: Path) -> None:
    result = run("demo", HOME=str(empty_home))
    assert (result.returncode, result.stderr) == (0, "")
    for line in (
        r"A server listens on 127\.0\.0\.1:\d+, its store is unix:.* \(embedded\)\.",
        r"100 units of '.+' for 2000 buyers, each with a connection\.",
        r"Bought:            100",
        r"Sold out:          1900",
        r"Unanswered:        0",
        r"Duration:          \d+\.\d\d s",
        r"Latency:           p50 \d+ ms, max \d+ ms",
        r"Remaining Stock:   0",
        r"Successful Buyers: 100",
        r"✓ 0 left \+ 100 bought = 100; every buyer was answered",
    ):
        assert re.search(f"^{line}$", result.stdout, re.MULTILINE), line
    assert not list(empty_home.rglob("valkey.sock")), "the demo's store outlives it"


@pytest.mark.parametrize(
    "command", [("init", "--limitt", "4"), ("restock", "--jsno", "4"), ("init", "x", "4", "--forc")]
)
def test_an_option_that_there_is_not_is_no_product(home: Path, command: tuple[str, ...]) -> None:
    [wrong] = [word for word in command if word.startswith("--")]
    assert refused(run(*command, "--home", str(home)), 2).startswith(f"No such option '{wrong}'.")


def test_a_product_may_be_named_like_an_option(home: Path) -> None:
    assert (
        said(run("init", "--home", str(home), "--", "--limitt", "4"))
        == "✓ Product '--limitt' initialized with 4 units\n"
    )
