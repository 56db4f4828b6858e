"""The README's section "gRPC" says what the code does: its tables and examples are read here."""

import re
from typing import Any

from google.protobuf.json_format import MessageToJson, Parse

from flashsale.domain.answers import Busy, NotOpen, SoldOut
from flashsale.grpc import door, outcomes, watching
from flashsale.grpc.door import GrpcLimits
from flashsale.grpc.orders_pb2 import DESCRIPTOR, PurchaseRequest
from tests.grpc.client import PATIENCE_S
from tests.test_readme import section

GRPC = section("gRPC")
REFUSALS = [*outcomes.REFUSALS.values(), *outcomes.FAILURES.values(), *outcomes.OTHERS]


def table(head: str) -> list[list[str]]:
    """Return the rows of the table with that first cell."""
    lines = GRPC.split(f"| {head} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_statuses_is_that_of_the_code():
    told = {row[0].strip("`"): (row[1], row[2]) for row in table("`reason`")}
    meant = {refusal.reason: (refusal.code.name, refusal.words) for refusal in REFUSALS}
    assert told.pop("bad-request")[0] == meant.pop("bad-request")[0]
    assert told == meant


def test_what_else_is_in_the_metadata():
    more = {row[0].strip("`"): row[3] for row in table("`reason`")}
    for refusal in REFUSALS:
        assert ("`retry-after`" in more[refusal.reason]) == bool(refusal.retry_after_s or refusal is outcomes.TOO_OFTEN)
    for answer, metadata in [
        (SoldOut(3), {"reason": "sold-out", "remaining": "3"}),
        (NotOpen(5), {"reason": "not-open", "opens-at": "5"}),
        (Busy(), {"reason": "busy", "retry-after": "1"}),
        (Busy(1), {"reason": "rate-limited", "retry-after": "1"}),
        (Busy(1001), {"reason": "rate-limited", "retry-after": "2"}),
    ]:
        assert dict(outcomes.refusal_of(answer)[1]) == metadata
        assert all(f"`{name}`" in more[metadata["reason"]] for name in metadata.keys() - {"reason"})
    assert f"`{outcomes.FIRST_KEY}`" in more["duplicate"]


def test_the_calls_are_those_of_the_proto_file():
    calls = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in table("`OrderService`")}
    methods = DESCRIPTOR.services_by_name["OrderService"].methods
    assert {name: sorted(fields) for name, fields in calls.items()} == {
        method.name: sorted(field.name for field in method.input_type.fields) for method in methods
    }


def test_the_bounds_are_those_of_the_code():
    bounds = {row[0]: row[1] for row in table("bound")}
    defaults = dict(zip(GrpcLimits.__struct_fields__[-3:], GrpcLimits.__struct_defaults__, strict=True))
    assert bounds["calls under way in a worker"] == f"{defaults['call_count_max']:,}"
    assert bounds["streams of `Watch` in a worker"].startswith(f"{defaults['watcher_count_max']:,},")
    assert bounds["streams of health and reflection in a worker"] == str(defaults["borrowed_count_max"])
    assert bounds["metadata of a call"] == f"{door.METADATA_SIZE_MAX:,} bytes"
    age = bounds["a connection in all"]
    assert age.startswith(f"{door.CONNECTION_AGE_S // 60} min,")
    assert f"and {door.CONNECTION_GRACE_S} s" in age
    assert str(door.KEEPALIVE_S) in bounds["a connection that says nothing"]
    assert str(door.KEEPALIVE_ANSWER_S) in bounds["a connection that says nothing"]
    assert bounds["pings of a client"] == f"one in {door.PING_PAUSE_S} s"
    assert f"up to {watching.TOGETHER_COUNT_MAX} events" in GRPC


def test_the_first_example_buys(orders, open_sale):
    open_sale(100, name="iphone15")
    request = Parse(re.search(r"-d '(.*?)'", GRPC)[1], PurchaseRequest())
    assert DESCRIPTOR.services_by_name["OrderService"].full_name + "/Purchase" in GRPC
    order = orders.Purchase(request, timeout=PATIENCE_S)
    order.order_id = "1a1fedc4163-0000000002-62e3873a-iphone15"
    shown = re.search(r"```json\n(.*?)\n```", GRPC)[1]
    assert MessageToJson(order, indent=None).replace(": ", ":").replace(", ", ",") == shown


def test_the_client_in_python_buys_and_watches(channel, open_sale):
    product_id = open_sale(3)
    shown: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", GRPC, re.DOTALL)[1], shown)
    bought, refused = (shown["buy_over_grpc"](channel, product_id, "ann", request_id) for request_id in "ab")
    assert bought.endswith(f"-{product_id}")
    assert refused == "sold-out"
    events = shown["follow_over_grpc"](channel, product_id)
    assert [next(events) for _ in range(3)] == [
        (2, "subscribed", "", 0),
        (1, "opened", "", 3),
        (2, "sold", "ann", 1),
    ]
