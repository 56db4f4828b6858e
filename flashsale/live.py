"""A server at a glance: what its counters say of the last second. The names are those of `GET /live` (README)."""

from collections.abc import Sequence

from msgspec import Struct

from flashsale.domain.attempts import KINDS, OUTCOMES
from flashsale.metrics import (
    BATCH,
    CONNECTIONS,
    LATENCY,
    NOTHING,
    QUEUE,
    REQUESTS,
    ROUND_TRIP,
    Histogram,
    Reading,
    total,
)

_ATTEMPTS = [name for _, name in KINDS]
_DIGITS = 3


class ProductView(Struct, frozen=True):
    """A product at an instant."""

    product_id: str
    units: int
    """Of the whole sale."""
    remaining: int
    sold: int
    held: int
    state: str
    """open, paused, closed, not_open, or frozen: the store is behind the database."""
    lag: int
    """Changes that were not handed on to the database yet, or to the topic before it."""


class WorkerView(Struct, frozen=True):
    """A worker in the last second."""

    number: int
    pid: int
    rate: float
    """Attempts answered, in one second."""
    p99_ms: float | None
    """Null when nothing was answered."""
    connections: int
    up_s: float


class Snapshot(Struct, frozen=True):
    """All workers together, over the last second, and the products."""

    at: float
    """Unix seconds, by the clock of the worker that was asked."""
    rate: float
    """Attempts answered, in one second."""
    outcomes: dict[str, float]
    """The same, by outcome; each that there was since the start."""
    totals: dict[str, int]
    """Attempts answered since the start."""
    p50_ms: float | None
    """Null when nothing was answered, like the next."""
    p99_ms: float | None
    connections: dict[str, int]
    """By door."""
    queue: int
    """Requests that wait for their turn."""
    batch: float
    """Requests that were answered together, on average; 0 when none were."""
    store_up: bool
    """Whether the store could be looked at just now; when not, there are no products here."""
    store_round_trip_ms: float | None
    """On average; null when there was none."""
    products: list[ProductView]
    workers: list[WorkerView]


def summarize(
    before: Sequence[Reading],
    after: Sequence[Reading],
    *,
    elapsed_s: float,
    now_s: float,
    at: float,
    products: list[ProductView] | None,
) -> Snapshot:
    """Return what happened between two readings of all workers.

    Args:
        before: the earlier reading; a worker that is not in it was started since.
        after: the later one.
        elapsed_s: between them, more than 0.
        now_s: the clock that workers were told when they were started.
        at: the time of day.
        products: None when the store is away.
    """
    known = {reading.number: reading for reading in before}
    parts = {reading.number: reading.since(known.get(reading.number, NOTHING)) for reading in after}
    all_time, part = total(after), total(parts.values())
    totals = {outcome: count for outcome, count in _attempts(all_time).items() if count}
    recent = _attempts(part)
    latency, batches, round_trips = (part.histogram(metric) for metric in (LATENCY, BATCH, ROUND_TRIP))
    return Snapshot(
        at=round(at, _DIGITS),
        rate=_rounded(sum(recent.values()) / elapsed_s),
        outcomes={outcome: _rounded(recent[outcome] / elapsed_s) for outcome in totals},
        totals={outcome: int(count) for outcome, count in totals.items()},
        p50_ms=_milliseconds(quantile(latency, 0.5)),
        p99_ms=_milliseconds(quantile(latency, 0.99)),
        connections={door: int(count) for (door,), count in all_time.values(CONNECTIONS).items()},
        queue=int(all_time.value(QUEUE)),
        batch=_rounded(_mean(batches) or 0.0),
        store_up=products is not None,
        store_round_trip_ms=_milliseconds(_mean(round_trips)),
        products=products or [],
        workers=[_worker(reading, parts[reading.number], elapsed_s, now_s) for reading in after],
    )


def quantile(found: Histogram, share: float) -> float | None:
    """Return what that share of the observations is at most, as if each bucket were filled evenly; None without any.

    Beyond the last bound it is that bound.
    """
    count = found.count
    if count <= 0:
        return None
    rank, low = share * count, 0.0
    for high, inside in zip(found.bounds, found.counts, strict=False):
        if inside and rank <= inside:
            return low + (high - low) * rank / inside
        rank, low = rank - inside, high
    return low


def _worker(reading: Reading, part: Reading, elapsed_s: float, now_s: float) -> WorkerView:
    return WorkerView(
        number=reading.number,
        pid=reading.pid,
        rate=_rounded(sum(_attempts(part).values()) / elapsed_s),
        p99_ms=_milliseconds(quantile(part.histogram(LATENCY), 0.99)),
        connections=int(sum(reading.values(CONNECTIONS).values())),
        up_s=_rounded(max(0.0, now_s - reading.begun_s)),
    )


def _attempts(reading: Reading) -> dict[str, float]:
    """Return how many attempts had each outcome."""
    counted = reading.values(REQUESTS)
    return {outcome: sum(counted[operation, outcome] for operation in _ATTEMPTS) for outcome in OUTCOMES}


def _mean(found: Histogram) -> float | None:
    return found.sum / found.count if found.count > 0 else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(seconds * 1000)


def _rounded(value: float) -> float:
    return round(value, _DIGITS)
