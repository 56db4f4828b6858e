"""Real database servers, each in a directory of its own: what a measurement or a test of the orders stands on."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from flashsale.errors import FlashsaleError

PATIENCE_S = 30.0
_POSTGRES_DIRS = "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/bin", "/opt/homebrew/bin"


class MissingError(FlashsaleError):
    """This machine has no such server."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not installed here")
        self.name = name


class Server:
    """A server on a loopback port and a socket, run by an account without rights.

    One that is not durable writes to the page cache alone, which kill -9 leaves in order and a power cut does not.
    """

    dialect: str
    _account: str
    _STOP: signal.Signals
    _CLOSE: signal.Signals

    def __init__(self, place: Path = Path("/tmp"), *, durable: bool = False) -> None:
        """Install it in a new directory in `place`, and start it; raises MissingError."""
        self._durable = durable
        self._processes: list[subprocess.Popen[bytes]] = []
        self._numbers = count(1)
        self.directory = Path(tempfile.mkdtemp(prefix=f"fs-{self.dialect[:2]}-", dir=place))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:  # which they refuse to run as
            account = pwd.getpwnam(self._account)
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self._who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [account.pw_gid]}
        try:
            self._install()
            self.start()
        except BaseException:
            self.close()
            raise

    def _install(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def do(self, statement: str, database: str = "") -> str:
        """Run a statement as the administrator; return what it prints."""
        raise NotImplementedError

    def make_database(self) -> str:
        """Make an empty database; return its URL."""
        raise NotImplementedError

    def _run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.directory, timeout=PATIENCE_S, check=False, **self._who
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        said: str = done.stdout
        return said.strip()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._processes[-1].pid

    def start(self) -> None:
        """Start it, if need be again until what a killed one left is gone, and wait until it answers."""
        deadline = time.monotonic() + PATIENCE_S
        with (self.directory / "server.log").open("ab") as log:
            while True:
                if not self._processes or self._processes[-1].poll() is not None:
                    command = self._command()
                    self._processes.append(
                        subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory, **self._who)
                    )
                try:
                    self.do("SELECT 1")
                    return
                except RuntimeError:
                    assert time.monotonic() < deadline, (self.directory / "server.log").read_text(errors="replace")
                    time.sleep(0.05)

    def stop(self) -> None:
        """End it as an operator does."""
        self._end(self._STOP)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End it at once; what it kept goes with it."""
        self._end(self._CLOSE)
        shutil.rmtree(self.directory, ignore_errors=True)


class PostgresServer(Server):
    """PostgreSQL, from the machine's own binaries."""

    dialect = "postgresql"
    _account = "postgres"
    _STOP = signal.SIGINT  # does not wait for its clients
    _CLOSE = signal.SIGQUIT

    def _install(self) -> None:
        found = [path for place in _POSTGRES_DIRS for path in Path("/").glob(f"{place[1:]}/initdb")]
        if not found or shutil.which("psql") is None:
            raise MissingError("PostgreSQL")
        self._binaries = found[-1].parent
        options = ["--encoding=UTF8", "--locale=C", "--username=admin", "--auth=trust", "--no-sync"]
        self._run(self._binaries / "initdb", "-D", self.directory / "data", *options)

    def _command(self) -> list[str]:
        place = ["-D", str(self.directory / "data"), "-k", str(self.directory), "-p", str(self.port), "-h", "127.0.0.1"]
        settings = ["shared_buffers=32MB", f"fsync={'on' if self._durable else 'off'}"]
        return [str(self._binaries / "postgres"), *place, *(word for value in settings for word in ("-c", value))]

    def do(self, statement: str, database: str = "") -> str:
        """Run a statement as the administrator; return what it prints."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self.directory), "-p", str(self.port)]
        return self._run("psql", *options, "-U", "admin", "-d", database or "postgres", "-c", statement)

    def make_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"shop{next(self._numbers)}"
        self.do(f"CREATE DATABASE {name}")
        return f"postgresql://admin@127.0.0.1:{self.port}/{name}"


class MariaServer(Server):
    """MariaDB, likewise."""

    dialect = "mariadb"
    _account = "mysql"
    _STOP = signal.SIGTERM
    _CLOSE = signal.SIGKILL

    def _install(self) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        server, installer = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
        if server is None or installer is None or shutil.which("mariadb") is None:
            raise MissingError("MariaDB")
        self._binary = server
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self._run(installer, "--no-defaults", f"--datadir={self.directory / 'data'}", *options)

    def _command(self) -> list[str]:
        place = [f"--datadir={self.directory / 'data'}", f"--socket={self.directory / 'm.sock'}", f"--port={self.port}"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--skip-log-bin"]
        flush = f"--innodb-flush-log-at-trx-commit={1 if self._durable else 2}"
        mode = "--sql-mode=STRICT_TRANS_TABLES"
        return [self._binary, "--no-defaults", *place, "--bind-address=127.0.0.1", *small, flush, mode]

    def do(self, statement: str, database: str = "") -> str:
        """Run a statement as the administrator; return what it prints."""
        options = ["--no-defaults", f"--socket={self.directory / 'm.sock'}", "-u", "root", "-N", "-B"]
        return self._run("mariadb", *options, *([database] if database else []), "-e", statement)

    def make_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"shop{next(self._numbers)}"
        self.do(
            f"CREATE DATABASE {name} CHARACTER SET latin1;"
            f"CREATE OR REPLACE USER admin@'127.0.0.1' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO admin@'127.0.0.1'"
        )
        return f"mariadb://admin:secret@127.0.0.1:{self.port}/{name}"
