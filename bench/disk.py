"""How fast the disk itself is: the floor under every answer that waits for an fsync."""

import math
import os
import time
from pathlib import Path

_WRITE_SIZE = 512
"""About what the append-only file takes for a small batch of sales."""
_WRITE_COUNT_MAX = 100_000


def fsync_latencies_ms(directory: Path, duration_s: float) -> list[float]:
    """Append and fdatasync small records to a file in the directory for some time; return each one's milliseconds."""
    path = directory / "fsync-probe"
    latencies_ms: list[float] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline and len(latencies_ms) < _WRITE_COUNT_MAX:
            begun_ns = time.monotonic_ns()
            os.write(descriptor, b"x" * _WRITE_SIZE)
            os.fdatasync(descriptor)
            latencies_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    return latencies_ms


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
