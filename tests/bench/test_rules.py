import re

import pytest

from bench import expiry, rules
from bench.peers.unledgered import without_ledger
from flashsale.errors import FlashsaleError
from flashsale.store import scripts

SMALL = rules.Scale(
    round_count=1,
    duration_s=0.1,
    holds=expiry.Scale(round_count=1, hold_count=1_000, connection_count=10, rate_per_s=200.0, quiet_s=0.5, loud_s=0.5),
)


def test_every_rule_is_measured_beside_the_plain_purchase():
    steps = []
    cells, targets = rules.measure(SMALL, steps.append)
    runs = [(shape.name, variant.name) for shape in rules.SHAPES for variant in shape.variants]
    assert len(steps) == len(runs) + 1
    rows = rules.rows_of(cells)
    assert [(row[0], row[1]) for row in rows] == runs
    assert [row[:2] for row in rows[:5]] == [
        ["200 x 1, selling", "plain, no ledger"],
        ["200 x 1, selling", "plain"],
        ["200 x 1, selling", "limit"],
        ["200 x 1, selling", "request ids"],
        ["200 x 1, selling", "limit and request ids"],
    ]
    assert all(cell.throughput_per_s > 0 for found in cells.values() for [cell] in found.values())
    assert all(re.search(r"\d", target.measured) for target in targets)
    wanted = [target.target for target in targets if target.met is not None]
    assert wanted == [">= 0.6", ">= 0.6", "<= 5", "<= 1 s"]


def test_a_ratio_is_taken_within_a_round_and_judged_by_the_median():
    def cells(plain, ruled):
        def cell(throughput):
            return rules.Cell(
                throughput_per_s=throughput,
                server_cpu_us=1.0,
                store_cpu_us=1.0,
                latency_p50_ms=1.0,
                latency_p99_ms=1.0,
            )

        return {
            shape.name: {
                variant.name: [cell(value) for value in (plain if variant == rules.BARE else ruled)]
                for variant in shape.variants
            }
            for shape in rules.SHAPES
        }

    [met, _] = [found for found in rules.targets_of(cells([100, 10, 1], [50, 6, 0.7])) if found.target]
    assert (met.measured, met.met) == ("0.60 (0.50..0.70)", True)
    [missed, _] = [found for found in rules.targets_of(cells([100, 10, 1], [50, 5, 0.7])) if found.target]
    assert (missed.measured, missed.met) == ("0.50 (0.50..0.70)", False)


def test_a_script_without_a_ledger_differs_in_that_alone():
    source = without_ledger(scripts.DECIDE.source)
    assert source.replace(b"  do return nil end\n", b"") == scripts.DECIDE.source
    with pytest.raises(FlashsaleError, match="no function 'append'"):
        without_ledger(b"return 1")
