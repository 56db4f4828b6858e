"""Starts a real server in a process of its own, for the demo, the benchmark and the tests."""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from flashsale.errors import FlashsaleError

_LINE = re.compile(r"Server initialized - Listening on (.*):(\d+), Redis: (.*)")


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, have as many open connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS says "unlimited" and then refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would configure a server."""
    hidden = ("FLASHSALE_", "REDIS_", "LISTEN_ADDR")
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
    ) -> None:
        """Start it, and wait for the line that says where it listens.

        Args:
            arguments: flags of `serve`.
            command: another server that prints such a line, for comparison.
            environment: instead of this process's own.
            log: a file descriptor for its stderr, such as subprocess.DEVNULL.

        Raises:
            FlashsaleError: it ended without listening; it has said why on its stderr.
        """
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        assert self._process.stdout is not None
        match = _LINE.match(self._process.stdout.readline())
        if match is None:
            self.stop()
            raise FlashsaleError("the server did not start")
        self.host = match[1].strip("[]") or "127.0.0.1"
        self.port = int(match[2])
        self.store = match[3]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self.wait()

    def stop(self, timeout_s: float = 12.0) -> int:
        """End it as an operator does, with SIGTERM; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 12.0) -> int:
        """Wait for its end; return its exit code."""
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
