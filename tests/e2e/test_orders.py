"""Every order that a buyer was told of is one row in the database, whatever dies meanwhile, and there is no other."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale.errors import DatabaseError
from flashsale.launch import ServerProcess
from flashsale.orders.database import Database, database_url
from tests.orders import plain

PURCHASE = 1
PATIENCE_S = 30.0
END_S = 10.0
StartServer = Callable[..., ServerProcess]
Until = Callable[..., None]
Connect = Callable[..., Any]
Children = Callable[[int], list[int]]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, home: Path) -> str:
    """The URL of an empty database; tests/faults/test_matrix.py kills movers of PostgreSQL too."""
    if request.param == "sqlite":
        return f"sqlite:///{home / 'elsewhere.db'}"
    made: str = request.getfixturevalue({"postgresql": "postgres", "mariadb": "mariadb"}[request.param]).make_database()
    return made


not_postgresql = pytest.mark.parametrize("url", ["sqlite", "mariadb"], indirect=True)


def read(url: str | None, home: Path) -> plain.Rows:
    """Return the rows; none while the tables are not there."""

    async def ask() -> plain.Rows:
        database = Database(database_url(url, home))
        try:
            return await plain.read(database)
        except DatabaseError:
            return {"products": [], "orders": [], "holds": []}
        finally:
            await database.close()

    return asyncio.run(ask())


def order_ids(rows: plain.Rows) -> list[str]:
    return sorted(row["order_id"] for row in rows["orders"])


class Buyers:
    """Some who buy one after the other, each until he is told that he has, and remember what they were told."""

    def __init__(self, connect: Connect, ports: list[int], product_id: str, *, count: int, pause_s: float) -> None:
        self._connect = connect
        self._product_id = product_id
        self._pause_s = pause_s
        self._enough = threading.Event()
        self.told: list[str] = []
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, ports[number % len(ports)])) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, port: int) -> None:
        try:
            turn = 0
            while not self._enough.is_set():
                turn += 1
                self.told.append(self._buy(port, f"user-{number}-{turn}"))
                time.sleep(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - told at the end
            self.failures.append(error)

    def _buy(self, port: int, user_id: str) -> str:
        """Ask, again with the same request id while the answer is lost or uncertain, until the units are sold."""
        deadline = time.monotonic() + PATIENCE_S
        asked = {"product_id": self._product_id, "user_id": user_id, "request_id": user_id}
        while time.monotonic() < deadline:
            try:
                with self._connect(port) as connection:
                    connection.send(connection.frame(PURCHASE, asked))
                    answer = json.loads(connection.receive_raw()[1])
                    if answer["status"] == "SUCCESS":
                        return str(answer["order_id"])
            except (OSError, EOFError):
                pass
            time.sleep(0.05)
        raise AssertionError("never sold")

    def end(self) -> list[str]:
        """Return the order ids of which they were told."""
        self._enough.set()
        for thread in self._threads:
            thread.join()
        assert not self.failures, self.failures
        return sorted(self.told)


def open_sale(home: Path, product_id: str, environment: dict[str, str], *flags: str) -> None:
    command = [sys.executable, "-m", "flashsale", "init", product_id, "100000", *(flags or ("--home", str(home)))]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)


def check(rows: plain.Rows, told: list[str]) -> None:
    assert order_ids(rows) == told
    sold = sum(row["quantity"] for row in rows["orders"] if row["status"] == "confirmed")
    assert [row["sold"] for row in rows["products"]] == [sold]


def test_what_is_bought_is_soon_a_row_and_a_server_that_is_told_to_end_leaves_nothing_running(
    start_server: StartServer,
    connect: Connect,
    until: Until,
    home: Path,
    environment: dict[str, str],
    product_id: str,
    url: str,
    children: Children,
    lives: Callable[[int], bool],
) -> None:
    server = start_server("--orders", "--database", url)
    open_sale(home, product_id, environment)
    with connect(server.port) as client:
        for number in range(20):
            assert client.buy(product_id, f"user-{number}")["status"] == "SUCCESS"
    until(lambda: len(order_ids(read(url, home))) == 20)
    check(read(url, home), order_ids(read(url, home)))
    processes = children(server.pid)
    assert processes
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < END_S
    assert not any(map(lives, processes))


def test_without_a_url_the_rows_are_in_a_file_beside_the_store(
    start_server: StartServer, connect: Connect, until: Until, home: Path, environment: dict[str, str], product_id: str
) -> None:
    server = start_server("--orders", "--workers", "2")
    open_sale(home, product_id, environment)
    with connect(server.port) as client:
        assert client.buy(product_id, "u")["status"] == "SUCCESS"
    until(lambda: len(order_ids(read(None, home))) == 1)
    assert (home / "orders.db").exists()


@not_postgresql
def test_every_order_told_is_one_row_though_the_mover_and_the_store_are_killed(
    start_server: StartServer,
    connect: Connect,
    until: Until,
    home: Path,
    environment: dict[str, str],
    store: "redis.Redis",
    product_id: str,
    url: str,
    children: Children,
) -> None:
    server = start_server("--orders", "--database", url)
    open_sale(home, product_id, environment)
    until(lambda: len(children(server.pid)) == 2)
    buyers = Buyers(connect, [server.port], product_id, count=4, pause_s=0.01)
    try:
        for _ in range(2):
            before = len(buyers.told)
            until(lambda before=before: len(buyers.told) >= before + 20)
            mover = max(children(server.pid))  # it is started last
            os.kill(mover, signal.SIGKILL)
            until(lambda mover=mover: len(children(server.pid)) == 2 and mover not in children(server.pid))
        before = len(buyers.told)
        os.kill(store.info("server")["process_id"], signal.SIGKILL)
        until(lambda: len(buyers.told) >= before + 20)
    finally:
        told = buyers.end()
    until(lambda: len(order_ids(read(url, home))) >= len(told))
    check(read(url, home), told)


@pytest.fixture
def start_worker(home: Path, environment: dict[str, str]) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `flashsale worker`; returns it once it moves."""
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "flashsale", "worker", "--home", str(home), *arguments]
            log = stack.enter_context((home / "worker.log").open("ab"))
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Worker started")
            return process

        yield start


@not_postgresql
def test_two_workers_beside_servers_that_move_nothing_make_one_row_of_each_order(
    start_server: StartServer,
    start_worker: Callable[..., "subprocess.Popen[str]"],
    connect: Connect,
    until: Until,
    home: Path,
    environment: dict[str, str],
    product_id: str,
    url: str,
) -> None:
    server = start_server("--no-orders", "--database", url)
    open_sale(home, product_id, environment)
    workers = [start_worker("--database", url) for _ in range(2)]
    buyers = Buyers(connect, [server.port], product_id, count=4, pause_s=0.01)
    try:
        until(lambda: len(buyers.told) >= 30)
        workers[0].kill()
        until(lambda: len(buyers.told) >= 60)
        workers.append(start_worker("--database", url))
        until(lambda: len(buyers.told) >= 90)
    finally:
        told = buyers.end()
    until(lambda: len(order_ids(read(url, home))) >= len(told))
    check(read(url, home), told)
    for worker in workers[1:]:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(END_S) == 0


def test_a_server_that_moves_nothing_makes_no_tables(
    start_server: StartServer, connect: Connect, home: Path, environment: dict[str, str], product_id: str
) -> None:
    server = start_server("--no-orders")
    open_sale(home, product_id, environment)
    with connect(server.port) as client:
        assert client.buy(product_id, "u")["status"] == "SUCCESS"
    assert not (home / "orders.db").exists()
