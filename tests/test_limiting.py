"""Rate limits, on a clock of the tests' own."""

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.errors import InvalidValueError
from flashsale.limiting import BUCKET_COUNT_MAX, OPERATIONS, Gate, Limit, Rate, parse_rate, parse_route_rates
from flashsale.wire import _REQUESTS

CLOSE_S = 1e-9  # beside which two ways of adding up may differ


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# How a rate is said


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 1.0, 10)),
        ("100/m", Rate(100, 60.0, 100)),
        ("5/h", Rate(5, 3600.0, 5)),
        ("20/s burst 40", Rate(20, 1.0, 40)),
        (" 1000000/s burst 1 ", Rate(1_000_000, 1.0, 1)),
    ],
)
def test_rate_is_read(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "10", "10/", "/s", "10/d", "10/S", "-1/s", "1.5/s", "10/s burst", "10/s burst -1", "10/s  burst 1", "١/s"],
)
def test_what_is_no_rate_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"is no rate: give one such as 10/s, 100/m or 20/s burst 40$"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0/s", "1000001/s", "1/s burst 0", "1/s burst 1000001"])
def test_a_rate_has_bounds(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"a rate and its burst are from 1 to 1000000$"):
        parse_rate(text)


def test_rates_of_operations_are_read() -> None:
    assert parse_route_rates("purchase=100/s, reserve=50/s burst 80") == {
        "purchase": Rate(100, 1.0, 100),
        "reserve": Rate(50, 1.0, 80),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' limits no operation"),
        ("100/s", "'100/s' limits no operation"),
        ("refund=1/s", "'refund=1/s' limits no operation: give purchase=100/s; there are purchase, reserve"),
        ("purchase=1/s,", "'' limits no operation"),
        ("purchase=1/s,purchase=2/s", "purchase has two rates"),
        ("purchase=fast", "'fast' is no rate"),
    ],
)
def test_rates_of_operations_are_refused_with_a_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidValueError, match=f"^{words}"):
        parse_route_rates(text)


def test_every_request_of_a_buyer_is_an_operation() -> None:
    assert set(OPERATIONS) == set(_REQUESTS.values())


# Buckets


def comes(limit: Limit, key: int, now: float) -> bool:
    """Whether one who comes now is let through."""
    if limit.wait_s(key, now) > 0:
        return False
    limit.take(key, now)
    return True


