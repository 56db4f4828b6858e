import re

from bench import latency, limits, sizes
from bench.disk import percentile

SMALL = limits.Scale(
    open_loop=latency.Scale(round_count=1, rate_per_s=500.0, duration_s=0.3, probe_duration_s=0.1),
    crowd_count=100,
    crowd_request_count=3,
    crowd_stock=20,
    idle_count=50,
    pairs=sizes.Scale(round_count=1, connection_count=5, request_count=20, stock=1_000, buyer_count=300),
)


def test_every_figure_is_measured():
    steps = []
    targets = limits.measure(SMALL, steps.append)
    assert len(steps) == 4
    assert len(targets) == 10
    assert all(re.search(r"\d", target.measured) for target in targets)
    assert [target.met for target in targets if not target.target.startswith(("<=", "p99 <=", "all"))] == [None] * 3
    crowd = next(target for target in targets if "at once" in target.name)
    assert crowd.met
    assert re.fullmatch(r"300 answered in \d+\.\d\d s, once all are connected", crowd.measured)


def test_percentile_is_the_nearest_rank():
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 50.0) == 50.0
    assert percentile(values, 99.0) == 99.0
    assert percentile([7.0], 99.0) == 7.0
