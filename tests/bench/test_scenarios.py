import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from bench import checkout, storm
from bench.books import Books
from flashsale.domain.answers import Expired, Held, SoldOut, Success, Unknown
from flashsale.domain.ids import OrderRef, make_code, make_order_id
from flashsale.domain.requests import Purchase
from flashsale.domain.sale import Change, Kind
from flashsale.store import keys

ROOT = Path(__file__).parents[2]


def bench(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def told(path):
    return json.loads(path.read_text())


def test_checkout_accounts_for_every_unit(tmp_path):
    out = bench(
        "checkout", "--customers", 300, "--rate", 300, "--connections", 10, "--stock", 200, "--units", 3,
        "--think", 0.2, "--hold", 1, "--patience", 2, "--abandon", 0.3, "--cancel", 0.2, "--json", tmp_path / "c.json",
    ).stdout  # fmt: skip
    assert "=== Checkout Results ===" in out
    assert "Customers:      300\n" in out
    assert "PASSED (" in out
    found = told(tmp_path / "c.json")
    customers, status = found["customers"], found["check"]["status"]
    assert sum(customers.values()) == 300
    assert min(customers[name] for name in ["confirmed", "cancelled", "abandoned", "sold out"]) > 0
    assert status["sold"] + status["remaining_stock"] == 200
    assert found["check"] | {"status": 0, "expired": 0} == {"passed": True, "faults": [], "status": 0, "expired": 0}
    assert found["check"]["expired"] >= customers["abandoned"]
    assert set(found["operations"]) == {"reserve", "confirm", "cancel"}
    confirm = found["operations"]["confirm"]
    assert confirm["answers"]["SUCCESS"] == customers["confirmed"]
    assert 0 < confirm["latency_ms"]["p50"] <= confirm["latency_ms"]["max"]


def test_who_thinks_too_long_is_too_late(tmp_path):
    bench("checkout", "--customers", 5, "--think", 5, "--hold", 1, "--abandon", 0, "--cancel", 0.2,
          "--json", tmp_path / "c.json")  # fmt: skip
    found = told(tmp_path / "c.json")
    assert found["customers"] == {"too late": 5}
    assert (found["check"]["status"]["sold"], found["check"]["expired"]) == (0, 5)


def test_a_retry_storm_has_one_effect_for_each_request_id(tmp_path):
    out = bench("retry-storm", "--purchases", 1_000, "--connections", 10, "--stock", 600, "--again", 0.5,
                "--json", tmp_path / "s.json").stdout  # fmt: skip
    assert "=== Retry Storm Results ===" in out
    assert "Purchases:      1000\n" in out
    assert "PASSED (600 sold + 0 held + 0 left = 600; each request id had one effect)" in out
    found = told(tmp_path / "s.json")
    assert sum(found["purchases"].values()) == 1_000
    assert min(found["purchases"].values()) > 0
    assert len(found["purchases"]) == 5
    assert (found["sold"], found["failed"], found["check"]["faults"]) == (600, 0, [])
    again = sum(counts["answers"].get("SUCCESS again", 0) for counts in found["operations"].values())
    assert found["duplicates"] == again > 0
    assert found["operations"]["broken off"]["answers"] == {
        "UNKNOWN: connection lost": found["purchases"]["after a connection broke"]
    }


@pytest.mark.parametrize(
    ("arguments", "product_id", "words"),
    [
        # customers come at their time: perhaps nothing is under way, but somebody comes later
        (["checkout", "--customers", "100000", "--hold", "1"], "checkout", "UNAVAILABLE: not connected"),
        (["retry-storm", "--purchases", "100000", "--stock", "100000"], "storm", "UNKNOWN: connection lost"),
    ],
)
def test_a_server_that_dies_ends_the_run_and_is_told(arguments, product_id, words, tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments, "--timeout", "3", "--json", tmp_path / "r.json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    server, home = wait_until(lambda: find_server(running.pid))
    with Redis(unix_socket_path=f"{home}/valkey.sock") as redis:
        wait_until(lambda: redis.xlen(keys.key(product_id, "orders")) > 10)
    os.kill(server, signal.SIGKILL)
    out, err = running.communicate(timeout=40)
    assert running.returncode == 1, out + err
    assert words in out
    assert "were not served" in err or "requests failed" in err
    faults = told(tmp_path / "r.json")["check"]["faults"]
    # with the server dead, nobody returns the holds
    assert all("holds were not back" in fault for fault in faults)
    assert len(faults) == (product_id == "checkout")


def find_server(parent):
    """Return the pid and the home of the server among a process's children."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "serve" in words:
            return int(child), words[words.index("--home") + 1]
    return None


def wait_until(find):
    deadline = time.monotonic() + 30
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["checkout", "--abandon", 0.6, "--cancel", 0.5], "together at most 1"),
        (["retry-storm", "--connections", 1], "not in the range"),
    ],
)
def test_contradictions_are_refused(arguments, words):
    assert words in bench(*arguments, code=2).stderr


def test_help_says_what_each_command_is():
    out = bench("--help").stdout
    assert "Let customers reserve, think, then confirm, cancel or go." in out
    assert "Send purchases again and again; each must count once." in out
    assert "Measure what limits, request ids and expiring holds cost." in out


# What a customer was told, against a ledger: one hold of two units, confirmed as version 3


HELD = Held(make_code("t" * 22, "p"), 100, 8, 2)
SOLD = Success(8, make_order_id(OrderRef("p", "00000000", 3, 0)), 3)
OPENED = Change(kind=Kind.OPENED, version=1, at_ms=0, remaining=10, quantity=10)
HOLD = Change(kind=Kind.HELD, version=2, at_ms=0, remaining=8, user_id="ann", quantity=2)
CONFIRMED = Change(kind=Kind.CONFIRMED, version=3, at_ms=0, remaining=8, user_id="ann", quantity=2, ref=2)
EXPIRED = Change(kind=Kind.EXPIRED, version=3, at_ms=0, remaining=10, user_id="ann", quantity=2, ref=2)


def visit(outcome, end=None, hold=HELD):
    return checkout.Visit("ann", 2, outcome, hold, end)


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (visit("confirmed", SOLD), [CONFIRMED]),
        (visit("abandoned"), [EXPIRED]),
        (visit("too late", Expired()), [EXPIRED]),
        (visit("failed", Unknown()), [CONFIRMED]),
        (visit("failed", Unknown()), [EXPIRED]),
        (visit("unfinished"), [EXPIRED]),
    ],
)
def test_a_customer_who_was_told_the_truth(found, changes):
    assert checkout.find_faults([found], Books([OPENED, HOLD, *changes])) == []


@pytest.mark.parametrize(
    ("found", "changes", "words"),
    [
        (visit("confirmed", SOLD), [EXPIRED], "left as 'confirmed', but their holds did not end so"),
        (visit("confirmed", Success(8, SOLD.order_id, 4)), [CONFIRMED], "confirmed codes are no orders"),
        (visit("abandoned"), [CONFIRMED], "left as 'abandoned'"),
        (visit("abandoned"), [], "2 units are still held"),
        (visit("sold out", SoldOut(), hold=None), [EXPIRED], "belong to customers who know nothing of them"),
        (checkout.Visit("bob", 2, "abandoned", HELD), [EXPIRED], "but have no such hold"),
    ],
)
def test_a_customer_who_was_told_something_else(found, changes, words):
    assert any(words in fault for fault in checkout.find_faults([found], Books([OPENED, HOLD, *changes])))


# What buyers were told, against a ledger: one order of request id r as version 2

FIRST = Success(9, make_order_id(OrderRef("p", "00000000", 2, 0)), 2)
AGAIN = Success(9, FIRST.order_id, 2, duplicate=True)
SALE = Change(kind=Kind.SOLD, version=2, at_ms=0, remaining=9, user_id="ann", quantity=1, request_id="r")
SALE_AGAIN = Change(kind=Kind.SOLD, version=3, at_ms=0, remaining=8, user_id="ann", quantity=1, request_id="r")


def order(*answers, manner=storm.Manner.BURST, again_count=1):
    purchase = Purchase("p", "ann", request_id="r")
    return storm.Order(purchase, manner, again_count, list(answers))


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (order(FIRST, AGAIN, AGAIN, again_count=2), [SALE]),
        (order(AGAIN, FIRST), [SALE]),
        (order(SoldOut(), SoldOut()), []),
        (order(Unknown(), AGAIN), [SALE]),
        (order(Unknown(), Unknown()), [SALE]),
        (order(), [SALE]),
        (order(FIRST, manner=storm.Manner.BROKEN), [SALE]),
        (order(AGAIN, manner=storm.Manner.BROKEN), [SALE]),
    ],
)
def test_one_effect_told_as_it_is(found, changes):
    assert storm.find_faults([found], Books([OPENED, *changes])) == []


@pytest.mark.parametrize(
    ("found", "changes", "words"),
    [
        (order(FIRST, AGAIN), [SALE, SALE_AGAIN], "bought more than once"),
        (order(FIRST, FIRST), [SALE], "exactly once that the order is new"),
        (order(AGAIN, AGAIN), [SALE], "exactly once that the order is new"),
        (order(FIRST, SoldOut()), [SALE], "SUCCESS and SOLD_OUT"),
        (order(SoldOut(), SoldOut()), [SALE], "bought, but nobody was told"),
        (order(FIRST, AGAIN), [], "another order than the one in the ledger"),
        (order(FIRST, Success(9, "other", 2, duplicate=True)), [SALE], "another order than the one in the ledger"),
    ],
)
def test_more_than_one_effect_or_another_is_told(found, changes, words):
    assert any(words in fault for fault in storm.find_faults([found], Books([OPENED, *changes])))


def test_a_request_id_that_nobody_sent_is_told():
    assert any("nobody sent" in fault for fault in storm.find_faults([], Books([OPENED, SALE])))
