"""The embedded store shared by processes that come, go, and are killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from flashsale.errors import StoreUnavailableError
from flashsale.store.embedded import EmbeddedStore

PATIENCE_S = 30.0

# Comes in, says so, and leaves when it is told.
USER = """
import sys
from pathlib import Path
from flashsale.store.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.acquire()
print("in", flush=True)
sys.stdin.readline()
store.release()
print("out", flush=True)
"""


class User:
    """A process that uses the store."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def comes_in(self) -> "User":
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"
        return self

    def leaves(self) -> None:
        assert self.process.communicate("\n", timeout=PATIENCE_S) == ("out\n", None)

    def is_killed(self) -> None:
        self.process.kill()
        self.process.communicate()


def store_of(home: Path) -> "redis.Redis":
    return redis.Redis(
        unix_socket_path=str(home / "valkey.sock"),
        decode_responses=True,
        socket_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),
    )


def store_pid(home: Path) -> int | None:
    """Return the process id of the store, None when there is none."""
    try:
        with store_of(home) as store:
            pid: int = store.info("server")["process_id"]
            return pid
    except RedisError:
        return None


@pytest.fixture
def home(home: Path) -> Path:
    """A directory that is not there yet."""
    return home / "home"


@pytest.fixture
def user(home: Path) -> Iterator[Callable[[], User]]:
    """Start processes that use the store in `home`."""
    users: list[User] = []

    def start() -> User:
        users.append(User(home))
        return users[-1]

    yield start
    for one in users:
        if one.process.returncode is None:
            one.is_killed()


# Coming and going


def test_the_first_user_starts_the_store_and_the_last_stops_it(home: Path, user: Callable[[], User]) -> None:
    first, second = user().comes_in(), user().comes_in()
    pid = store_pid(home)
    assert pid is not None
    with store_of(home) as store:
        store.set("kept", "yes")
    first.leaves()
    assert store_pid(home) == pid
    third = user().comes_in()
    second.leaves()
    assert store_pid(home) == pid
    third.leaves()
    assert store_pid(home) is None
    assert not (home / "valkey.sock").exists()
    again = user().comes_in()
    with store_of(home) as store:
        assert store.get("kept") == "yes"
    again.leaves()


def test_many_that_come_at_once_share_one_store_and_the_last_to_leave_stops_it(
    home: Path, user: Callable[[], User]
) -> None:
    users = [user() for _ in range(6)]
    for one in users:
        one.comes_in()
    assert store_pid(home) is not None
    assert (home / "valkey.log").read_text().count("Ready to accept connections") == 1
    for one in users:
        assert one.process.stdin is not None
        one.process.stdin.write("\n")
        one.process.stdin.flush()
    for one in users:
        one.leaves()
    assert store_pid(home) is None


def test_two_stores_in_two_directories_are_two(home: Path) -> None:
    one, other = EmbeddedStore(home), EmbeddedStore(home.parent / "other")
    one.acquire()
    other.acquire()
    try:
        assert store_pid(one.home) != store_pid(other.home)
    finally:
        one.release()
        assert store_pid(other.home) is not None
        other.release()


def test_acquiring_twice_and_releasing_twice_is_harmless(home: Path) -> None:
    store = EmbeddedStore(home)
    store.release()
    store.acquire()
    store.acquire()
    assert store_pid(home) is not None
    store.release()
    assert store_pid(home) is None
    store.release()
    store.acquire()
    assert store_pid(home) is not None
    store.release()


# Killing


def test_a_user_that_is_killed_counts_no_more(home: Path, user: Callable[[], User]) -> None:
    killed, other = user().comes_in(), user().comes_in()
    pid = store_pid(home)
    killed.is_killed()
    assert store_pid(home) == pid
    other.leaves()
    assert store_pid(home) is None


def test_a_store_whose_only_user_was_killed_is_found_by_the_next(home: Path, user: Callable[[], User]) -> None:
    killed = user().comes_in()
    pid = store_pid(home)
    killed.is_killed()
    following = user().comes_in()
    assert store_pid(home) == pid
    following.leaves()
    assert store_pid(home) is None


