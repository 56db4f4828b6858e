"""Worker processes: started, started again, ended together, and never outliving their supervisor."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 20.0
HEAD = """
import os, signal, sys, time
from pathlib import Path
from flashsale.errors import FlashsaleError
from flashsale.supervisor import supervise

def tell(what):
    os.write(1, f"{what}\\n".encode())  # a line at once: others write there too

def until_told(ready):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    signal.signal(signal.SIGINT, lambda *_: told.append(1))
    ready()
    tell(os.getpid())  # afterwards: one that dies before it serves is not replaced
    while not told:
        time.sleep(0.01)

def serving():
    tell("all serve")
"""


@pytest.fixture
def supervisor() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a process that supervises: the text is Python, with `until_told` and `serving` at hand."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HEAD + text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def lines(process: "subprocess.Popen[str]", count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def served(process: "subprocess.Popen[str]", count: int) -> list[str]:
    """Return the pids of those that serve now; that all serve is said once, somewhere among them."""
    *pids, said = sorted(lines(process, count + 1))
    assert said == "all serve"
    return pids


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_all_serve_and_ends_them_all(
    supervisor: Callable[..., "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    process = supervisor("sys.exit(supervise([until_told] * 3, serving, stop_timeout_s=10))")
    pids = served(process, 3)
    assert len(set(pids)) == 3
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_worker_that_cannot_start_ends_them_all_with_its_sentence(
    supervisor: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = supervisor(f"""
def work(ready):
    flag = Path({str(tmp_path / "first")!r})
    if flag.exists():
        raise FlashsaleError("no room for a second one")
    flag.touch()
    until_told(ready)

sys.exit(supervise([work] * 3, serving, stop_timeout_s=10))
""")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert err == "no room for a second one\n"
    assert "all serve" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.splitlines()[0]), 0)


def test_a_worker_that_dies_is_replaced_whatever_killed_it(supervisor: Callable[..., "subprocess.Popen[str]"]) -> None:
    process = supervisor("sys.exit(supervise([until_told] * 2, serving, stop_timeout_s=10))")
    pids = served(process, 2)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        os.kill(int(pids.pop(0)), number)
        pids += lines(process, 1)
    for pid in pids:  # both at once: their deaths may come as one signal
        os.kill(int(pid), signal.SIGKILL)
    pids = lines(process, 2)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_workers_that_die_at_once_are_not_started_without_end(
    supervisor: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    count = tmp_path / "count"
    process = supervisor(f"""
def work(ready):
    with open({str(count)!r}, "a") as file:
        file.write("x")
    ready()

sys.exit(supervise([work], serving, stop_timeout_s=10))
""")
    time.sleep(2)
    begun = time.monotonic()
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert time.monotonic() - begun < 5
    assert 2 <= count.stat().st_size <= 8


def test_a_worker_that_does_not_end_is_killed_when_the_time_is_up(
    supervisor: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = supervisor("""
def work(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    tell(os.getpid())
    time.sleep(100)

sys.exit(supervise([work] * 2, serving, stop_timeout_s=0.5))
""")
    pids = served(process, 2)
    begun = time.monotonic()
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert 0.4 < time.monotonic() - begun < 10
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_those_beside_the_workers_are_told_to_end_when_the_workers_have(
    supervisor: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = supervisor("""
def slow(ready):
    until_told(ready)
    time.sleep(0.5)
    tell("a worker has ended")

def beside(ready):
    until_told(ready)
    tell("one beside has ended")

sys.exit(supervise([slow] * 2, serving, beside=[beside, beside], stop_timeout_s=30))
""")
    served(process, 4)
    process.terminate()
    assert lines(process, 4) == 2 * ["a worker has ended"] + 2 * ["one beside has ended"]
    assert process.wait(PATIENCE_S) == 0


def test_those_beside_have_the_last_third_of_the_time_when_the_workers_do_not_end(
    supervisor: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = supervisor("""
def deaf(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(os.getpid())
    ready()
    time.sleep(100)

def beside(ready):
    until_told(ready)
    tell("one beside has ended")

sys.exit(supervise([deaf], serving, beside=[beside], stop_timeout_s=1.5))
""")
    served(process, 2)
    process.terminate()
    assert lines(process, 1) == ["one beside has ended"]
    assert process.wait(PATIENCE_S) == 0


@needs_proc
def test_workers_end_by_themselves_when_the_supervisor_is_killed(
    supervisor: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = supervisor("sys.exit(supervise([until_told] * 2, serving, stop_timeout_s=10))")
    pids = served(process, 2)
    os.kill(int(pids[0]), signal.SIGKILL)  # also those that were started later
    pids = [pids[1], *lines(process, 1)]
    process.kill()
    wait_until(lambda: not any(lives(int(pid)) for pid in pids))
