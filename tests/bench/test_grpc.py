from bench import grpc


def test_a_crowd_buys_over_grpc_and_the_store_agrees(monkeypatch):
    monkeypatch.delitem(grpc._EXPECTED, grpc.SOLD_OUT)
    monkeypatch.setattr(grpc, "PURCHASES", (grpc.SELLING,))
    steps = []
    cells, targets = grpc.measure(1, 0.1, steps.append)  # raises when it does not
    assert steps == ["round 1 of 1: an empty method", "round 1 of 1: Purchase, selling"]
    assert [row[0] for row in grpc.rows_of(cells)] == ["an empty method", "Purchase, selling"]
    assert all(cell.throughput_per_s > 0 < cell.latency_p50_ms for found in cells.values() for cell in found)
    assert [target.target for target in targets] == [">= 0.6", ""]


def test_a_ratio_is_judged_by_the_median():
    def cells(*rates):
        def run(rate):
            return grpc.Cell(
                throughput_per_s=rate, server_cpu_us=10.0, client_cpu_share=0.5, latency_p50_ms=1.0, latency_p99_ms=2.0
            )

        own = [run(rate) for rate in rates]
        return {grpc.EMPTY: [run(100.0) for _ in rates], grpc.SOLD_OUT: own, grpc.SELLING: own}

    [met, cost, *_] = grpc.targets_of(cells(50.0, 60.0, 120.0))
    assert (met.measured, met.met) == ("0.60 (0.50..1.20)", True)
    assert (cost.measured, cost.met) == ("1.00 (1.00..1.00)", None)
    assert grpc.targets_of(cells(50.0, 59.0, 120.0))[0].met is False
