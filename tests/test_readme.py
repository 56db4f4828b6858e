"""The README says what is there: its tables, commands and examples are read here."""

import asyncio
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from flashsale import Client, cli
from flashsale.config import ENVIRONMENT, Config
from flashsale.domain.answers import Cancelled, SoldOut, Success
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Purchase
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from flashsale.store.durability import REQUIRED, Durability
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from flashsale.wire import decode_event

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return re.split(r"\n#+ ", README.split(f" {title}\n", 1)[1])[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_settings_table_is_config():
    defaults = {
        field.name: "" if field.default is None else str(field.default) for field in msgspec.structs.fields(Config)
    }
    assert {row[0]: row[1] for row in rows("Settings")} == defaults


def test_the_environment_variables_are_named():
    for variable in ENVIRONMENT:
        assert variable in section("Settings")


def test_the_durability_table_is_the_check():
    table = {row[0].split("`")[0]: row[1] for row in rows("Durability")}
    assert set(table) == set(Durability)
    assert table["local"] == ", ".join(f"`{name} {value}`" for name, value in REQUIRED.items()).strip("`")


def test_every_source_file_is_in_the_reading_order():
    named = re.findall(r"^\| `(flashsale/[^`]+)`", README, re.MULTILINE)
    named += [
        "flashsale/__init__.py",
        "flashsale/__main__.py",
        "flashsale/domain/__init__.py",
        "flashsale/store/__init__.py",
    ]
    there = [str(path.relative_to(ROOT)) for path in (ROOT / "flashsale").rglob("*") if path.suffix in {".py", ".lua"}]
    assert sorted(named) == sorted(there)


def test_the_reading_order_points_down():
    modules = re.findall(r"^\| `flashsale/([a-z_/]+)\.py`", README, re.MULTILINE)
    for position, module in enumerate(modules):
        source = (ROOT / "flashsale" / f"{module}.py").read_text()
        imported = re.findall(r"^from flashsale\.((?!store import)[a-z_.]+) import", source, re.MULTILINE)
        for names in re.findall(r"^from flashsale\.store import (.*)", source, re.MULTILINE):
            imported += [f"store.{name}" for name in names.split(", ")]
        for name in imported:
            assert name.replace(".", "/") in modules[:position], f"{module} imports {name}, which comes later"


def masked(line: str) -> str:
    """Return a line without what differs from run to run: numbers, paths and addresses."""
    return re.sub(r"\d+", "0", re.sub(r"\S+[:/]\S+", "ADDRESS", line))


def test_the_set_up_commands():
    set_up = ("-e .", "flashsale demo"), ("-e '.[test]'", "pytest")
    assert re.findall(r"^python3 .*", README, re.MULTILINE) == [
        f"python3 -m venv .venv && .venv/bin/pip install -q {what} && .venv/bin/{command}" for what, command in set_up
    ]


def test_the_demo_prints_what_is_shown(home, environment):
    shown = re.search(r"^That starts a real server.*?^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    command = [sys.executable, "-m", "flashsale", "demo"]
    printed = subprocess.run(command, env=environment | {"HOME": str(home)}, capture_output=True, check=True).stdout
    assert [masked(line) for line in printed.decode().splitlines()] == [masked(line) for line in shown.splitlines()]


def buy(port, product_id):
    async def purchase():
        async with Client("127.0.0.1", port) as client:
            return await client.purchase(product_id, "user_1")

    return asyncio.run(purchase()).order_id


def test_a_sale_is_run_as_shown(home, environment):
    environment = environment | {"HOME": str(home), "LISTEN_ADDR": "127.0.0.1:0"}
    commands = re.findall(r"^flashsale ([^#\n]+)(?:# (.*))?", section("Run a sale"), re.MULTILINE)
    assert {words.split()[0] for words, _ in commands} == set(cli.cli.commands) - {"demo", "completion"}
    order_id = ""
    with ExitStack() as stack:
        for words, comment in commands:
            arguments = shlex.split(words.rstrip(" &"))
            if arguments[0] == "refund":
                arguments[1] = order_id
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "flashsale", *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if arguments[0] == "watch" else subprocess.DEVNULL,
                    encoding="utf-8",
                )
            )
            stack.callback(process.terminate)
            if arguments[0] == "watch":
                assert process.stderr.readline() == "watching…\n"
                process.send_signal(signal.SIGINT)
            printed = process.stdout.readline()
            if comment.startswith(("✓", "Server initialized")):
                assert masked(printed).startswith(masked(comment.removesuffix("…")).rstrip())
            if arguments[0] == "serve":
                order_id = buy(int(re.search(r":(\d+),", printed)[1]), "iphone15")
            else:
                process.communicate(timeout=30)
                assert process.returncode == 0


