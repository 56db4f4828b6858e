"""`POST /reset`, and whose it is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flashsale.domain.sale import Terms
from flashsale.http.operator import is_local
from tests.http.client import Http
from tests.http.conftest import TOKEN

OpenSale = Callable[..., str]
Operate = Callable[[Callable[..., Awaitable[Any]]], Any]


def test_a_sale_is_opened_anew_as_it_was(http_client: Http, open_sale: OpenSale, operate: Operate) -> None:
    product_id = open_sale(3, Terms(limit=2, numbered=True))
    http_client.ask("POST", f"/v1/products/{product_id}/purchases", {"user_id": "u"})
    answer = http_client.ask("POST", f"/reset?product_id={product_id}")
    assert (answer.status, answer.body) == (
        200,
        {"success": True, "message": "inventory reset", "product_id": product_id, "remaining_stock": 3},
    )
    sale = operate(lambda admin: admin.sale(product_id))
    assert (sale.remaining, sale.sold, sale.buyer_count, sale.terms) == (3, 0, 0, Terms(limit=2, numbered=True))


def test_the_only_product_need_not_be_named(http_client: Http, open_sale: OpenSale, operate: Operate) -> None:
    async def clear(admin: Any) -> None:
        for name in await admin.products():
            await admin.reset(name)

    operate(clear)
    refused = http_client.ask("POST", "/reset")
    assert (refused.status, refused.body["detail"]) == (409, "there is no product")
    product_id = open_sale(5)
    assert http_client.ask("POST", "/reset").body["product_id"] == product_id
    open_sale(5, name=f"{product_id}-2")
    refused = http_client.ask("POST", "/reset")
    assert (refused.status, refused.body["detail"]) == (409, "there are 2 products: say which")


def test_what_cannot_be_reset_is_told(http_client: Http, open_sale: OpenSale, operate: Operate) -> None:
    assert http_client.ask("POST", "/reset?product_id=no-such").status == 404
    assert http_client.ask("POST", "/reset?product_id=").status == 400
    assert http_client.ask("POST", "/reset?product_id=%ff").status == 400
    now_s = operate(lambda admin: admin.now())
    product_id = open_sale(3, Terms(closes_at=now_s + 1))
    while operate(lambda admin: admin.now()) <= now_s:
        asyncio.run(asyncio.sleep(0.05))
    refused = http_client.ask("POST", f"/reset?product_id={product_id}")
    assert (refused.status, refused.body["type"]) == (409, "urn:flashsale:refused")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"authorization": f"Bearer {TOKEN}"}, 404),
        ({"authorization": f"bearer {TOKEN}", "x_forwarded_for": "9.9.9.9"}, 404),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer wr\xf6ng"}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x_forwarded_for": "127.0.0.1"}, 401),
        ({"forwarded": "for=127.0.0.1"}, 401),
        ({"origin": "http://shop.example"}, 401),
        ({"origin": "null"}, 401),
        ({"host": "shop.example"}, 401),
        ({"host": "[::1"}, 401),
        ({"host": "localhost:8080"}, 404),
        ({"host": "[::1]:8080"}, 404),
    ],
)
def test_only_the_operator_resets(http_client: Http, headers: dict[str, str], status: int) -> None:
    assert http_client.ask("POST", "/reset?product_id=no-such", **headers).status == status


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_this_machine_is_known_by_its_address(address: str, local: bool) -> None:
    scope = {"client": (address, 1) if address else None, "headers": [(b"host", b"localhost")]}
    assert is_local(scope) == local
