"""Errors that are more than their text."""

from flashsale.errors import DatabaseError, LedgerGapError, ScheduleNotFoundError


def test_a_database_error_is_not_final_unless_it_says_so() -> None:
    assert not DatabaseError("away").is_final
    assert DatabaseError("too long", is_final=True).is_final


def test_a_gap_names_the_product_and_both_versions() -> None:
    words = "the ledger of product 'p' goes on with version 7, the tables hold what came up to version 5"
    assert str(LedgerGapError("p", 5, 7)) == words


def test_a_schedule_that_is_not_there_is_named() -> None:
    error = ScheduleNotFoundError("hourly")
    assert (str(error), error.name) == ("Schedule 'hourly' not found", "hourly")
