"""Several worker processes: starts them, starts again those that die, ends them together.

The supervisor runs no event loop, so that forking is safe at any time. Each worker holds a pipe from it: when the
supervisor is gone, however it went, its workers drain and end too.
"""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias

from flashsale.errors import FlashsaleError
from flashsale.logs import complain

_log = logging.getLogger(__name__)

RESTART_PAUSE_S = 0.5
"""A worker that lived less than this is started again only after it."""

_POLL_S = 0.1
_ENDING = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = _ENDING | {signal.SIGCHLD}

Work: TypeAlias = Callable[[Callable[[], None]], None]
"""One worker's whole life, in a process of its own; it calls its argument once it serves."""


def supervise(
    works: Sequence[Work],
    ready: Callable[[], None],
    *,
    beside: Sequence[Work] = (),
    stop_timeout_s: float,
) -> int:
    """Run workers until SIGTERM or SIGINT; return the exit code.

    Args:
        works: what each of them does, which it does again when it is started again.
        ready: called here when all of them serve.
        beside: what one more each does, for whom nobody waits; told to end once the workers have ended, or when the
            last third of the time begins.
        stop_timeout_s: from the signal to kill -9 of what is left.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    lifeline, held = os.pipe()  # `held` stays open here alone
    workers: dict[int, tuple[float, Work]] = {}  # pid -> when it started, what it does
    try:
        for work in works:
            pid, told = _start(work, lifeline, held)
            workers[pid] = time.monotonic(), work
            serves = _serves(told)
            if serves is None:
                return 0
            if not serves:
                _, status = os.waitpid(pid, 0)
                del workers[pid]
                return os.waitstatus_to_exitcode(status) or 1
        for what in beside:
            _start_again(what, workers, lifeline, held)
        ready()
        while True:
            number = signal.sigwait(_SIGNALS)
            if number != signal.SIGCHLD:
                return 0
            dead = _dead(workers)
            for pid, code in dead:
                _log.error("worker %d ended with exit code %d; starting another", pid, code)
            ended = [workers.pop(pid) for pid, _ in dead]
            pause_s = RESTART_PAUSE_S - (time.monotonic() - max((at for at, _ in ended), default=0.0))
            if _told_to_end(pause_s):
                return 0
            for _, what in ended:
                _start_again(what, workers, lifeline, held)
    finally:
        _stop(workers, works, stop_timeout_s)
        os.close(held)
        os.close(lifeline)


def _told_to_end(within_s: float) -> bool:
    """Wait for so long, and say whether a signal to end came; it stays pending."""
    deadline = time.monotonic() + within_s
    while not signal.sigpending() & _ENDING:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _start_again(work: Work, workers: dict[int, tuple[float, Work]], lifeline: int, held: int) -> None:
    """Start a worker for whom nobody waits."""
    pid, told = _start(work, lifeline, held)
    os.close(told)  # should it not come to serve, it ends, and SIGCHLD tells that
    workers[pid] = time.monotonic(), work


def _start(work: Work, lifeline: int, held: int) -> tuple[int, int]:
    """Fork a worker; return its process id and a pipe that says when it serves."""
    told, telling = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(told)
            os.close(held)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
            work(lambda: _tell(telling))
            code = 0
        except FlashsaleError as error:
            complain(str(error))
        except BaseException:  # noqa: BLE001 - a forked child must not run on into its parent's code
            _log.exception("a worker failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(telling)
    return pid, told


def _serves(told: int) -> bool | None:
    """Wait until a new worker serves (True) or has ended (False); None when a signal says to end meanwhile."""
    try:
        while not select.select([told], [], [], _POLL_S)[0]:
            if signal.sigpending() & _ENDING:
                return None
        return os.read(told, 1) == b"!"
    finally:
        os.close(told)


def _tell(telling: int) -> None:
    with suppress(BrokenPipeError):  # the supervisor waits for the first workers only
        os.write(telling, b"!")


def _end_with(lifeline: int) -> None:
    """Wait for the supervisor's end of the pipe to go, then end this worker as a signal would."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _dead(workers: Iterable[int]) -> list[tuple[int, int]]:
    """Return (process id, exit code) of the workers that ended."""
    ended = []
    for pid in workers:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


def _stop(workers: dict[int, tuple[float, Work]], works: Sequence[Work], timeout_s: float) -> None:
    """Ask the workers to end, then those beside them, and kill those that have not when the time is up."""
    begun = time.monotonic()
    serving = {pid for pid, (_, what) in workers.items() if what in works}
    for some, until in (serving, begun + timeout_s * 2 / 3), (workers.keys() - serving, begun + timeout_s):
        for pid in some & workers.keys():
            os.kill(pid, signal.SIGTERM)
        awaited = some | serving
        while awaited & workers.keys() and time.monotonic() < until:
            for pid, _ in _dead(workers):
                del workers[pid]
            time.sleep(0.02)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
