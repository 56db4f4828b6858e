import pytest
from msgspec import structs

from bench.load import Load, Measured, Sample
from bench.result import Result

LOAD = Load(host="127.0.0.1", port=1, product_id="p", connection_count=10, request_count=5)


@pytest.mark.parametrize("process_count", [1, 3, 10, 64])
def test_generators_share_all_connections_and_no_user(process_count):
    parts = LOAD.shared_among(process_count)
    numbers = [
        number
        for part in parts
        for number in range(part.first_connection, part.first_connection + part.connection_count)
    ]
    assert numbers == list(range(10))
    assert len(parts) == min(process_count, 10)


def test_generators_share_the_rate():
    load = structs.replace(LOAD, request_count=None, duration_s=2.0, rate_per_s=100.0)
    parts = load.shared_among(3)
    assert sum(part.rate_per_s for part in parts) == pytest.approx(100.0)
    assert sum(part.planned_count for part in parts) == load.planned_count == 200


def test_a_load_has_time_for_what_is_planned():
    assert structs.replace(LOAD, duration_s=1000.0).with_timeout().timeout_s > 1000
    assert structs.replace(LOAD, rate_per_s=0.1).with_timeout().timeout_s > 500
    assert LOAD.with_timeout(3.0).timeout_s == 3.0


def test_measurements_of_several_generators_add_up():
    first = Measured(
        counts={"SUCCESS": 2, "SOLD_OUT": 1},
        latencies_us={1_000: 2, 3_000: 1},
        started_ns=1_000_000_000,
        ended_ns=2_000_000_000,
        samples=[Sample(2, 1, 0)],
        cpu_s=0.5,
    )
    second = Measured(
        counts={"SOLD_OUT": 3, "UNKNOWN: outcome unknown": 1, "NOT_SENT": 4},
        latencies_us={2_000: 4},
        started_ns=1_500_000_000,
        ended_ns=3_000_000_000,
        samples=[Sample(0, 1, 0), Sample(0, 2, 1)],
        cpu_s=0.25,
    )
    result = Result([first, second], connection_count=2)
    assert result.request_count == 11
    assert (result.success_count, result.sold_out_count, result.error_count) == (2, 4, 5)
    assert result.uncertain_count == 1
    assert result.answer_count == 7
    assert result.duration_s == 2.0
    assert result.throughput_per_s == 3.5
    assert result.latency_mean_ms == pytest.approx(13 / 7)
    assert result.latency_ms(50.0) == pytest.approx(2.0, rel=1e-3)
    assert result.latency_ms(100.0) == pytest.approx(3.0, rel=1e-3)
    assert result.samples == [Sample(2, 2, 0), Sample(0, 2, 1)]
    assert result.client_cpu_s == 0.75


def test_a_run_without_an_answer_has_figures_too():
    nothing = Measured(counts={"NOT_CONNECTED": 5}, latencies_us={}, started_ns=1, ended_ns=1, samples=[], cpu_s=0.0)
    result = Result([nothing], connection_count=1)
    assert result.error_count == 5
    assert result.throughput_per_s == result.latency_mean_ms == result.latency_ms(99.0) == 0.0
