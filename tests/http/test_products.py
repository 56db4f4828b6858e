"""`/v1`: what a buyer may ask, as resources."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from flashsale.domain.sale import Terms
from flashsale.launch import ServerProcess
from tests.http.client import Http, Raw

OpenSale = Callable[..., str]


def url(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def test_units_are_bought(http_client: Http, open_sale: OpenSale) -> None:
    product_id = open_sale(3)
    answer = http_client.ask("POST", url("products", product_id, "purchases"), {"user_id": "u", "quantity": 2})
    assert answer.status == 201
    body = answer.body
    assert body.pop("order_id").endswith(product_id)
    assert body == {"status": "SUCCESS", "remaining_stock": 1, "version": 2}
    answer = http_client.ask("GET", url("products", product_id))
    expected = {"status": "OK", "remaining_stock": 1, "sold": 2, "held": 0, "state": "open", "version": 2}
    assert (answer.status, answer.body) == (200, expected)


@pytest.mark.parametrize("name", ["a/b", "ä ö", "50%", "x?y#z", "'; DROP TABLE", "..", "."])
def test_a_product_may_have_any_name(http_client: Http, open_sale: OpenSale, name: str) -> None:
    open_sale(2, name=name)
    assert http_client.ask("GET", url("products", name)).status == 200
    held = http_client.ask("POST", url("products", name, "holds"), {"user_id": "u"}).body
    assert http_client.ask("POST", url("holds", held["code"], "confirm")).body["order_id"].endswith(f"-{name}")


@pytest.mark.parametrize("key", ["k-1", '"k-1"'])
def test_the_key_makes_repeating_safe(http_client: Http, open_sale: OpenSale, key: str) -> None:
    where = url("products", open_sale(3), "purchases")
    first = http_client.ask("POST", where, {"user_id": "u"}, idempotency_key=key)
    again = http_client.ask("POST", where, {"user_id": "u"}, idempotency_key="k-1")
    assert (first.status, again.status) == (201, 201)
    assert again.body == first.body | {"duplicate": True}
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = http_client.ask("POST", where, {"user_id": "v"}, idempotency_key="k-1")
    assert (other.status, other.body["type"]) == (409, "urn:flashsale:mismatch")


@pytest.mark.parametrize("key", ["", '""', "a\tb", "é", "k" * 129])
def test_a_key_that_cannot_be_one_is_refused(http_client: Http, open_sale: OpenSale, key: str) -> None:
    where = url("products", open_sale(3), "purchases")
    answer = http_client.ask("POST", where, {"user_id": "u"}, idempotency_key=key)
    assert (answer.status, answer.body["field"]) == (400, "Idempotency-Key")


def test_one_request_has_one_key(server: ServerProcess, open_sale: OpenSale) -> None:
    request = f"POST {url('products', open_sale(3), 'purchases')} HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n"
    with Raw(server.http_port) as raw:
        raw.send(request.encode() + b'Idempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n{"user_id":"u"}')
        said = raw.read_until(b"}")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b'"field":"Idempotency-Key"' in said


def test_a_hold_is_extended_and_confirmed(http_client: Http, open_sale: OpenSale) -> None:
    product_id = open_sale(3)
    held = http_client.ask("POST", url("products", product_id, "holds"), {"user_id": "u", "hold_seconds": 60})
    assert held.status == 201
    hold = url("holds", held.body["code"])
    longer = http_client.ask("PATCH", hold, {"hold_seconds": 600})
    assert (longer.status, longer.body["expires_at"] > held.body["expires_at"]) == (200, True)
    assert http_client.ask("PATCH", hold).status == 200
    assert http_client.ask("POST", f"{hold}/confirm").status == 200
    assert http_client.ask("POST", f"{hold}/confirm").body["duplicate"] is True
    refused = http_client.ask("DELETE", hold)
    assert (refused.status, refused.body["type"]) == (409, "urn:flashsale:already-confirmed")


def test_a_hold_is_given_back(http_client: Http, open_sale: OpenSale) -> None:
    held = http_client.ask("POST", url("products", open_sale(3), "holds"), {"user_id": "u"}).body
    hold = url("holds", held["code"])
    for _ in range(2):
        given_back = http_client.ask("DELETE", hold)
        assert (given_back.status, given_back.body["status"], given_back.body["remaining_stock"]) == (
            200,
            "CANCELLED",
            3,
        )
    refused = http_client.ask("POST", f"{hold}/confirm")
    assert (refused.status, refused.body["type"]) == (410, "urn:flashsale:cancelled")


CHUNKED = "{} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n"


@pytest.mark.parametrize(("chunk", "status"), [("no size", b"400"), ("10001\r\n" + "x" * 0x10001, b"413")])
def test_what_is_refused_for_its_body_is_not_done(
    server: ServerProcess,
    http_client: Http,
    open_sale: OpenSale,
    operate: Callable[..., Any],
    chunk: str,
    status: bytes,
) -> None:
    product_id = open_sale(3)
    http_client.ask("POST", f"/v1/products/{product_id}/purchases", {"user_id": "u"})
    code = http_client.ask("POST", f"/v1/products/{product_id}/holds", {"user_id": "u"}).body["code"]
    for what in (f"DELETE /v1/holds/{code}", f"POST /purchase?code={code}", f"POST /reset?product_id={product_id}"):
        with Raw(server.http_port) as raw:
            raw.send(CHUNKED.format(what, chunk).encode())
            assert raw.read().split()[1] == status
        sale = operate(lambda admin: admin.sale(product_id))
        assert (sale.remaining, sale.held, sale.sold) == (1, 1, 1), what


def test_numbered_items_have_one_owner(http_client: Http, open_sale: OpenSale) -> None:
    where = url("products", open_sale(5, Terms(numbered=True)), "purchases")
    assert http_client.ask("POST", where, {"user_id": "u", "item_id": 4}).body["item_id"] == 4
    taken = http_client.ask("POST", where, {"user_id": "v", "item_id": 4})
    assert (taken.status, taken.body["type"]) == (409, "urn:flashsale:item-taken")
    unknown = http_client.ask("POST", where, {"user_id": "v", "item_id": 6})
    assert (unknown.status, unknown.body["type"]) == (404, "urn:flashsale:item-not-found")
    two = http_client.ask("POST", where, {"user_id": "v", "quantity": 2})
    assert (two.status, two.body["detail"]) == (400, "one numbered item at a time")


def test_a_refusal_says_what_is_known(http_client: Http, open_sale: OpenSale) -> None:
    where = url("products", open_sale(2), "purchases")
    few = http_client.ask("POST", where, {"user_id": "u", "quantity": 3})
    assert few.headers["content-type"] == "application/problem+json"
    assert (few.status, few.body) == (
        409,
        {
            "type": "urn:flashsale:sold-out",
            "title": "Conflict",
            "status": 409,
            "detail": "sold out",
            "remaining_stock": 2,
        },
    )
    where = url("products", open_sale(2, Terms(opens_at=4_000_000_000)), "purchases")
    early = http_client.ask("POST", where, {"user_id": "u"})
    assert (early.status, early.body["opens_at"]) == (409, 4_000_000_000)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": 1}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "u" * 257}, "user_id"),
        ({"user_id": "u", "quantity": 0}, "quantity"),
        ({"user_id": "u", "quantity": "2"}, "quantity"),
        ({"user_id": "u", "item_id": 10_000_001}, "item_id"),
        ({"user_id": "u", "hold_seconds": 2_592_001}, "hold_seconds"),
    ],
)
def test_a_wrong_field_is_named(http_client: Http, open_sale: OpenSale, body: dict[str, Any], field: str) -> None:
    answer = http_client.ask("POST", url("products", open_sale(1), "holds"), body)
    assert (answer.status, answer.body["type"], answer.body["field"]) == (400, "urn:flashsale:invalid-field", field)
    assert answer.body["detail"] == f"invalid {field}"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"user_id":"\xff"}', b'{"x":"\xff","user_id":"u"}', b"[" * 9_999])
def test_a_body_that_is_none_is_refused(http_client: Http, open_sale: OpenSale, raw: bytes) -> None:
    answer = http_client.ask("POST", url("products", open_sale(1), "purchases"), raw)
    assert (answer.status, answer.body["type"]) == (400, "urn:flashsale:invalid-json")


def test_a_user_is_needed(http_client: Http, open_sale: OpenSale) -> None:
    answer = http_client.ask("POST", url("products", open_sale(1), "purchases"), {})
    assert (answer.status, answer.body["type"], answer.body["detail"]) == (
        400,
        "urn:flashsale:missing-field",
        "missing user_id",
    )


@pytest.mark.parametrize(
    ("method", "where", "status"),
    [
        ("GET", "/v1/products/no-such-product", 404),
        ("GET", "/v1/products/%ff", 400),
        ("GET", "/v1/products/" + "p" * 257, 404),
        ("POST", "/v1/holds/no-code/confirm", 404),
        ("DELETE", "/v1/holds/" + "A" * 22 + ".no-such-product", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v2/products/p", 404),
        ("GET", "/v1/products/p/", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/v1/products/p", 405),
        ("PUT", "/v1/holds/code", 405),
    ],
)
def test_what_is_not_there_is_a_problem(http_client: Http, method: str, where: str, status: int) -> None:
    answer = http_client.ask(method, where)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


def test_all_methods_of_a_url_are_named(http_client: Http) -> None:
    allowed = http_client.ask("PUT", "/v1/holds/code").headers["allow"]
    assert set(allowed.split(", ")) == {"DELETE", "PATCH"}
