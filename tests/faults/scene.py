"""What faults are done to: two servers on one embedded store, a mover beside the first, and a database."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis

from bench.databases import Server
from flashsale import crash
from flashsale.launch import ServerProcess
from flashsale.orders.database import Database, database_url

PATIENCE_S = 30.0
SECOND_NS = 1_000_000_000
KILLED = "exit code -9"
"""In the log of a server whose worker, or mover, was killed."""


def now() -> int:
    """Return the clock of the record, in ns."""
    return time.monotonic_ns()


def until(holds: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until something holds that only looking can tell."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"it never came: {what}"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Return the living children of a process, the youngest last."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("needs /proc to find the children of a process")
    return sorted(int(child) for child in found.read_text().split())


class Scene:
    """The processes; whoever breaks one mends it. All methods block."""

    def __init__(
        self,
        place: Path,
        environment: dict[str, str],
        *,
        home: Path | None = None,
        sql: Server | None = None,
        durability: str = "local",
        orders: bool = True,
    ) -> None:
        """Start them.

        Args:
            place: a directory for the logs, and for whatever is not told where to be.
            environment: of the processes.
            home: of the store.
            sql: has the database of the orders; else they are in a file.
            durability: what the servers promise.
            orders: whether they are moved.
        """
        self.home = home or place / "home"
        self.home.mkdir(exist_ok=True)
        self.url = f"unix://{self.home / 'valkey.sock'}"
        self.sql = sql
        self.database_url = sql.make_database() if sql else f"sqlite:///{place / 'orders.db'}"
        self.moves = orders
        self._place = place
        self._environment = environment
        self.durability = durability
        self._stack = ExitStack()
        self.store = self._stack.enter_context(
            redis.Redis(
                unix_socket_path=self.url.removeprefix("unix://"), decode_responses=True, socket_timeout=PATIENCE_S
            )
        )
        self.servers: list[ServerProcess] = []
        self.mover = 0
        """The process id of the mover beside the first server."""
        try:
            for number in range(2):
                self.start(number)
        except BaseException:
            self.close()
            raise

    @property
    def database_name(self) -> str:
        """Which database it is."""
        return self.database_url.partition(":")[0] if self.moves else "none"

    @property
    def ports(self) -> list[int]:
        """Where the servers listen, now and after each start."""
        return [server.port for server in self.servers]

    def open_database(self) -> Database:
        """Return the database of the orders, for looking at it."""
        return Database(database_url(self.database_url, self._place))

    def close(self) -> None:
        """End everything."""
        for server in self.servers:
            for pid in (server.pid, *children_of(server.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            server.stop()
        self._stack.close()

    # The servers

    def start(self, number: int, **settings: str) -> None:
        """Start a server, on the port that it had before."""
        port = self.servers[number].port if number < len(self.servers) else 0
        orders = ["--orders", "--database", self.database_url] if self.moves and number == 0 else ["--no-orders"]
        flags = ["--home", str(self.home), "--listen", f"127.0.0.1:{port}", "--durability", self.durability, *orders]
        with self._log(number).open("ab") as log:
            server = ServerProcess(flags, environment=self._environment | settings, log=log.fileno())
        self.servers[number:] = [server, *self.servers[number + 1 :]]
        if number == 0 and self.moves:
            self.mover = children_of(server.pid)[-1]  # it is started last

    def kill(self, number: int) -> None:
        """End a server with all that belongs to it, as kill -9 does."""
        server = self.servers[number]
        for pid in (server.pid, *children_of(server.pid)):
            os.kill(pid, signal.SIGKILL)
        server.wait()

    def _log(self, number: int) -> Path:
        return self._place / f"server-{number}.log"

    def told(self, number: int, words: str) -> int:
        """Return how often a server's log has these words."""
        return self._log(number).read_text(errors="replace").count(words)

    def crash(self, label: str, times: int, *, at: int) -> None:
        """Start the first server anew, and wait until its processes have died at this label so many times."""
        self.kill(0)
        before = self.told(0, KILLED)
        self.start(0, **{crash.VARIABLE: f"{label}:{at}"})
        until(lambda: self.told(0, KILLED) >= before + times, f"a death at {label}")

    def restart(self) -> None:
        """Start the first server anew, as it is meant to be."""
        self.kill(0)
        self.start(0)

    def start_worker(self, **settings: str) -> "subprocess.Popen[bytes]":
        """Start one more mover."""
        command = [sys.executable, "-m", "flashsale", "worker", "--home", str(self.home)]
        with (self._place / "worker.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--database", self.database_url],
                env=self._environment | settings,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    # The store

    def store_pid(self) -> int:
        """Return the process id of the store."""
        found: int = self.store.info("server")["process_id"]
        return found

    def slow_disk(self, inject: str) -> "subprocess.Popen[str]":
        """Do something to each fdatasync of the store until it dies, or the caller ends what is returned."""
        if shutil.which("strace") is None:
            pytest.skip("needs strace to tamper with fdatasync")
        command = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-e", f"inject=fdatasync:{inject}", "-o", "/dev/null"]
        tracer = subprocess.Popen([*command, "-p", str(self.store_pid())], stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            tracer.wait()
            pytest.skip(f"strace may not tamper with fdatasync here: {line.strip()}")
        self._stack.callback(tracer.communicate)
        self._stack.callback(tracer.terminate)
        return tracer
