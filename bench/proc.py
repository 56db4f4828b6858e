"""What a process has used so far, read from Linux' /proc."""

import os
from pathlib import Path

from flashsale.errors import FlashsaleError

CPU_STEP_S = 1 / os.sysconf("SC_CLK_TCK")
"""CPU times are multiples of this, usually 10 ms."""

_UTIME, _STIME = 11, 12  # fields 14 and 15 of proc(5), counted behind the command's name


def cpu_s(pid: int) -> float:
    """Return the user and system CPU time of a process in seconds."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) * CPU_STEP_S


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    return _memory_kib(pid, "VmRSS:")


def rss_kib_max(pid: int) -> int:
    """Return the most that it has been so far."""
    return _memory_kib(pid, "VmHWM:")


def _memory_kib(pid: int, name: str) -> int:
    for line in _read(pid, "status").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise FlashsaleError(f"process {pid} has no resident memory")


def _read(pid: int, name: str) -> str:
    try:
        return (Path("/proc") / str(pid) / name).read_text()
    except OSError as error:
        raise FlashsaleError(f"cannot measure process {pid}: {error.strerror} (this needs Linux)") from error
