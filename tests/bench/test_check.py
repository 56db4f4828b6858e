import pytest

from bench.check import Sale, count_distinct


def sale(**changes) -> Sale:
    honest = {
        "stock_before": 100,
        "stock_after": 0,
        "sold_count": 100,
        "distinct_buyer_count": 100,
        "request_count": 400,
        "success_count": 100,
        "sold_out_count": 300,
        "error_count": 0,
        "uncertain_count": 0,
    }
    return Sale(**(honest | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distinct_buyer_count": None},
        # demand below the stock
        {"stock_after": 60, "sold_count": 40, "distinct_buyer_count": 40, "request_count": 40, "success_count": 40,
         "sold_out_count": 0},
        # one buyer never learnt that he had bought
        {"success_count": 99, "sold_out_count": 300, "error_count": 1, "uncertain_count": 1},
    ],
)  # fmt: skip
def test_an_honest_sale_has_no_faults(changes):
    assert sale(**changes).faults() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stock_after": -1, "sold_count": 101, "distinct_buyer_count": 101, "success_count": 101}, "OVERSOLD"),
        ({"success_count": 101}, "OVERSOLD"),
        ({"stock_after": -1}, "OVERSOLD"),
        ({"stock_after": 1, "sold_count": 99, "distinct_buyer_count": 99, "success_count": 99}, "UNDERSOLD"),
        (
            {"stock_after": 60, "sold_count": 40, "distinct_buyer_count": 40, "success_count": 40, "sold_out_count": 0},
            "UNDERSOLD",
        ),
        (
            {"stock_after": 1, "sold_count": 99, "distinct_buyer_count": 99, "request_count": 100, "success_count": 99,
             "sold_out_count": 0, "error_count": 1},
            "UNDERSOLD: 1 units left though 1 requests failed",
        ),
        (
            {"stock_after": 100, "sold_count": 0, "distinct_buyer_count": 0, "request_count": 1_000, "success_count": 0,
             "sold_out_count": 0, "error_count": 1_000},
            "UNDERSOLD: 100 units left though 1000 requests failed",
        ),
        ({"stock_after": 1}, "but the store counts 100 units as sold"),
        ({"distinct_buyer_count": 99}, "100 units were sold one by one, but the list of buyers has 99 new names"),
        ({"success_count": 99}, "99 buyers were told SUCCESS, but the store sold 100"),
        ({"success_count": 97, "error_count": 3, "uncertain_count": 2}, "and 2 do not know"),
        ({"stock_after": 1, "sold_count": 99, "distinct_buyer_count": 99}, "100 buyers were told SUCCESS"),
    ],
)  # fmt: skip
def test_a_dishonest_sale_is_told_in_a_sentence(changes, words):
    assert any(words in fault for fault in sale(**changes).faults())


async def test_distinct_buyers_are_counted_from_where_the_run_began():
    async def buyers():
        for buyer in ["a", "b", "c", "c", "d"]:
            yield buyer

    assert await count_distinct(buyers()) == 4
    assert await count_distinct(buyers(), skip_count=2) == 2