def test_an_audit_that_finds_something_prints_what_is_shown(home, environment):
    shown = re.search(r"^```\n(✗ iphone15:.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    with ExitStack() as stack:
        held = EmbeddedStore(home)
        held.acquire()
        stack.callback(held.release)
        asyncio.run(drift(held.url))
        command = [sys.executable, "-m", "flashsale", "audit", "--repair", "--home", str(home)]
        printed = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.decode()
    assert printed == shown


async def drift(url):
    """Sell 58 of 100 units; then somebody sets the stock by hand and takes a buyer off the list."""
    async with Admin(url) as admin, Redis.from_url(url) as redis:
        await admin.init("iphone15", 100)
        engine = RedisEngine(url)
        await engine.commit([Batch("iphone15", [Purchase("iphone15", f"u{n}") for n in range(58)], 1)], timeout_s=30)
        await engine.close()
        await redis.set("product:iphone15:stock", 92)
        await redis.lpop("product:iphone15:buyers")


def test_every_command_is_shown():
    for name in cli.cli.commands:
        assert f"flashsale {name}" in README


def test_the_event_examples_decode():
    examples = re.search(r"```json\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert [type(decode_event(line.encode())).__name__ for line in examples] == ["PurchaseEvent", "SoldOutEvent"]


async def test_the_client_example_buys(store_url, capsys):
    source = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    async with Admin(store_url) as admin:
        await admin.init("iphone15", 1, force=True)
    with ServerProcess(["--redis", store_url, "--listen", "127.0.0.1:0"]) as server:
        for _ in range(2):
            await asyncio.to_thread(exec, source.replace("8080", str(server.port)), {})
    assert capsys.readouterr().out.splitlines() == ["bought, 0 left", "sold out"]


async def test_the_other_client_examples_do_what_is_said(store_url, product_id):
    lines, told_everything = [], asyncio.Event()

    def keep(*words):
        lines.append(" ".join(map(str, words)))
        if len(lines) == 7:
            told_everything.set()

    shown = {"print": keep}
    for source in re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1:]:
        exec(source, shown)

    async def pay():
        return True

    async def think_better_of_it():
        return False

    async with Admin(store_url) as admin:
        await admin.init(product_id, 7)
    with ServerProcess(["--redis", store_url, "--listen", "127.0.0.1:0"]) as server:
        async with Client(server.host, server.port) as client, asyncio.timeout(30):
            following = asyncio.create_task(shown["follow"](client, product_id))
            assert (await shown["buy"](client, product_id, "ann")).remaining_stock == 5
            assert isinstance(await shown["check_out"](client, product_id, "bob", pay), Success)
            assert isinstance(await shown["check_out"](client, product_id, "cy", think_better_of_it), Cancelled)
            assert isinstance(await shown["buy"](client, product_id, "dee"), Success)
            assert await shown["check_out"](client, product_id, "eve", pay) == SoldOut(1)
            await told_everything.wait()
            following.cancel()
    assert lines == [
        "1 opened  7",
        "2 sold ann 5",
        "3 held bob 3",
        "4 confirmed bob 3",
        "5 held cy 1",
        "6 cancelled cy 3",
        "7 sold dee 1",
    ]
