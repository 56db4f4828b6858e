import re

from bench import expiry, rules

SMALL = rules.Scale(
    round_count=1,
    duration_s=0.1,
    holds=expiry.Scale(round_count=1, hold_count=1_000, connection_count=10, rate_per_s=200.0, quiet_s=0.5, loud_s=0.5),
)


def test_every_rule_is_measured_beside_the_plain_purchase():
    steps = []
    cells, targets = rules.measure(SMALL, steps.append)
    assert len(steps) == len(rules.SHAPES) * len(rules.VARIANTS) + 1
    rows = rules.rows_of(cells)
    assert [row[:2] for row in rows[:4]] == [
        ["200 x 1, selling", "plain"],
        ["200 x 1, selling", "limit"],
        ["200 x 1, selling", "request ids"],
        ["200 x 1, selling", "limit and request ids"],
    ]
    assert len(rows) == len(rules.SHAPES) * len(rules.VARIANTS)
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

        by_variant = {variant.name: [cell(value) for value in ruled] for variant in rules.VARIANTS}
        by_variant[rules.BARE.name] = [cell(value) for value in plain]
        return {shape.name: by_variant for shape in rules.SHAPES}

    [met, _] = [found for found in rules.targets_of(cells([100, 10, 1], [50, 6, 0.7])) if found.target]
    assert (met.measured, met.met) == ("0.60 (0.50..0.70)", True)
    [missed, _] = [found for found in rules.targets_of(cells([100, 10, 1], [50, 5, 0.7])) if found.target]
    assert (missed.measured, missed.met) == ("0.50 (0.50..0.70)", False)
