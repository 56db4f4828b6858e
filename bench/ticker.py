"""A callback at a steady pace, finer than the whole milliseconds in which the event loop's own timers count.

On Linux a timerfd, read by the loop like a socket; elsewhere an interval timer with SIGALRM, which takes twice the CPU.
"""

import asyncio
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CLOCK_MONOTONIC = 1
_COUNTER_SIZE = 8


@contextmanager
def ticking(callback: Callable[[], None], *, first_s: float, interval_s: float) -> Iterator[None]:
    """Call back at the pace for as long as the context lasts; ticks that were missed are not made up for.

    Args:
        callback: called in the running event loop.
        first_s: from now to the first tick.
        interval_s: from tick to tick.
    """
    with (_timer_descriptor if sys.platform == "linux" else _alarm)(callback, max(first_s, 1e-6), interval_s):
        yield


@contextmanager
def _timer_descriptor(callback: Callable[[], None], first_s: float, interval_s: float) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    libc = ctypes.CDLL(None, use_errno=True)  # Python has its own timerfd from 3.13 on
    timer = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    times = struct.pack("qqqq", *divmod(round(interval_s * 1e9), 10**9), *divmod(round(first_s * 1e9), 10**9))
    if timer < 0 or libc.timerfd_settime(timer, 0, times, None):
        raise OSError(ctypes.get_errno(), "no timerfd")

    def tick() -> None:
        os.read(timer, _COUNTER_SIZE)
        callback()

    loop.add_reader(timer, tick)
    try:
        yield
    finally:
        loop.remove_reader(timer)
        os.close(timer)


@contextmanager
def _alarm(callback: Callable[[], None], first_s: float, interval_s: float) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGALRM, callback)
    signal.setitimer(signal.ITIMER_REAL, first_s, interval_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.remove_signal_handler(signal.SIGALRM)
