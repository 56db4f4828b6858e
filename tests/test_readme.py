"""The README says what is there: its tables, commands and examples are read here."""

import asyncio
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, aclosing
from pathlib import Path

import click
import msgspec
import pytest
import redis
import yaml
from redis.asyncio import Redis

from flashsale import Client, cli, crash
from flashsale.cli.picture import HEIGHT_MIN, WIDTH_MIN
from flashsale.cli.schedule import schedule
from flashsale.config import DATABASE_PARTS, ENVIRONMENT, PORT, REDIS_PARTS, SSL_MODE, Config
from flashsale.domain.answers import Cancelled, Failed, Held, NotOpen, SoldOut, Success, Unavailable
from flashsale.domain.batches import Batch
from flashsale.domain.requests import Close, Pause, Purchase, Restock, Resume
from flashsale.domain.sale import Terms
from flashsale.domain.schedules import Schedule
from flashsale.http import session
from flashsale.http.current import refused as checkout_reply
from flashsale.http.openapi import OPERATIONS
from flashsale.http.orders import answered as order_reply
from flashsale.http.outcomes import FAILURES, REFUSALS, refusal_of
from flashsale.http.replies import Reply
from flashsale.http.session import HEAD_SIZE_MAX, HEADER_COUNT_MAX, URL_SIZE_MAX
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from flashsale.store.durability import REQUIRED, Durability
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.engine import RedisEngine
from flashsale.wire import decode_event
from tests.command_line import call_here
from tests.faults.matrix import FAULTS

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
    named = {name for row in rows("Variables with names of their own") for name in row[0].split(", ")}
    assert named == {*ENVIRONMENT, *DATABASE_PARTS, SSL_MODE, *REDIS_PARTS, PORT}


def test_the_durability_table_is_the_check():
    table = {row[0].split("`")[0]: row[1] for row in rows("Durability")}
    assert set(table) == set(Durability)
    assert table["local"] == ", ".join(f"`{name} {value}`" for name, value in REQUIRED.items()).strip("`")


def test_the_services_are_those_of_the_compose_file():
    named = [name.strip("`") for row in rows("With Docker") for name in row[0].split(", ")]
    assert sorted(named) == sorted(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


def test_the_members_of_a_log_line_are_those_of_the_example():
    shown = json.loads(re.search(r"^```json\n(.*?)```", section("Logs"), re.MULTILINE | re.DOTALL)[1])
    named = [row[0] for row in rows("Logs")]
    assert named == [*shown, "exception"]


def test_the_crash_points_are_those_of_the_code():
    assert dict(rows("Crash points")) == crash.LABELS


def test_the_faults_shown_are_those_of_the_matrix():
    shown = re.search(r"^fault +what.*?\n(.*?)^```", section("Faults"), re.MULTILINE | re.DOTALL)[1]
    rows = {tuple(re.split(r" {2,}", line)[:2]) for line in shown.splitlines()}
    assert rows == {(fault.number, fault.what) for fault in FAULTS}


def test_every_source_file_is_in_the_reading_order():
    named = re.findall(r"^\| `(flashsale/[^`]+)`", README, re.MULTILINE)
    named += [
        "flashsale/__init__.py",
        "flashsale/__main__.py",
        "flashsale/domain/__init__.py",
        "flashsale/grpc/__init__.py",
        "flashsale/http/__init__.py",
        "flashsale/kafka/__init__.py",
        "flashsale/orders/__init__.py",
        "flashsale/store/__init__.py",
    ]
    there = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "flashsale").rglob("*")
        if path.suffix in {".py", ".lua", ".html"}
    ]
    assert sorted(named) == sorted(there)


def test_the_reading_order_points_down():
    modules = re.findall(r"^\| `flashsale/([a-z_/]+)\.py`", README, re.MULTILINE)
    for position, module in enumerate(modules):
        source = (ROOT / "flashsale" / f"{module}.py").read_text()
        imported = re.findall(r"^from flashsale\.((?!(?:store|orders) import)[a-z_.]+) import", source, re.MULTILINE)
        for package, names in re.findall(r"^from flashsale\.(store|orders) import (.*)", source, re.MULTILINE):
            imported += [f"{package}.{name}" for name in names.split(", ")]
        for name in imported:
            assert name.replace(".", "/") in modules[:position], f"{module} imports {name}, which comes later"


