"""The state machine, on a clock of the tests' own."""

import pytest

from flashsale.breaker import Breaker, Breakers, State

PAUSE_S, PATIENCE_S = 0.25, 2.0
LONG_S = PAUSE_S + 2 * PATIENCE_S


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(pause_s=PAUSE_S, patience_s=PATIENCE_S)


@pytest.fixture
def breakers() -> Breakers:
    return Breakers(pause_s=PAUSE_S, patience_s=PATIENCE_S, count_max=2)


def test_closed_lets_all_through(breaker: Breaker) -> None:
    for now in (0.0, 0.0, 5.0):
        assert breaker.is_ready(now)
        breaker.enter(now)
    assert breaker.state is State.CLOSED


def test_open_lets_one_through_and_then_nobody_until_the_pause_is_over(breaker: Breaker) -> None:
    breaker.fail(10.0)
    assert breaker.state is State.OPEN
    assert breaker.is_ready(10.0)
    breaker.enter(10.0)
    breaker.fail(10.0)
    assert breaker.state is State.OPEN
    assert not breaker.is_ready(10.0)
    assert not breaker.is_ready(10.0 + PAUSE_S - 0.001)
    assert breaker.is_ready(10.0 + PAUSE_S)


def test_half_open_waits_for_the_one_try(breaker: Breaker) -> None:
    breaker.fail(10.0)
    breaker.enter(10.25)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.is_ready(10.25)
    assert not breaker.is_ready(10.25 + PATIENCE_S - 0.001)


def test_a_try_that_succeeds_closes(breaker: Breaker) -> None:
    breaker.fail(10.0)
    breaker.enter(10.25)
    breaker.succeed()
    assert breaker.state is State.CLOSED
    assert breaker.is_ready(10.25)


def test_a_try_that_fails_opens_and_the_pause_begins_anew(breaker: Breaker) -> None:
    breaker.fail(10.0)
    breaker.enter(10.25)
    breaker.fail(12.0)
    assert breaker.state is State.OPEN
    assert not breaker.is_ready(12.2)
    assert breaker.is_ready(12.25)
    assert breaker.opened_at == 10.0, "it has not been closed since"


def test_a_try_of_which_nobody_hears_is_followed_by_another(breaker: Breaker) -> None:
    breaker.fail(10.0)
    breaker.enter(10.25)
    assert breaker.is_ready(10.25 + PATIENCE_S)
    breaker.enter(10.25 + PATIENCE_S)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.is_ready(10.3 + PATIENCE_S)


def test_what_was_known_long_ago_is_known_no_more(breaker: Breaker) -> None:
    breaker.fail(10.0)
    breaker.enter(10.0 + LONG_S)
    assert breaker.state is State.CLOSED
    breaker.fail(20.0)
    breaker.enter(20.0 + LONG_S - 0.001)
    assert breaker.state is State.HALF_OPEN


def test_the_store_refuses_for_all_products(breakers: Breakers) -> None:
    assert breakers.fail_store(10.0)
    assert not breakers.are_closed
    assert breakers.admit("p", 10.0)
    assert not breakers.admit("q", 10.0), "one is on its way"
    assert breakers.opened_at("p") == 10.0
    assert not breakers.fail_store(10.1), "it was open"
    assert not breakers.admit("p", 10.2)
    assert not breakers.admit("q", 10.2)
    assert breakers.admit("p", 10.35)
    breakers.fail_again("p", 10.4)
    assert not breakers.admit("q", 10.6)
    assert breakers.admit("q", 10.65)
    assert breakers.succeed("q") == (True, False)
    assert breakers.are_closed
    assert breakers.opened_at("p") is None


def test_a_product_refuses_for_itself_alone(breakers: Breakers) -> None:
    assert breakers.fail_product("p", 10.0)
    assert not breakers.fail_product("p", 10.0)
    assert not breakers.admit("p", 10.1)
    assert breakers.admit("q", 10.1)
    assert breakers.opened_at("p") == 10.0
    assert breakers.opened_at("q") is None
    assert breakers.succeed("q") == (False, False)
    assert breakers.admit("p", 10.25)
    breakers.fail_again("p", 10.3)
    breakers.fail_again("q", 10.3)
    assert not breakers.admit("p", 10.5)
    assert breakers.admit("p", 10.55)
    assert breakers.succeed("p") == (False, True)
    assert breakers.are_closed


def test_a_try_is_for_both(breakers: Breakers) -> None:
    breakers.fail_store(10.0)
    breakers.fail_product("p", 10.0)
    breakers.fail_product("p", 10.0)
    assert not breakers.admit("p", 10.1), "the product is not ready"
    assert breakers.admit("q", 10.1), "and has not taken the place of the store's try"
    breakers.succeed("q")
    assert breakers.admit("p", 10.25)
    assert not breakers.admit("p", 10.25)


def test_a_product_of_which_nobody_heard_for_long_is_forgotten(breakers: Breakers) -> None:
    breakers.fail_product("p", 10.0)
    assert breakers.admit("p", 10.0 + LONG_S)
    assert breakers.product_count == 0
    assert breakers.are_closed


def test_products_are_bounded(breakers: Breakers) -> None:
    for product_id in "pqr":
        for _ in range(2):
            breakers.fail_product(product_id, 10.0)
    assert breakers.product_count == 2
    assert breakers.admit("p", 10.0), "it waits for its deadline once more"
    assert not breakers.admit("r", 10.0)
