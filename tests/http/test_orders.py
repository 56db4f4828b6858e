"""`POST /api/purchase`, as those who used it before know it."""

from collections.abc import Callable
from typing import Any

import pytest

from flashsale.domain.requests import Close, Pause
from flashsale.domain.sale import Terms
from tests.http.client import Http

OpenSale = Callable[..., str]


def body(product_id: str, **more: object) -> dict[str, object]:
    return {"request_id": "r1", "user_id": "user-456", "item_id": product_id, "quantity": 1} | more


def test_an_order_is_placed(http_client: Http, open_sale: OpenSale, operate: Callable[..., Any]) -> None:
    product_id = open_sale(3)
    answer = http_client.ask("POST", "/api/purchase", body(product_id, quantity=2))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    order_id = answer.body["order_id"]
    assert answer.body == {"success": True, "message": "order placed successfully", "order_id": order_id}
    assert order_id.endswith(f"-{product_id}")
    assert operate(lambda admin: admin.status(product_id)).sold == 2


def test_a_request_that_was_seen_before_gets_its_first_outcome(http_client: Http, open_sale: OpenSale) -> None:
    product_id = open_sale(3)
    first = http_client.ask("POST", "/api/purchase", body(product_id)).body
    again = http_client.ask("POST", "/api/purchase", body(product_id))
    assert (again.status, again.body) == (409, {"success": False, "message": "duplicate request", "first": first})
    other = http_client.ask("POST", "/api/purchase", body(product_id, quantity=2))
    assert other.status == 409
    assert other.body == {"success": False, "message": "request_id belongs to another request"}


def test_what_is_not_there_is_sold_out(http_client: Http, open_sale: OpenSale) -> None:
    product_id = open_sale(1)
    assert http_client.ask("POST", "/api/purchase", body(product_id)).status == 200
    answer = http_client.ask("POST", "/api/purchase", body(product_id, request_id="r2"))
    assert (answer.status, answer.body) == (410, {"success": False, "message": "sold out"})


@pytest.mark.parametrize(
    "missing",
    [
        {"request_id": ""},
        {"user_id": ""},
        {"item_id": ""},
        {"quantity": 0},
        {"quantity": -1},
    ],
)
def test_fields_are_required(http_client: Http, missing: dict[str, object]) -> None:
    answer = http_client.ask("POST", "/api/purchase", body("p", **missing))
    assert (answer.status, answer.body) == (400, {"success": False, "message": "missing required fields"})
    without = {name: value for name, value in body("p").items() if name not in missing}
    answer = http_client.ask("POST", "/api/purchase", without)
    assert (answer.status, answer.body["message"]) == (400, "missing required fields")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"quantity":"1"}',
        b'{"quantity":1.5}',
        b'{"user_id":7}',
        b'{"user_id":"\xff"}',
        b'{"user_id":"\\ud800"}',
        b"[" * 10_000,
    ],
)
def test_a_body_that_is_none_is_refused(http_client: Http, raw: bytes) -> None:
    answer = http_client.ask("POST", "/api/purchase", raw)
    assert (answer.status, answer.body) == (400, {"success": False, "message": "invalid request body"})


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({"user_id": "u" * 257}, 400, "invalid user_id"),
        ({"user_id": "a\0b"}, 400, "invalid user_id"),
        ({"request_id": "r" * 129}, 400, "invalid request_id"),
        ({"quantity": 1_000_001}, 400, "invalid quantity"),
        ({"item_id": "p" * 257}, 404, "product not found"),
        ({"item_id": "'; DROP TABLE orders; --"}, 404, "product not found"),
        ({"item_id": "redis.call('FLUSHALL')"}, 404, "product not found"),
    ],
)
def test_values_out_of_bounds_are_refused(
    http_client: Http, wrong: dict[str, object], status: int, message: str
) -> None:
    answer = http_client.ask("POST", "/api/purchase", body("no-such-product", **wrong))
    assert (answer.status, answer.body) == (status, {"success": False, "message": message})


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_a_body_of_another_type_is_refused(http_client: Http, kind: str) -> None:
    answer = http_client.ask("POST", "/api/purchase", body("p"), content_type=kind)
    assert (answer.status, answer.body["type"]) == (415, "urn:flashsale:unsupported-media-type")


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_the_type_may_say_more(http_client: Http, kind: str) -> None:
    assert http_client.ask("POST", "/api/purchase", body("no-such"), content_type=kind).status == 404


def test_another_method_is_refused(http_client: Http) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = http_client.ask(method, "/api/purchase")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_what_the_sale_refuses_is_told(http_client: Http, open_sale: OpenSale, operate: Callable[..., Any]) -> None:
    def told(**more: object) -> tuple[int, str]:
        answer = http_client.ask("POST", "/api/purchase", body(product_id, **more))
        assert answer.body["success"] is False
        return answer.status, answer.body["message"]

    product_id = open_sale(9, Terms(limit=2))
    assert told(quantity=3) == (429, "user purchase limit exceeded")
    operate(lambda admin: admin.change(Pause(product_id)))
    assert told() == (409, "the sale is paused")
    operate(lambda admin: admin.change(Close(product_id)))
    assert told() == (410, "the sale is closed")
    open_sale(9, Terms(opens_at=4_000_000_000))
    assert told() == (409, "the sale is not open yet")


def test_an_id_with_everything_in_it_is_kept_as_it_is(
    http_client: Http, open_sale: OpenSale, operate: Callable[..., Any]
) -> None:
    product_id = open_sale(3)
    user_id = "<script>alert('Zoë 😀')</script>\n\x1b[31m"
    assert http_client.ask("POST", "/api/purchase", body(product_id, user_id=user_id)).status == 200

    async def first_buyer(admin: Any) -> str:
        return str(await anext(admin.buyers(product_id)))

    assert operate(first_buyer) == user_id