def masked(line: str) -> str:
    """Return a line without what differs from run to run: numbers, paths and addresses."""
    return re.sub(r"\d+", "0", re.sub(r"\S+[:/]\S+", "ADDRESS", line))


def test_the_set_up_commands():
    set_up = ("-e '.[http]'", "flashsale demo"), ("-e '.[test]'", "pytest")
    assert re.findall(r"^python3 .*", README, re.MULTILINE) == [
        f"python3 -m venv .venv && .venv/bin/pip install -q {what} && .venv/bin/{command}" for what, command in set_up
    ]


def test_the_demo_prints_what_is_shown(home, environment):
    shown = re.search(r"^That starts a real server.*?^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    command = [sys.executable, "-m", "flashsale", "demo"]
    printed = subprocess.run(command, env=environment | {"HOME": str(home)}, capture_output=True, check=True).stdout
    assert [masked(line) for line in printed.decode().splitlines()] == [masked(line) for line in shown.splitlines()]


def purchase(port, product_id):
    async def ask():
        async with Client("127.0.0.1", port) as client:
            return await client.purchase(product_id, "user_1")

    return asyncio.run(ask())


def buy(port, product_id):
    return purchase(port, product_id).order_id


@pytest.mark.timeout(180)  # twenty processes, one after the other
def test_a_sale_is_run_as_shown(home, environment):
    environment = environment | {"HOME": str(home), "LISTEN_ADDR": "127.0.0.1:0"}
    commands = re.findall(r"^flashsale ([^#\n]+)(?:# (.*))?", section("Run a sale"), re.MULTILINE)
    elsewhere = {
        "demo",
        "completion",
        "orders",
        "attempts",
        "export",
        "db",
        "worker",
        "relay",
        "recover",
        "schedule",
        "top",
    }
    assert {words.split()[0] for words, _ in commands} == set(cli.cli.commands) - elsewhere
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


def test_a_schedule_is_added_listed_and_removed_as_shown(home, environment):
    text = section("Recurring sales")
    commands = re.findall(r"^flashsale ([^#\n]+)(?:# (.*))?", text, re.MULTILINE)
    assert [words.split()[:2] for words, _ in commands] == [["schedule", word] for word in schedule.commands]
    printed = []
    for words, comment in commands:
        done = call_here([*shlex.split(words), "--home", str(home)], environment)
        assert done.returncode == 0
        assert done.stdout.startswith(comment)
        printed.append(done.stdout)
    shown = re.search(r"^```\n(name .*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    shape = [re.sub(r" +", " ", re.sub(r"sale_\d+_[0-9a-f]{8}|\d+", "0", table)) for table in (printed[1], shown)]
    assert shape[0] == shape[1]
    options = {option.opts[0] for option in schedule.commands["add"].params if isinstance(option, click.Option)}
    told = {row[0] for row in rows("Recurring sales") if re.match("--[a-z]", row[0])}
    assert told == options - {"--config", "--home", "--redis"}


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


def test_orders_are_read_as_shown(home, environment):
    environment = environment | {"HOME": str(home), "FLASHSALE_ORDERS": "true"}
    commands = re.findall(r"^flashsale ([^#>&\n]+)", section("Read the orders"), re.MULTILINE)
    assert {words.split()[0] for words in commands} == {"orders", "export", "db", "worker"}

    def run(words):
        return call_here(shlex.split(words), environment)

    assert run("init iphone15 3").returncode == 0
    with ServerProcess(["--listen", "127.0.0.1:0"], environment=environment, log=subprocess.DEVNULL) as server:
        order_id = buy(server.port, "iphone15")
        deadline = time.monotonic() + 30
        while order_id not in run("orders").stdout:
            assert time.monotonic() < deadline, "the order does not come"
        for words in commands:
            done = run(words) if words.strip() != "worker" else None
            if words.startswith(("orders iphone15", "export")):
                assert order_id in done.stdout
            elif done is not None:
                assert done.returncode == (1 if "retry" in words else 0)  # there is no dead letter


def test_a_lost_store_is_rebuilt_as_shown(home, environment):
    environment = environment | {"HOME": str(home), "FLASHSALE_ORDERS": "true"}
    words, shown = re.search(r"^flashsale (recover .*?) +# (.*)$", README, re.MULTILINE).groups()

    def run(words):
        command = [sys.executable, "-m", "flashsale", *shlex.split(words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def until(holds):
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "it never came"

    assert run("init iphone15 3").returncode == 0
    with ServerProcess(["--listen", "127.0.0.1:0"], environment=environment, log=subprocess.DEVNULL) as server:
        order_id = buy(server.port, "iphone15")
        until(lambda: order_id in run("orders").stdout)
        with redis.Redis.from_url(f"unix://{home}/.local/state/flashsale/valkey.sock") as store:
            store.flushall()
        until(lambda: isinstance(purchase(server.port, "iphone15"), Unavailable))
        done = run(words)
        assert done.returncode == 0
        assert masked(done.stdout.splitlines()[0]) == masked(shown)
        bought = purchase(server.port, "iphone15")
        assert (bought.remaining_stock, bought.version) == (1, 3)
        assert "3 units = 1 left + 0 held + 2 sold" in run("audit iphone15").stdout


def test_attempts_are_read_as_shown(home, environment):
    environment = environment | {"HOME": str(home)}
    commands = re.findall(r"^flashsale ([^#>&\n]+)", section("Read the attempts"), re.MULTILINE)
    assert [words.split()[0] for words in commands] == ["attempts", "attempts"]

    def run(words):
        return call_here(shlex.split(words), environment).stdout

    run("init iphone15 3")
    flags = ["--listen", "127.0.0.1:0", "--record-attempts"]
    with ServerProcess(flags, environment=environment, log=subprocess.DEVNULL) as server:
        buy(server.port, "iphone15")
        deadline = time.monotonic() + 30
        while "user_1" not in (listed := run(commands[0])):
            assert time.monotonic() < deadline, "the attempt does not come"
    counted = run(commands[1])
    assert re.search(r"SUCCESS +purchase +1 +- +2 +user_1$", listed, re.MULTILINE)
    assert re.search(r"^SUCCESS +1$", counted, re.MULTILINE)


async def drift(url):
    """Sell 58 of 100 units; then somebody sets the stock by hand and takes a buyer off the list."""
    async with Admin(url) as admin, Redis.from_url(url) as redis:
        await admin.init("iphone15", 100)
        engine = RedisEngine(url)
        await engine.commit([Batch("iphone15", [Purchase("iphone15", f"u{n}") for n in range(58)], 1)], timeout_s=30)
        await engine.close()
        await redis.set("product:iphone15:stock", 92)
        await redis.lpop("product:iphone15:buyers")


@pytest.fixture
def limited_store(start_store):
    """The URL of a store as the README's user gives it, and a client of the store that may do anything."""
    port = start_store("--appendonly", "yes", "--appendfsync", "always", "--save", "")
    with redis.Redis(port=port, decode_responses=True) as everything:
        everything.execute_command("ACL", "SETUSER", "flashsale", *rights())
        everything.config_resetstat()
        yield f"redis://flashsale:PASSWORD@127.0.0.1:{port}", everything


def rights():
    """Return the words behind the user's name in the README's ACL SETUSER."""
    shown = re.search(r"ACL SETUSER flashsale (.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    return shlex.split(shown.replace("\\\n", ""))


async def test_the_user_of_the_store_may_do_what_is_needed_and_no_more(limited_store, start_server):
    url, everything = limited_store
    server = await asyncio.to_thread(start_server, "--redis", url)
    async with Admin(url) as admin, asyncio.timeout(30), aclosing(admin.events()) as events:
        assert await anext(events) is None
        await admin.init("p", 20, Terms(limit=4, numbered=True))
        assert (await anext(events))[0].event == "opened"
        async with Client(server.host, server.port) as client:
            await buy_and_follow(client)
        await sell_out(url)
        await look_and_change(admin)
        await drift_and_repair(admin, url)
        await repeat(admin)
        await admin.reset("p")
    stats = everything.info("commandstats")
    assert {entry["object"] for entry in everything.acl_log()} <= {"client|setinfo"}
    used = {name.removeprefix("cmdstat_") for name, counted in stats.items() if counted["calls"]}
    commands = used - {"auth", "hello", "config|resetstat"}  # everybody may log in; the last was not his
    containers = {name.partition("|")[0] for name in commands if "|" in name}
    commands |= named_commands(everything) - containers
    assert sorted(word for word in rights() if word.startswith("+")) == sorted(f"+{name}" for name in commands)


def named_commands(store):
    """Return the commands that the sources name, also those that are rare."""
    files = [path for path in (ROOT / "flashsale/store").rglob("*") if path.suffix in {".py", ".lua"}]
    files.remove(ROOT / "flashsale/store/faults.py")  # its words are the codes of errors
    words = {word for path in files for word in re.findall(r"['\"]([A-Z]+)['\"]", path.read_text())}
    return {word.lower() for word in words} & set(store.command_list())


async def buy_and_follow(client):
    first = await client.purchase("p", "ann", request_id="r")
    assert await client.purchase("p", "ann", request_id="r") == msgspec.structs.replace(first, duplicate=True)
    held = await client.reserve("p", "bob")
    assert isinstance(await client.extend(held.code, 1_000), Held)
    assert isinstance(await client.confirm(held.code), Success)
    held = await client.reserve("p", "cy")
    assert isinstance(await client.cancel(held.code), Cancelled)
    assert isinstance(await client.reserve("p", "dee"), Held)
    assert isinstance(await client.reserve("p", "eve", hold_seconds=1), Held)
    assert (await client.status("p")).sold == 2
    assert (await anext(client.subscribe())).event == "expired"  # eve's hold, by the server itself
    kinds = ["opened", "sold", "held", "extended", "confirmed", "held", "cancelled", "held", "held", "expired"]
    feed = client.subscribe("p", after_version=0)
    assert [(await anext(feed)).event for _ in kinds] == kinds


async def sell_out(url):
    engine = RedisEngine(url)
    [crowd] = await engine.commit([Batch("p", [Purchase("p", f"u{number}") for number in range(30)], 1)], timeout_s=30)
    assert sum(isinstance(answer, Success) for answer in crowd) == 17
    await engine.close()


async def look_and_change(admin):
    sale = await admin.sale("p")
    assert (sale.sold, sale.held, sale.remaining, sale.state) == (19, 1, 0, "open")
    assert len([buyer async for buyer in admin.buyers("p")]) == 19
    assert [hold.user_id async for _, hold, _ in admin.holds("p")] == ["dee"]
    assert await admin.products() == await admin.audited_products() == ["p"]
    for request in (Restock("p", 5), Pause("p"), Resume("p"), Close("p")):
        await admin.change(request)


async def drift_and_repair(admin, url):
    assert (await admin.audit("p")).ok
    async with Redis.from_url(url) as client:
        await client.set("product:p:stock", 1)
        await client.lpush("product:p:buyers", "nobody")
        await client.srem("products", "p")
        await client.zrem("products_due", "p")
        await client.delete("product:p:users")
    before, after = await admin.repair("p")
    assert (before.difference_count, after.ok) == (25, True)


def test_the_picture_shown_fits_the_terminal_that_is_promised():
    shown = re.search(r"^```\n(flashsale .*?)^```", section("Watch it"), re.MULTILINE | re.DOTALL)[1].splitlines()
    assert len(shown) <= HEIGHT_MIN
    assert max(map(len, shown)) <= WIDTH_MIN
    assert f"{WIDTH_MIN} x {HEIGHT_MIN} characters" in section("Watch it")


async def repeat(admin):
    await admin.schedules.add(Schedule(name="s", every_s=1, item_count=5, numbered=True, keep_s=0))
    for due in (await admin.schedules.look()).due:
        await admin.schedules.open(due)
    sale = (await admin.schedules.look()).opened["s"]
    await admin.schedules.remove("s")
    while (await admin.schedules.look()).now_s < sale.ends_at:  # noqa: ASYNC110 - it is the store's clock
        await asyncio.sleep(0.05)
    assert await admin.schedules.retire() == 0, "there is no database"
    await admin.schedules.forget(["s"])


def test_every_command_is_shown():
    for name in cli.cli.commands:
        assert f"flashsale {name}" in README


def test_the_event_examples_decode():
    examples = re.search(r"```json\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert [type(decode_event(line.encode())).__name__ for line in examples] == ["PurchaseEvent", "SoldOutEvent"]


def test_the_urls_are_those_of_the_http_door():
    listed = [(row[0], row[1]) for row in rows("HTTP") if row[0] in {"GET", "POST", "PATCH", "DELETE"}]
    assert sorted(listed) == sorted((operation.method, operation.path) for operation in OPERATIONS)


def told(reply):
    return f"{reply.status} `{json.loads(reply.body)['message']}`"


def test_answers_over_http_are_as_the_table_says():
    table = {row[0]: row[1:] for row in rows("HTTP") if len(row) == 5 and row[0] not in {"answer", "---"}}
    refused = {kind.__struct_config__.tag: kind for kind in REFUSALS} | dict.fromkeys(FAILURES, Failed)
    assert set(table) == set(refused)
    for name, (status, kind, order, checkout) in table.items():
        given = {"opens_at": 1} if refused[name] is NotOpen else {"error": name} if refused[name] is Failed else {}
        given |= {"remaining_stock": 1, "version": 1} if refused[name] is Cancelled else {}
        answer = refused[name](**given)
        refusal = refusal_of(answer)
        assert (status, kind) == (str(refusal.status), refusal.kind)
        assert order.replace("`", "") in {"", told(order_reply(answer)).replace("`", "")}
        assert checkout.replace("`", "") == told(checkout_reply(answer)).replace("`", "")


def test_problems_of_requests_over_http_are_named():
    named = set(re.findall(r"\b(\d{3}) `([a-z-]+)`", section("HTTP")))
    fixed = [value for value in vars(session).values() if isinstance(value, Reply)]
    kinds = {(str(reply.status), json.loads(reply.body)["type"].removeprefix("urn:flashsale:")) for reply in fixed}
    assert kinds <= named
    for limit in (f"{URL_SIZE_MAX // 1024} KiB", f"{HEAD_SIZE_MAX // 1024} KiB", f"more than {HEADER_COUNT_MAX}"):
        assert limit in section("HTTP")


def test_the_curl_lines_buy(environment, home):
    commands = re.findall(r"^curl (?:.|\\\n)*?[^\\]$", section("HTTP"), re.MULTILINE)
    expected = ('"success":true', '"status":"SUCCESS"', '"checkout_code":"', '"purchase_id":"purchase_')
    assert len(commands) == len(expected) + 1
    assert call_here(["init", "iphone15", "3", "--home", str(home)], environment).returncode == 0
    hourly = ["schedule", "add", "hourly", "--every", "1h", "--items", "100", "--numbered", "--home", str(home)]
    assert call_here(hourly, environment).returncode == 0
    code = "CHECKOUT_CODE"
    flags = ["--listen", "127.0.0.1:0", "--home", str(home)]
    with ServerProcess(flags, environment=environment, log=subprocess.DEVNULL) as server:
        for command, part in zip(commands[:-1], expected, strict=True):
            here = command.replace("\\\n", " ").replace("localhost:8080", f"127.0.0.1:{server.port}")
            words = shlex.split(here.replace("CHECKOUT_CODE", code), comments=True)
            printed = subprocess.run([*words, "-s"], capture_output=True, text=True, check=True, timeout=30).stdout
            assert part in printed
            code = json.loads(printed).get("checkout_code", code)


async def test_the_client_example_buys(store_url, environment, capsys):
    source = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    async with Admin(store_url) as admin:
        await admin.init("iphone15", 1, force=True)
    with ServerProcess(["--redis", store_url, "--listen", "127.0.0.1:0"], environment=environment) as server:
        for _ in range(2):
            await asyncio.to_thread(exec, source.replace("8080", str(server.port)), {})
    assert capsys.readouterr().out.splitlines() == ["bought, 0 left", "sold out"]


async def test_the_other_client_examples_do_what_is_said(store_url, environment, product_id):
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
    with ServerProcess(["--redis", store_url, "--listen", "127.0.0.1:0"], environment=environment) as server:
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
