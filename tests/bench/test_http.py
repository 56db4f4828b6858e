import asyncio
import json
from contextlib import suppress

import pytest
from click.testing import CliRunner

from bench import megaload
from bench.buyer import Tally, whole_us
from bench.check import Sale
from bench.cli import cli
from bench.http import compare
from bench.http.buyer import HTTP_KINDS, Heads, HttpBuyer, HttpPurchases, post
from bench.http.checkout import Stats, find_faults, rush_running
from bench.http.line import Answer, Told
from bench.http.rush import Plan, Rush
from bench.http.shop import SHARES, Shop, Terms
from bench.load import Door, Measured
from bench.result import Result
from flashsale.errors import FlashsaleError
from flashsale.http.replies import json_reply


def bench(*arguments, code=0):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def told(path):
    return json.loads(path.read_text())


def test_http_runs_all_peers_and_checks_their_stores(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_SALES", (True,))  # sold out is the same again
    out = bench("http", "--duration", 0.15, "--rounds", 1, "--json", tmp_path / "h.json").stdout
    assert "(c) uvicorn and Starlette, one EVALSHA" in out
    found = told(tmp_path / "h.json")
    assert {name: sorted(peers) for name, peers in found["cells"].items()} == {
        "200 x 1, selling": ["a", "b", "c"],
    }
    runs = [cell for peers in found["cells"].values() for cells in peers.values() for cell in cells]
    assert all(cell["throughput_per_s"] > 0 for cell in runs)
    assert [target["target"] for target in found["targets"]] == [">= 0.9", "", ">= 3", ""]


def test_checkout_sends_all_kinds_of_visitors_and_agrees_with_the_sale(tmp_path):
    arguments = ["--rate", 600, "--duration", 1, "--connections", 20, "--json", tmp_path / "c.json"]
    out = bench("http", "checkout", *arguments).stdout
    assert "Check: PASSED (sale_" in out
    found = told(tmp_path / "c.json")
    operations = found["operations"]
    assert found["check"]["faults"] == []
    assert found["unexpected"] == {}
    assert set(operations) == {
        "heavy: checkout", "invalid: checkout", "invalid: purchase",
        "normal: checkout", "purchases: checkout", "purchases: purchase",
    }  # fmt: skip
    asked = sum(sum(found["answers"].values()) for found in operations.values())
    purchased = operations["purchases: purchase"]["answers"]["Purchase completed successfully (200)"]
    assert asked == 600 + purchased
    assert found["check"]["after"]["sold_count"] == purchased
    assert (
        0 < operations["normal: checkout"]["latency_ms"]["p50"] <= operations["normal: checkout"]["latency_ms"]["max"]
    )


def test_megaload_answers_everybody_over_both_doors(tmp_path):
    arguments = ["--requests", 2_000, "--connections", 50, "--stock", 300, "--json", tmp_path / "m.json"]
    out = bench("megaload", *arguments).stdout
    for door in ("tcp", "http"):
        assert f"✓ {door}: 2,000 answered, 300 sold, 0 errors, and the store agrees" in out
        found = told(tmp_path / "m.json")[door]
        assert list(found["classes"].values()) == [300, 1_700, 0, 0]
        assert list(found["latency_ms"]) == ["p50", "p95", "p99", "max"]
        assert min(found["server_memory_kib"], found["client_memory_kib"]) > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["megaload", "--requests", 10, "--connections", 3], "multiple of --connections"),
        (["http", "--rounds", 2, "checkout"], "options of 'checkout' go behind its name"),
    ],
)
def test_contradictions_are_refused(arguments, words):
    assert words in bench(*arguments, code=2).output


# The crowd over HTTP

REPLIES = [
    json_reply(200, {"success": True, "message": "order placed successfully", "order_id": "a" * 40}),
    json_reply(410, {"success": False, "message": "sold out"}),
    json_reply(503, {"success": False, "message": "too many requests wait"}, retry_after_s=1),
    json_reply(500, {"detail": "it broke"}),
    json_reply(200, {"success": False, "message": "sold out"}),
    json_reply(404, "no object"),
]
COUNTS = {
    "SUCCESS": 1,
    "SOLD_OUT": 1,
    "503: too many requests wait": 1,
    "500: it broke": 1,
    "200: sold out": 1,
    "404: UNREADABLE": 1,
}
ANSWERS = b"".join(reply.as_bytes((b"date", b"now")) for reply in REPLIES)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self.closing = False

    def is_closing(self):
        return self.closing

    def write(self, data):
        self.written += data

    def abort(self):
        self.closing = True


@pytest.mark.parametrize("chunk", [1, 3, 50, 10_000])
def test_answers_are_counted_however_they_are_cut(chunk):
    tally, wire = Tally(1, HTTP_KINDS), Wire()
    buyer = HttpBuyer(42, HttpPurchases("p", "host"), tally)
    buyer.connection_made(wire)
    buyer.start(len(REPLIES), len(REPLIES))
    for start in range(0, len(ANSWERS), chunk):
        buyer.data_received(ANSWERS[start : start + chunk])
    assert tally.counts() == COUNTS
    assert tally.finished.is_set()


