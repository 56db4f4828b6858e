"""What a server counts, in memory that all its workers share.

Each worker writes its own slot, without locks, and any worker reads all of them and adds them up, so that it does not
matter which of them is asked. A worker that is started again goes on in the slot of the one before: what was counted
stays, what was so at the moment is so no more. Whatever is not a gauge never goes backwards.
"""

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import product

from msgspec import Struct

from flashsale.domain.answers import ProductStatus
from flashsale.domain.attempts import KINDS, OUTCOMES
from flashsale.limiting import LIMITS

DOORS = ("tcp", "http", "grpc")
STATUS = "status"
"""The operation of those who only look."""
OPERATIONS = (*(name for _, name in KINDS), STATUS)
ANSWERS = (*OUTCOMES, str(ProductStatus.__struct_config__.tag))
RESPONSE_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

_LATENCY_BOUNDS_S = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5, 10)
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 10_000)

_WORD_SIZE = 8
_LINE_SIZE = 64
"""Bytes that a core takes from another at once: slots share none."""
_PID, _BEGUN = 0, 1
"""Words of a slot before its metrics."""


class Type(StrEnum):
    """How a metric behaves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(Struct, frozen=True):
    """What is counted under one name."""

    name: str
    type: Type
    meaning: str
    labels: tuple[str, ...] = ()
    series: tuple[tuple[str, ...], ...] = ((),)
    """The values that these labels have, each with a number of its own."""
    bounds: tuple[float, ...] = ()
    """Of a histogram: the most that each bucket takes; beyond the last there is one more."""

    @property
    def word_count(self) -> int:
        """Return how many numbers it is: a histogram is its buckets and the sum of what was observed."""
        return len(self.bounds) + 2 if self.type is Type.HISTOGRAM else len(self.series)


def _by(label: str, *values: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    return (label,), tuple((value,) for value in values)


REQUESTS = Metric(
    "flashsale_requests_total",
    Type.COUNTER,
    "requests that were answered, by what was asked and what became of it",
    ("operation", "outcome"),
    tuple(product(OPERATIONS, ANSWERS)),
)
LATENCY = Metric(
    "flashsale_latency_seconds",
    Type.HISTOGRAM,
    "from the arrival of a request to its answer, but for those refused at once",
    bounds=_LATENCY_BOUNDS_S,
)
BATCH = Metric("flashsale_batch_requests", Type.HISTOGRAM, "requests that were answered together", bounds=_BATCH_BOUNDS)
ROUND_TRIP = Metric(
    "flashsale_store_round_trip_seconds",
    Type.HISTOGRAM,
    "from sending a round of batches to the store to its last reply",
    bounds=_LATENCY_BOUNDS_S,
)
ROUNDS_FAILED = Metric("flashsale_store_rounds_failed_total", Type.COUNTER, "rounds of which the store decided nothing")
CONNECTS = Metric("flashsale_store_connects_total", Type.COUNTER, "connections made to the store for selling")
AWAY = Metric("flashsale_store_away_workers", Type.GAUGE, "workers whose last round the store did not decide")
BREAKERS = Metric(
    "flashsale_breaker_open_workers",
    Type.GAUGE,
    "workers that refuse requests at once, as the store decides none: all of them, or those for some products",
    *_by("of", "store", "products"),
)
LIMITED = Metric(
    "flashsale_rate_limited_total",
    Type.COUNTER,
    "requests that came too often, by the limit that they met",
    *_by("limit", *LIMITS),
)
QUEUE = Metric("flashsale_queue_requests", Type.GAUGE, "requests that wait for their turn")
QUEUE_SIZE = Metric("flashsale_queue_characters", Type.GAUGE, "characters in their ids")
CONNECTIONS = Metric("flashsale_connections", Type.GAUGE, "clients that are connected", *_by("door", *DOORS))
REFUSED = Metric("flashsale_connections_refused_total", Type.COUNTER, "clients for whom there was no room")
SUBSCRIBERS = Metric("flashsale_subscribers", Type.GAUGE, "clients that follow sales")
RESPONSES = Metric(
    "flashsale_http_responses_total",
    Type.COUNTER,
    "responses over HTTP, by class of status",
    *_by("class", *RESPONSE_CLASSES),
)

METRICS = (
    REQUESTS, LATENCY, BATCH, ROUND_TRIP, ROUNDS_FAILED, CONNECTS, AWAY, BREAKERS, LIMITED, QUEUE, QUEUE_SIZE,
    CONNECTIONS, REFUSED, SUBSCRIBERS, RESPONSES,
)  # fmt: skip
"""What each worker counts."""


def _place_all() -> dict[str, int]:
    places, place = {}, _BEGUN + 1
    for metric in METRICS:
        places[metric.name] = place
        place += metric.word_count
    return places


_PLACES = _place_all()
_WORD_COUNT = _PLACES[METRICS[-1].name] + METRICS[-1].word_count
_SLOT_SIZE = -(-_WORD_COUNT * _WORD_SIZE // _LINE_SIZE) * _LINE_SIZE


def place_of(metric: Metric, *labels: str) -> int:
    """Return which word of a slot counts this; of a histogram, its first bucket."""
    return _PLACES[metric.name] + (0 if metric.type is Type.HISTOGRAM else metric.series.index(labels))


class Histogram(Struct, frozen=True):
    """Observations by size."""

    bounds: tuple[float, ...]
    counts: Sequence[float]
    """In each bucket alone, one more than there are bounds."""
    sum: float

    @property
    def count(self) -> float:
        """Return how many observations there are."""
        return sum(self.counts)


class Reading(Struct, frozen=True):
    """What one worker has counted, or several together, up to an instant."""

    words: Sequence[float]
    number: int = -1
    """Of the worker."""

    @property
    def pid(self) -> int:
        """Return the worker's process id."""
        return int(self.words[_PID])

    @property
    def begun_s(self) -> float:
        """Return when the worker was started, on the clock that it was told."""
        return self.words[_BEGUN]

    def value(self, metric: Metric, *labels: str) -> float:
        """Return a counter or a gauge."""
        return self.words[place_of(metric, *labels)]

    def values(self, metric: Metric) -> dict[tuple[str, ...], float]:
        """Return all of a counter or a gauge, by its labels."""
        first = place_of(metric, *metric.series[0])
        return dict(zip(metric.series, self.words[first : first + len(metric.series)], strict=True))

    def histogram(self, metric: Metric) -> Histogram:
        """Return a histogram."""
        first = place_of(metric)
        last = first + len(metric.bounds) + 1
        return Histogram(metric.bounds, self.words[first:last], self.words[last])

    def since(self, before: "Reading") -> "Reading":
        """Return what was counted since an earlier reading."""
        return Reading([new - old for new, old in zip(self.words, before.words, strict=True)], self.number)