def test_a_store_that_was_killed_is_started_again_with_everything_it_confirmed(
    home: Path, user: Callable[[], User]
) -> None:
    other = user().comes_in()
    store = EmbeddedStore(home)
    store.acquire()
    for number in range(3):
        pid = store_pid(home)
        assert pid is not None
        with store_of(home) as client:
            for _ in range(100):
                client.incr("count")
        os.kill(pid, signal.SIGKILL)
        store.acquire()
        assert store_pid(home) not in {None, pid}
        with store_of(home) as client:
            assert int(client.get("count")) == 100 * (number + 1)
    store.release()
    assert store_pid(home) is not None, "somebody else is still there"
    other.leaves()
    assert store_pid(home) is None


def test_leaving_a_store_that_was_killed_or_hangs_does_not_hang(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    pid = store_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        store.release()
        assert time.monotonic() - begun < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    store.acquire()
    pid = store_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    store.release()
    assert store_pid(home) is None


def test_leaving_a_directory_that_was_deleted_is_no_error(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    pid = store_pid(home)
    assert pid is not None
    shutil.rmtree(home)
    try:
        store.release()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# What it promises, and what it cannot do


def test_the_directory_is_private_and_every_answer_is_on_disk(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    try:
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "valkey.sock").stat().st_mode & 0o077 == 0
        with store_of(home) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("port") == {"port": "0"}, "it listens on the network"
    finally:
        store.release()


@pytest.mark.parametrize("name", ["with space", "ünï", "q'uo\"te", "per%20cent", "hash#mark?", "-dash"])
def test_a_directory_may_be_called_anything(home: Path, name: str) -> None:
    place = home.parent / name
    store = EmbeddedStore(place)
    store.acquire()
    try:
        with redis.Redis.from_url(store.url) as client:
            assert client.ping()
        assert store_pid(place) is not None
    finally:
        store.release()
    assert store_pid(place) is None


def test_a_directory_with_too_long_a_name_is_refused_with_a_way_out(home: Path) -> None:
    EmbeddedStore(Path("/" + "a" * 80))
    with pytest.raises(StoreUnavailableError, match=r"too long a name.*--home"):
        EmbeddedStore(home / ("a" * 100))
    with pytest.raises(StoreUnavailableError, match="too long a name"):
        EmbeddedStore(Path("/" + "é" * 50))


def test_a_directory_that_cannot_be_is_refused(home: Path) -> None:
    home.parent.joinpath("file").write_text("")
    for place in (home.parent / "file", home.parent / "file" / "home", Path("/proc/nowhere")):
        with pytest.raises(StoreUnavailableError, match="cannot use the directory"):
            EmbeddedStore(place).acquire()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to root")
def test_a_directory_that_is_not_ours_is_refused(home: Path) -> None:
    home.mkdir(mode=0o500)
    with pytest.raises(StoreUnavailableError, match="cannot use the directory"):
        EmbeddedStore(home).acquire()


def test_a_file_that_is_damaged_in_the_middle_is_not_sold_from(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    with store_of(home) as client:
        for number in range(100):
            client.set(f"key-{number}", "value" * 10)
    store.release()
    (written,) = (home / "data").rglob("*.incr.aof")
    data = written.read_bytes()
    written.write_bytes(data[:1000] + b"rubbish" + data[1007:])
    with pytest.raises(StoreUnavailableError, match=r"does not start; see .*valkey\.log"):
        store.acquire()
    store.release()
    written.write_bytes(data)
    store.acquire()
    with store_of(home) as client:
        assert client.dbsize() == 100
    store.release()


def test_a_write_cut_short_by_a_power_cut_is_dropped_and_the_rest_is_kept(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    with store_of(home) as client:
        for number in range(100):
            client.set(f"key-{number}", "value")
    store.release()
    (written,) = (home / "data").rglob("*.incr.aof")
    written.write_bytes(written.read_bytes()[:-9])
    store.acquire()
    with store_of(home) as client:
        assert client.dbsize() == 99
    store.release()


def test_a_store_that_refuses_to_end_at_first_is_asked_again(home: Path) -> None:
    store = EmbeddedStore(home)
    store.acquire()
    with redis.Redis.from_url(store.url) as client:
        pid = client.info("server")["process_id"]
        for number in range(200):
            client.set(f"key-{number}", "x" * 100_000)
        client.config_set("rdb-key-save-delay", 2_000)  # microseconds for each key: writing takes a while
        client.config_set("appendonly", "no")
        client.config_set("appendonly", "yes")  # it writes a first file now, and does not end meanwhile
    store.release()
    assert (
        not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    )
