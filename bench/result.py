"""What a whole run came to: the generators' measurements together, with HdrHistogram percentiles."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

from hdrh.histogram import HdrHistogram

from bench.load import ECHO, SOLD_OUT, SUCCESS, TICK_S, UNCERTAIN, Measured, Sample

LATENCY_US_MAX = 3_600_000_000
_SIGNIFICANT_DIGITS = 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_NOTHING = Sample(0, 0, 0)


class Result:
    """Counts, times and latencies of a run; all of it follows from the measurements given."""

    def __init__(self, measured: Sequence[Measured], *, connection_count: int) -> None:
        self.connection_count = connection_count
        self.counts: Counter[str] = Counter()
        self.latencies_us: Counter[int] = Counter()
        for part in measured:
            self.counts.update(part.counts)
            self.latencies_us.update(part.latencies_us)
        # from when everybody is connected
        self.duration_s = (max(part.ended_ns for part in measured) - min(part.started_ns for part in measured)) / 1e9
        self.client_cpu_s = sum(part.cpu_s for part in measured)
        self.client_memory_kib = sum(part.memory_kib for part in measured)
        rows = zip_longest(*(part.samples for part in measured), fillvalue=_NOTHING)
        self.samples = [_total(row) for row in rows]

    @property
    def request_count(self) -> int:
        """All requests, also those that could not be sent."""
        return self.counts.total()

    @property
    def success_count(self) -> int:
        """Requests answered SUCCESS."""
        return self.counts[SUCCESS]

    @property
    def sold_out_count(self) -> int:
        """Requests answered SOLD_OUT."""
        return self.counts[SOLD_OUT]

    @property
    def errors(self) -> dict[str, int]:
        """Requests by any other end."""
        return {kind: count for kind, count in self.counts.items() if kind not in {SUCCESS, SOLD_OUT, ECHO}}

    @property
    def error_count(self) -> int:
        """Requests of any other end."""
        return sum(self.errors.values())

    @property
    def uncertain_count(self) -> int:
        """Errors behind which a unit may have been sold."""
        return sum(count for kind, count in self.counts.items() if kind.partition(":")[0] in UNCERTAIN)

    @property
    def answer_count(self) -> int:
        """Requests that got an answer, whatever it said."""
        return self.latencies_us.total()

    @property
    def throughput_per_s(self) -> float:
        """Answers a second."""
        return self.answer_count / self.duration_s if self.duration_s else 0.0

    @property
    def latency_mean_ms(self) -> float:
        """The mean latency in milliseconds."""
        total_us = sum(latency_us * count for latency_us, count in self.latencies_us.items())
        return total_us / self.answer_count / 1e3 if self.answer_count else 0.0

    @cached_property
    def histogram(self) -> Any:
        """The latencies as an HdrHistogram, in microseconds."""
        histogram = HdrHistogram(1, LATENCY_US_MAX, _SIGNIFICANT_DIGITS)
        for latency_us, count in self.latencies_us.items():
            histogram.record_value(min(max(latency_us, 1), LATENCY_US_MAX), count)
        return histogram

    def latency_ms(self, percentile: float) -> float:
        """Return the latency at a percentile, in milliseconds; 0 when nothing was answered."""
        return float(self.histogram.get_value_at_percentile(percentile)) / 1e3 if self.answer_count else 0.0

    @property
    def latencies_ms(self) -> dict[str, float]:
        """The latencies of the reported percentiles, in milliseconds."""
        return {name: self.latency_ms(percentile) for name, percentile in PERCENTILES.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the figures as they go into a JSON file."""
        return {
            "duration_s": self.duration_s,
            "connections": self.connection_count,
            "total_requests": self.request_count,
            "successful": self.success_count,
            "sold_out": self.sold_out_count,
            "errors": self.error_count,
            "errors_by_kind": self.errors,
            "throughput_per_s": self.throughput_per_s,
            "latency_mean_ms": self.latency_mean_ms,
            "latency_ms": self.latencies_ms,
            "client_cpu_s": self.client_cpu_s,
            "sample_s": TICK_S,
            "samples": self.samples,
        }


def _total(samples: Sequence[Sample]) -> Sample:
    return Sample(
        sum(sample.success_count for sample in samples),
        sum(sample.sold_out_count for sample in samples),
        sum(sample.other_count for sample in samples),
    )
