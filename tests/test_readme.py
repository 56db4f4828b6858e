"""The README says what is there: its tables, commands and examples are read here."""

import asyncio
import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest

from flashsale import cli
from flashsale.config import ENVIRONMENT, Config
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from flashsale.store.durability import REQUIRED, Durability
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
    named += ["flashsale/__init__.py", "flashsale/__main__.py", "flashsale/store/__init__.py"]
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


@pytest.mark.parametrize("line", re.findall(r"^flashsale [^\n#]*", section("Run a sale"), re.MULTILINE))
def test_each_command_exists(line):
    words = shlex.split(line.strip().rstrip("&"))
    command = cli.cli.commands[words[1]]
    with click.Context(command) as context:
        command.parse_args(context, words[2:])


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