def test_so_many_at_once_and_then_at_the_rate() -> None:
    limit = Limit(Rate(10, 1.0, 3))
    assert [comes(limit, 7, 5.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.wait_s(7, 5.0) == pytest.approx(0.1)
    assert not comes(limit, 7, 5.09)
    assert comes(limit, 7, 5.1001)
    assert limit.wait_s(7, 5.1001) == pytest.approx(0.1, abs=0.001)
    assert [comes(limit, 7, 100.0) for _ in range(5)] == [True, True, True, False, False], "no more than the burst"


def test_who_waits_as_long_as_he_is_told_is_let_through() -> None:
    limit, now = Limit(Rate(7, 60.0, 2)), 0.0
    for _ in range(100):
        while comes(limit, 1, now):
            pass
        now += limit.wait_s(1, now) + CLOSE_S
        assert comes(limit, 1, now)


def test_keys_have_nothing_to_do_with_each_other() -> None:
    limit = Limit(Rate(1, 1.0, 1))
    assert comes(limit, 1, 0.0)
    assert comes(limit, 2, 0.0)
    assert not comes(limit, 1, 0.5)


@given(
    st.builds(Rate, st.integers(1, 20), st.sampled_from([1.0, 60.0]), st.integers(1, 20)),
    st.lists(st.floats(0, 30), max_size=80),
)
def test_it_is_a_bucket_of_tokens(rate: Rate, pauses_s: list[float]) -> None:
    limit, now, tokens, told_at = Limit(rate), 0.0, float(rate.burst), 0.0
    for pause_s in pauses_s:
        now += pause_s
        tokens = min(rate.burst, tokens + (now - told_at) * rate.count / rate.span_s)
        told_at = now
        if abs(tokens - 1) > 1e-6:  # where adding up in another order does not decide
            assert (limit.wait_s(1, now) <= 0) == (tokens >= 1)
            if tokens < 1:
                assert limit.wait_s(1, now) == pytest.approx((1 - tokens) * rate.span_s / rate.count, abs=1e-6)
        if comes(limit, 1, now):
            tokens -= 1


def test_the_least_recently_seen_is_forgotten_and_nobody_is_refused_for_that() -> None:
    limit = Limit(Rate(1, 3600.0, 1), bucket_count_max=3)
    for key in (1, 2, 3):
        assert comes(limit, key, 0.0)
    assert not comes(limit, 1, 1.0), "and was seen again, though he was refused"
    assert comes(limit, 4, 2.0)
    assert limit.bucket_count == 3
    assert not comes(limit, 1, 3.0)
    assert not comes(limit, 3, 3.0)
    assert comes(limit, 2, 3.0), "he comes too often, by one"


def test_a_table_is_bounded_in_memory() -> None:
    limit = Limit(Rate(1, 3600.0, 1))
    tracemalloc.start()
    try:
        for number in range(BUCKET_COUNT_MAX + 1000):
            limit.take(hash(f"{number}" * 30), 0.5 * number)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert limit.bucket_count == BUCKET_COUNT_MAX
    assert size < 15_000_000


# The gate


def gate(clock: Callable[[], float], **rates: str) -> Gate:
    return Gate(
        clock,
        user=parse_rate(rates["user"]) if "user" in rates else None,
        client=parse_rate(rates["client"]) if "client" in rates else None,
        routes=parse_route_rates(rates["routes"]) if "routes" in rates else None,
    )


def test_users_are_limited_whatever_they_ask_and_wherever_they_are(clock: Clock) -> None:
    it = gate(clock, user="2/s")
    assert it.wait_s("purchase", "a", "ann") == 0
    assert it.wait_s("reserve", "b", "ann") == 0
    assert it.wait_s("purchase", "c", "ann") == pytest.approx(0.5)
    assert it.wait_s("purchase", "a", "bob") == 0
    clock.now += 0.5 + CLOSE_S
    assert it.wait_s("purchase", "c", "ann") == 0


def test_clients_are_limited_whoever_they_ask_for(clock: Clock) -> None:
    it = gate(clock, client="1/s")
    assert it.wait_s("purchase", "a", "ann") == 0
    assert it.wait_s("purchase", "a", "bob") == pytest.approx(1.0)
    assert it.wait_s("purchase", "b", "bob") == 0


def test_operations_are_limited_for_all_together(clock: Clock) -> None:
    it = gate(clock, routes="purchase=1/s,reserve=2/s")
    assert it.wait_s("purchase", "a", "ann") == 0
    assert it.wait_s("purchase", "b", "bob") == pytest.approx(1.0)
    assert [it.wait_s("reserve", "a", "ann") > 0 for _ in range(3)] == [False, False, True]
    assert not any(it.wait_s("status", "a", "") for _ in range(100)), "it has no limit"


def test_who_has_no_name_is_limited_by_the_others(clock: Clock) -> None:
    it = gate(clock, user="1/h", client="3/h")
    assert [it.wait_s("confirm", "a", "") > 0 for _ in range(4)] == [False, False, False, True]
    it = gate(clock, user="1/h", client="1/h")
    assert not any(it.wait_s("confirm", "", "") for _ in range(4))


def test_the_longest_wait_is_told_and_nothing_is_taken_of_the_others(clock: Clock) -> None:
    it = gate(clock, user="2/s", client="1/m burst 2", routes="purchase=1/s")
    assert it.wait_s("purchase", "a", "ann") == 0
    assert it.wait_s("purchase", "a", "ann") == pytest.approx(1.0), "the operation, although there are others left"
    for _ in range(10):
        it.wait_s("purchase", "a", "ann")
    assert it.wait_s("reserve", "a", "ann") == 0, "which were not taken for nothing"
    assert it.wait_s("reserve", "a", "ann") == pytest.approx(60.0)
    clock.now += 10
    assert it.wait_s("purchase", "a", "ann") == pytest.approx(50.0)
    assert [it.wait_s("reserve", "b", "ann") > 0 for _ in range(3)] == [False, False, True]
    assert it.refused_counts == {"user": 0, "client": 3, "route": 11}


def test_a_gate_keeps_no_names(clock: Clock) -> None:
    it = gate(clock, user="1/h")
    it.wait_s("purchase", "a", "ann" * 80)
    assert it._user is not None
    assert [type(key) for key in it._user._full_at] == [int]
