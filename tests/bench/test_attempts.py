from bench import attempts


def test_every_attempt_is_a_row_or_counted_as_dropped(monkeypatch):
    monkeypatch.setattr(attempts, "SHAPES", attempts.SHAPES[:1])
    steps = []
    cells, [target] = attempts.measure(1, 0.1, steps.append)  # raises when one is missing
    assert steps == ["round 1 of 1: 200 x 1, selling"]
    [[name, without, recorded, dropped]] = attempts.rows_of(cells)
    assert (name, dropped) == ("200 x 1, selling", "0%")
    assert int(without.replace(",", "")) > 0 < int(recorded.replace(",", ""))
    assert target.target == ">= 0.85"


def test_a_ratio_is_judged_by_the_median():
    def cells(*rates):
        return {"shape": [attempts.Cell(without_per_s=100.0, recorded_per_s=rate, dropped_share=0.5) for rate in rates]}

    [met] = attempts.targets_of(cells(50.0, 85.0, 120.0))
    assert (met.measured, met.met) == ("0.85 (0.50..1.20)", True)
    [missed] = attempts.targets_of(cells(50.0, 84.0, 120.0))
    assert missed.met is False
    assert attempts.rows_of(cells(50.0, 84.0, 120.0)) == [["shape", "100", "84", "50%"]]
