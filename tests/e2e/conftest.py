"""Clients for the end-to-end tests: sockets written by hand, and the processes of a server."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from flashsale.launch import ServerProcess

PATIENCE_S = 30.0  # for what is right to come on a busy machine; no promise is measured with it


def without_version(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what differs from run to run, which must have its shape."""
    if answer.get("status") == "SUCCESS":
        assert re.fullmatch(r"[0-9a-f]{11}-[0-9a-f]{10}-[0-9a-f]{8}-.+", answer["order_id"], re.DOTALL)
        assert int(answer.pop("order_id")[12:22], 16) == answer.pop("version")
    elif answer.get("status") == "OK":
        assert answer.pop("version") >= 0
    return answer


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
        return kind, without_version(json.loads(self.read(size)))

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


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    """A connection to that server."""
    with Wire(server.port) as connection:
        yield connection


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
def run_serve(environment: dict[str, str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `flashsale serve` that is to fail, to its end."""

    def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flashsale", "serve", *arguments],
            env=environment | settings,
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
