"""Starts a real server in a process of its own, for the demo, the benchmark and the tests."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import Self

from flashsale.errors import FlashsaleError

START_TIMEOUT_S = 90.0
"""The embedded store alone has a minute to load its file."""
STOP_TIMEOUT_S = 90.0
"""Longer than the longest drain_timeout_s, after which the embedded store is stopped too."""

_LINE = re.compile(
    r"Server initialized - Listening on (.*):(\d+), Redis: (.*?)(?:, HTTP: .*:(\d+))?(?:, gRPC: .*:(\d+))?\s*"
)
_READ_SIZE = 4096
_GIVE_UP_TIMEOUT_S = 15.0  # for one that never served, and so has nobody to answer


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, have as many open connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS says "unlimited" and then refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would configure a server."""
    hidden = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR", "DATABASE_URL", "POSTGRES_URL", "DB_", "LOG_LEVEL", "PORT")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


class ServerProcess:
    """`flashsale serve` as a child process; a context manager that stops it.

    Its log goes to this process's stderr, or to `log` when given.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        command: Sequence[str] = (sys.executable, "-m", "flashsale", "serve"),
        environment: Mapping[str, str] | None = None,
        log: int | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Start it, and wait for the line that says where it listens.

        Args:
            arguments: flags of `serve`.
            command: another server that prints such a line, for comparison.
            environment: instead of this process's own.
            log: a file descriptor for its stderr, such as subprocess.DEVNULL.
            start_timeout_s: how long to wait for the line.

        Raises:
            FlashsaleError: it ended without listening, of which it has said why on its stderr, or it hangs.
        """
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            match = _LINE.fullmatch(self._read_line(start_timeout_s))
            if match is None:
                raise FlashsaleError("the server did not start")
        except BaseException:
            self.stop(_GIVE_UP_TIMEOUT_S)
            raise
        self.host = match[1].strip("[]") or "127.0.0.1"
        self.port = int(match[2])
        self.store = match[3]
        self.http_port = int(match[4] or self.port)
        self.grpc_port = int(match[5] or 0)
        """0 when there is no gRPC."""

    def _read_line(self, timeout_s: float) -> str:
        """Return the first line that it prints, or what there is of it when it ends before."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        line = b""
        with DefaultSelector() as selector:
            selector.register(self._process.stdout, EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise FlashsaleError(f"the server did not start within {timeout_s:g} s")
                data = os.read(self._process.stdout.fileno(), _READ_SIZE)
                if not data:
                    break
                line += data
        return line.decode(errors="replace")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it as an operator does, with SIGTERM, and with kill -9 when it takes too long; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end, which kill -9 brings when it takes too long; return its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()