def test_each_request_is_of_another_user_with_another_request_id():
    purchases = HttpPurchases("p", "host:1")
    block = purchases.block(42, 0) + purchases.block(43, 0)
    requests = [block[start : start + purchases.size] for start in range(0, len(block), purchases.size)]
    head, body = requests[1].split(b"\r\n\r\n")
    assert head.startswith(b"POST /api/purchase HTTP/1.1\r\nHost: host:1\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert json.loads(body)["user_id"] == "user_00042_00000001"
    bodies = [json.loads(request.split(b"\r\n\r\n")[1]) for request in requests]
    assert len({body["request_id"] for body in bodies}) == len({body["user_id"] for body in bodies}) == 200


def test_a_head_that_tells_no_length_is_refused():
    with pytest.raises(ValueError, match="not an answer"):
        Heads().find(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked")


def test_latencies_are_told_apart_to_a_thousandth():
    for latency_us in (0, 1, 65_535, 65_600, 1_000_000, 1_100_000, 99_999_999):
        assert latency_us <= whole_us(latency_us * 1000) <= latency_us * 1.001


# The visitors of a shop


def made(count, limit=10):
    shop = Shop("host", Terms(item_count=50, limit=limit))
    return shop, [shop.visit() for _ in range(count)]


def test_visitors_come_in_their_shares():
    asks = [next(visit) for visit in made(4_000)[1]]
    for scenario, share in SHARES.items():
        assert sum(ask.operation.startswith(scenario) for ask in asks) / 4_000 == pytest.approx(share, abs=0.05)
    assert len({ask.request for ask in asks if ask.operation.startswith("normal")}) > 2_500


def test_what_was_promised_twice_or_beyond_the_limit_is_told():
    shop, visits = made(4_000, limit=3)
    for visit in visits:
        if next(visit).operation == "heavy: checkout":
            with pytest.raises(StopIteration):
                visit.send(Answer(200, Told(checkout_code="c")))
    assert "a user was promised" in shop.faults[1]
    assert "items were promised more than once" in shop.faults[0]


def test_who_has_a_code_purchases_with_it():
    shop, visits = made(1_000)
    visit = next(visit for visit in visits if next(visit).operation == "purchases: checkout")
    ask = visit.send(Answer(200, Told(checkout_code="abc")))
    assert ask.request == post("/purchase?code=abc", "host")
    with pytest.raises(StopIteration):
        visit.send(Answer(200, Told()))
    assert (shop.held_count, shop.purchased_count) == (1, 1)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (Stats("s", 10, 3, 2), []),
        (Stats("s", 10, 2, 3), ["3 visitors purchased, but the sale has 2 items sold"]),
        (Stats("s", 10, 3, 1), ["5 visitors checked out, but the sale has 4 items held or sold"]),
        (Stats("s", 4, 3, 2), ["more is sold and held than there are items"]),
        (Stats("t", 10, 3, 2), ["the sale ended meanwhile"]),
    ],
)
def test_a_sale_that_went_another_way_is_told(after, words):
    faults = find_faults(Stats("s", 10, 0, 0), after, held_count=5, sold_count=3)
    assert len(faults) == len(words)
    assert all(fault.startswith(word) for fault, word in zip(faults, words, strict=True))


async def test_visitors_without_an_answer_are_counted():
    held = []

    async def fall_silent(reader, writer):
        held.append(writer)
        number = len(held)
        with suppress(EOFError):
            await reader.readuntil(b"\r\n\r\n")
        if number == 1:
            writer.close()

    server = await asyncio.start_server(fall_silent, "127.0.0.1", 0)
    plan = Plan(rate_per_s=1_000, duration_s=0.02, connection_count=2, timeout_s=0.3)
    rush = Rush(Shop("host", Terms(item_count=5, limit=None)), plan)
    await rush.run(*server.sockets[0].getsockname())
    ends = [kind.rpartition(": ")[2] for kind, count in rush.unexpected.items() for _ in range(count)]
    assert len(ends) == 20
    assert set(ends) == {"the connection broke", "no answer", "not sent"}
    for writer in held:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    server.close()


async def test_where_nobody_listens_is_told():
    plan = Plan(rate_per_s=1, duration_s=1, connection_count=1, timeout_s=1)
    with pytest.raises(FlashsaleError, match="cannot ask"):
        await rush_running("127.0.0.1", 1, plan, print)


# Megaload's verdict


@pytest.mark.parametrize(
    ("counts", "classes", "words"),
    [
        ({"SUCCESS": 3, "SOLD_OUT": 7}, [3, 7, 0, 0], None),
        ({"SUCCESS": 3, "SOLD_OUT": 5, "503: busy": 1, "NO_ANSWER": 1}, [3, 5, 1, 1], "8 of 10 requests"),
        ({"SUCCESS": 2, "SOLD_OUT": 8}, [2, 8, 0, 0], "2 buyers were told that they bought, and 3 were to"),
    ],
)
def test_the_verdict_on_a_million(counts, classes, words):
    result = Result(
        [Measured(counts=counts, latencies_us={}, started_ns=0, ended_ns=1, samples=[], cpu_s=0.0)], connection_count=1
    )
    plan = megaload.Plan(request_count=10, connection_count=1, stock=3, process_count=1, timeout_s=1)
    sale = Sale(
        stock_before=3, stock_after=0, sold_count=3, distinct_buyer_count=3, request_count=10, success_count=3,
        sold_out_count=7, error_count=0, uncertain_count=0,
    )  # fmt: skip
    found = megaload.Found(Door.HTTP, plan, result, sale, 1)
    assert list(found.classes.values()) == classes
    assert bool(found.faults) == (words is not None)
    if words:
        assert any(fault.startswith(words) for fault in found.faults)
