"""What a run needs around it: a temporary home on a real disk, the embedded store, a server process."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flashsale.backends import Store, open_store
from flashsale.config import Config, load_config
from flashsale.errors import FlashsaleError
from flashsale.launch import ServerProcess, clean_environment

SERVE = (sys.executable, "-m", "flashsale", "serve")
_DISK_DIRECTORY = Path("/var/tmp")
"""Kept over a restart, so never in memory as /tmp often is: there an fsync would cost nothing. Short, too."""
_REPOSITORY = Path(__file__).parent.parent
_LOG_TAIL_SIZE = 2_000


def child_environment() -> dict[str, str]:
    """Return the environment of our child processes: none of the user's settings, and this package in reach."""
    environment = clean_environment()
    environment["FLASHSALE_ORDERS"] = "false"  # what moves orders into a database would share the two cores
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{_REPOSITORY}{os.pathsep}{path}" if path else str(_REPOSITORY)
    return environment


def home_config(home: Path) -> Config:
    """Return the settings of a server on the embedded store in that directory."""
    return load_config(None, {}, {"home": str(home), "listen": "127.0.0.1:0"})


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a fresh directory, which is gone afterwards."""
    usable = _DISK_DIRECTORY.is_dir() and os.access(_DISK_DIRECTORY, os.W_OK)
    home = Path(tempfile.mkdtemp(prefix="fs-", dir=_DISK_DIRECTORY if usable else None))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def temporary_store() -> Iterator[tuple[Path, Store]]:
    """Yield an embedded store in a directory of its own, and that directory; both are gone afterwards."""
    with temporary_home() as home, open_store(home_config(home)) as store:
        yield home, store


@contextmanager
def started_server(home: Path, command: Sequence[str] = SERVE) -> Iterator[ServerProcess]:
    """Yield a server on a free port of loopback with its store in `home`; it is stopped afterwards.

    Raises:
        FlashsaleError: it does not start; the text has the end of its log.
    """
    log_path = home / "server.log"
    with log_path.open("ab") as log:
        try:
            server = ServerProcess(
                ["--listen", "127.0.0.1:0", "--home", str(home)],
                command=command,
                environment=child_environment(),
                log=log.fileno(),
            )
        except FlashsaleError as error:
            said = log_path.read_text(errors="replace")[-_LOG_TAIL_SIZE:].strip()
            raise FlashsaleError(f"{error}: {said}") from error
    with server:
        yield server
