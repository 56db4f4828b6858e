"""`GET /metrics`: what all workers of the server count, in Prometheus' text format (README, "Metrics").

The library only writes it down, when it is asked for: nothing of it is called for a request of a buyer.
"""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import accumulate
from time import monotonic

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from flashsale.http.replies import Receive, Reply, Scope
from flashsale.live import ProductView
from flashsale.metrics import METRICS, REQUESTS, Histogram, Metric, Reading, Type, total
from flashsale.sampling import Sampler

_AGE_MAX_S = 0.5
"""What is younger is told again: a page costs some milliseconds, and anybody may ask for it."""

STORE_UP = Metric("flashsale_store_up", Type.GAUGE, "1 when the store could be looked at just now, else 0")
UP_TIME = Metric("flashsale_worker_up_seconds", Type.GAUGE, "since a worker was started", ("worker",))
BY_WORKER = Metric("flashsale_worker_requests_total", Type.COUNTER, "requests that a worker has answered", ("worker",))
UNITS = Metric("flashsale_product_units", Type.GAUGE, "units of a whole sale", ("product",))
REMAINING = Metric("flashsale_product_remaining_units", Type.GAUGE, "units that are left", ("product",))
SOLD = Metric("flashsale_product_sold_units", Type.GAUGE, "units that are sold", ("product",))
HELD = Metric("flashsale_product_held_units", Type.GAUGE, "units that are held", ("product",))
LAG = Metric(
    "flashsale_product_ledger_lag_changes",
    Type.GAUGE,
    "changes that are not in the database yet, or not in the topic before it",
    ("product",),
)
STATE = Metric("flashsale_product_state", Type.GAUGE, "1 for the state in which a sale is", ("product", "state"))
COLLECTED = (*METRICS, STORE_UP, UP_TIME, BY_WORKER, UNITS, REMAINING, SOLD, HELD, LAG, STATE)
"""All there is at `/metrics`; what is of products is absent while the store is away."""


class Prometheus:
    """The endpoint."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._page = b""
        self._written_at = -_AGE_MAX_S
        self._writing = asyncio.Lock()

    async def read(self, scope: Scope, receive: Receive) -> Reply:
        """Return the page."""
        async with self._writing:
            if monotonic() - self._written_at >= _AGE_MAX_S:
                self._page = await self._write()
                self._written_at = monotonic()
        kind = (b"content-type", CONTENT_TYPE_LATEST.encode())
        return Reply(200, [kind, (b"content-length", b"%d" % len(self._page))], self._page)

    async def _write(self) -> bytes:
        """Return what there is now, family by family: buyers have a turn between two."""
        products = await self._sampler.products()
        parts = []
        for family in Written(self._sampler.read(), products, monotonic()).collect():
            parts.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
        return b"".join(parts)


class _One(Collector):
    """A family alone."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        """Yield it."""
        yield self._family


class Written(Collector):
    """Readings in the words of the library."""

    def __init__(self, readings: list[Reading], products: list[ProductView] | None, now_s: float) -> None:
        """Write nothing yet.

        Args:
            readings: of all workers.
            products: None when the store is away.
            now_s: the clock that workers were told when they were started.
        """
        self._readings = readings
        self._products = products
        self._now_s = now_s

    def collect(self) -> Iterator[Family]:
        """Yield each metric."""
        everything = total(self._readings)
        for metric in METRICS:
            if metric.type is Type.HISTOGRAM:
                yield _histogram(metric, everything.histogram(metric))
            else:
                yield _family(metric, everything.values(metric).items())
        yield _family(STORE_UP, [((), float(self._products is not None))])
        yield _family(UP_TIME, [((str(one.number),), self._now_s - one.begun_s) for one in self._readings])
        answered = [((str(one.number),), sum(one.values(REQUESTS).values())) for one in self._readings]
        yield _family(BY_WORKER, answered)
        if self._products is not None:
            yield from _of_products(self._products)


def _of_products(products: list[ProductView]) -> Iterator[Family]:
    yield _family(UNITS, [((view.product_id,), view.units) for view in products])
    yield _family(REMAINING, [((view.product_id,), view.remaining) for view in products])
    yield _family(SOLD, [((view.product_id,), view.sold) for view in products])
    yield _family(HELD, [((view.product_id,), view.held) for view in products])
    yield _family(LAG, [((view.product_id,), view.lag) for view in products])
    yield _family(STATE, [((view.product_id, view.state), 1) for view in products])


def _family(metric: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    kind = CounterMetricFamily if metric.type is Type.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, found: Histogram) -> Family:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    bounds = [*map(str, metric.bounds), "+Inf"]
    family.add_metric([], list(zip(bounds, accumulate(found.counts), strict=True)), found.sum)
    return family