NOTHING = Reading([0.0] * _WORD_COUNT)


def total(readings: Iterable[Reading]) -> Reading:
    """Return what these add up to."""
    return Reading([sum(words) for words in zip(NOTHING.words, *(one.words for one in readings), strict=True)])


class Slot:
    """Where one worker counts."""

    def __init__(self, words: "memoryview[float]") -> None:
        self.words = words
        """Numbers, by `place_of`: whoever counts often writes here itself."""

    def begin(self, pid: int, now_s: float) -> None:
        """Take the slot over from the worker before, if there was one: nothing is so at the moment."""
        for metric in METRICS:
            if metric.type is Type.GAUGE:
                for labels in metric.series:
                    self.words[place_of(metric, *labels)] = 0.0
        self.words[_BEGUN] = now_s
        self.words[_PID] = pid

    def read(self, number: int = -1) -> Reading:
        """Return what is counted here."""
        return Reading(self.words.tolist(), number)


class Observations:
    """A histogram of one worker."""

    def __init__(self, slot: Slot, metric: Metric) -> None:
        self._words = slot.words
        self._bounds = metric.bounds
        self._first = place_of(metric)
        self._sum = self._first + metric.word_count - 1

    def add(self, value: float) -> None:
        """Count one."""
        self._words[self._first + bisect_left(self._bounds, value)] += 1
        self._words[self._sum] += value

    def add_waits(self, begun: Sequence[float], now: float) -> None:
        """Count how long some have waited that began then, the first ones first; at least one."""
        words, bounds, first = self._words, self._bounds, self._first
        newest = bisect_left(bounds, now - begun[-1])
        counted = 0
        for bucket in range(bisect_left(bounds, now - begun[0]), newest, -1):  # few, if any
            up_to = bisect_left(begun, now - bounds[bucket - 1])
            words[first + bucket] += up_to - counted
            counted = up_to
        words[first + newest] += len(begun) - counted
        words[self._sum] += max(0.0, len(begun) * now - sum(begun))  # what is rounded may be below 0


class Board:
    """The slots of all workers of a server; made before they are forked."""

    def __init__(self, worker_count: int) -> None:
        memory = memoryview(mmap.mmap(-1, worker_count * _SLOT_SIZE))  # shared by all who are forked
        starts = range(0, worker_count * _SLOT_SIZE, _SLOT_SIZE)
        self.slots = [Slot(memory[start : start + _WORD_COUNT * _WORD_SIZE].cast("d")) for start in starts]
        """By the worker's number."""

    def read(self) -> list[Reading]:
        """Return what each worker has counted that was started."""
        readings = [slot.read(number) for number, slot in enumerate(self.slots)]
        return [reading for reading in readings if reading.pid]
