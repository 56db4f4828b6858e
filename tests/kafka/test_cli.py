"""`relay` and `worker --from-kafka` as in the README and the compose file, and what they refuse."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from flashsale.cli import cli
from flashsale.errors import InvalidValueError
from flashsale.kafka.brokers import Topic
from flashsale.orders.database import Database, database_url
from flashsale.store.admin import Admin
from tests.kafka.cluster import Cluster
from tests.orders import plain
from tests.test_compose import COMPOSE

PATIENCE_S = 30.0
README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def clean(**more: str) -> dict[str, str]:
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "DATABASE_URL", "POSTGRES_URL", "DB_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


NO_BROKER = "is no broker: give HOST:PORT, or several of them with commas"


@pytest.mark.parametrize(
    ("brokers", "name", "told"),
    [
        ("", "orders", f"'' {NO_BROKER}"),
        ("kafka", "orders", f"'kafka' {NO_BROKER}"),
        ("a:1,b:70000", "orders", f"'b:70000' {NO_BROKER}"),
        ("a:1,", "orders", f"'' {NO_BROKER}"),
        ("user:secret@b:9092", "orders", f"'user:secret@b:9092' {NO_BROKER}"),
        ("a:1", "my orders", "'my orders' is no topic: its name has letters, digits, '.', '_' and '-', at most 249"),
        ("a:1", "..", "'..' is no topic: its name has letters, digits, '.', '_' and '-', at most 249"),
    ],
)
def test_what_cannot_be_a_topic_is_said_in_one_sentence(brokers: str, name: str, told: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Topic(brokers, name)
    assert str(caught.value) == told


def test_brokers_are_taken_in_every_form() -> None:
    assert Topic("kafka.example:9092,10.0.0.1:1,[::1]:65535", "orders").brokers.count(":") == 5


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("relay", "Missing option '--kafka'."),
        ("worker --group g", "--topic and --group are for --from-kafka"),
        ("worker --topic t", "--topic and --group are for --from-kafka"),
        ("worker --from-kafka a:1 --group ''", "--group is empty: give it a name, or leave it out"),
    ],
)
def test_options_that_are_missing_or_for_another_way_are_said_in_one_sentence(command: str, told: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        cli.main(shlex.split(command), standalone_mode=False)
    assert caught.value.format_message() == told


def test_without_the_extra_one_sentence_says_how_to_have_it() -> None:
    without = "import sys; sys.modules['aiokafka'] = None; from flashsale.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", without, "relay", "--kafka", "a:1"],
        env=clean(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    told = "a topic needs a client of Kafka: pip install 'flashsale[kafka]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", told)


@pytest.fixture
def start(home: Path) -> Iterator[Any]:
    """Start a command; each must end with 0 when it is told to."""
    with ExitStack() as stack:

        def end(process: "subprocess.Popen[bytes]") -> None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0

        def run(arguments: list[str], **settings: str) -> None:
            log = stack.enter_context((home / "log").open("ab"))
            command = [sys.executable, "-m", "flashsale", *arguments]
            process = subprocess.Popen(command, env=clean(**settings), stdout=log, stderr=log)
            stack.callback(end, process)

        yield run


def has_order(url: str) -> bool:
    """Wait for the product in the database."""

    async def look() -> bool:
        database = Database(database_url(url, Path()))
        try:
            await database.upgrade()
            return bool((await plain.read(database, "p"))["products"])
        finally:
            await database.close()

    deadline = time.monotonic() + PATIENCE_S
    while not asyncio.run(look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


async def open_sale(url: str) -> None:
    async with Admin(url) as admin:
        await admin.init("p", 3)


def test_the_commands_of_the_readme_are_those_of_the_compose_file() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    shown = README.split("### Through Kafka\n")[1].split("\n## ")[0]
    commands = [shlex.split(line) for line in re.findall(r"^flashsale (.*)", shown, re.MULTILINE)]
    relay, worker = [[word.replace("kafka.example", "kafka") for word in command] for command in commands]
    assert relay == services["relay"]["command"]
    assert worker[:-2] == services["worker"]["command"]
    assert worker[-2:] == ["--database", "postgresql://shop@db.example/shop"]


def words_of(service: dict[str, Any]) -> list[str]:
    return [*service["command"], *service["environment"].values()]


def test_the_services_of_the_compose_file_move_orders(
    cluster: Cluster, name: str, start: Any, start_store: Any, postgres: Any
) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    port = start_store(*services["redis"]["command"][1:])
    url = postgres.make_database()
    ours = {
        "kafka:9092": cluster.brokers,
        "orders": name,
        "redis:6379": f"127.0.0.1:{port}",
        "postgresql://shop:shop@postgres/shop": url,
        "${LOG_LEVEL:-info}": "info",
    }
    assert set(ours) <= {word for it in ("worker", "relay") for word in words_of(services[it])}
    for service in ("worker", "relay"):  # in any order: each waits for what is not there yet
        settings = {key: ours.get(value, value) for key, value in services[service]["environment"].items()}
        start([ours.get(word, word) for word in services[service]["command"]], **settings)
    asyncio.run(open_sale(f"redis://127.0.0.1:{port}"))
    assert has_order(url)
