"""The measurement of orders on their way into a database: every figure is there."""

import pytest

from bench import orders


@pytest.mark.timeout(120)
def test_every_figure_is_measured() -> None:
    told: list[str] = []
    scale = orders.Scale(
        round_count=1,
        order_count=1_000,
        rate_per_s=300.0,
        duration_s=0.3,
        connection_count=5,
        dialects=("sqlite",),
    )
    targets = orders.measure(scale, told.append)
    assert [target.name for target in targets] == [
        "1,000 orders into sqlite, plain",
        "1,000 orders into sqlite, each with a request id",
        "lag of the row at 300 sales/s, sqlite",
        "strict / local, 5 x 1 selling, sqlite",
    ]
    assert [target.met is None for target in targets] == [False, True, False, False]
    assert len(told) == 2 + 1 + 2
