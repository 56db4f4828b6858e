"""`/checkout`, `/purchase`, `/stats` and `/items`, as those who used them before know them."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree
from zlib import crc32

import pytest

from flashsale.domain.answers import UNKNOWN, Answer, Success
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.requests import Pause, Resume
from flashsale.domain.schedules import CurrentSale, Schedule
from flashsale.http import current
from flashsale.http.replies import Reply
from flashsale.launch import ServerProcess
from flashsale.store.schedules import RedisSchedules
from tests.http.client import Http

Operate = Callable[[Callable[..., Awaitable[Any]]], Any]
CODE = b"A" * 22 + b".p"
HOURLY = Schedule(name="hourly", every_s=3_600, item_count=10_000, limit=10, numbered=True)


@pytest.fixture(scope="module")
def items() -> Any:
    """Give a number that no other test has bought."""
    return iter(range(1, 10_001))


@pytest.fixture
def hourly(server: ServerProcess, http_client: Http, module_home: Path) -> str:
    """The id of the current sale of a schedule."""

    async def add() -> None:
        schedules = RedisSchedules(f"unix://{module_home}/valkey.sock")
        await schedules.add(HOURLY)
        await schedules.close()

    asyncio.run(add())
    deadline = time.monotonic() + 30
    while (answer := http_client.ask("GET", "/stats")).status == 404:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return str(answer.body["sale_id"])


def told(answer: Any) -> tuple[int, str]:
    assert answer.body["success"] is False
    assert answer.headers["content-type"] == "application/json"
    return answer.status, answer.body["message"]


def is_lucky(purchase_id: str) -> bool:
    return crc32(purchase_id.encode()) % 100 == 0


async def answered_at(
    name: str, query: bytes, answer: Answer, *, headers: Sequence[tuple[bytes, bytes]] = (), lottery: bool = True
) -> Reply:
    """Return what an endpoint makes of an answer."""

    async def ask(request: Any) -> Answer:
        return answer

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    sale = CurrentSale(schedule="s", product_id="p", begins_at=0, ends_at=9, item_count=9, numbered=True)
    services = SimpleNamespace(ask=ask, gate=None, current_sale=lambda name: sale, lottery=lottery)
    endpoint = getattr(current.Current(services), name)  # type: ignore[arg-type]
    reply: Reply = await endpoint({"query_string": query, "headers": headers}, receive)
    return reply


def test_there_may_be_no_sale(http_client: Http) -> None:
    for method, url in (("GET", "/stats?schedule=no-such"), ("POST", "/checkout?user_id=u&id=1&schedule=no-such")):
        assert told(http_client.ask(method, url)) == (404, "no active sale")


async def test_whoever_cannot_know_is_told_what_he_can_do() -> None:
    async def told_at(name: str, query: bytes, *headers: tuple[bytes, bytes]) -> str:
        reply = await answered_at(name, query, UNKNOWN, headers=headers)
        assert reply.status == 504
        assert (b"retry-after", b"1") in reply.headers
        return str(json.loads(reply.body)["message"])

    key = (b"idempotency-key", b"k")
    assert (await told_at("checkout", b"user_id=u&id=1", key)).endswith("ask again with the same id")
    assert (await told_at("checkout", b"user_id=u&id=1")).endswith("a hold that nobody pays for ends by itself")
    assert (await told_at("purchase", b"code=" + CODE)).endswith("ask again with the same code")


def test_the_sale_is_told_as_text(http_client: Http, hourly: str, items: Any) -> None:
    before = http_client.ask("GET", "/stats").body["stats"]
    begin = int(hourly.split("_")[1])
    assert re.fullmatch(r"sale_\d+_[0-9a-f]{8}", hourly)
    assert (int(before["start_time"]), int(before["end_time"]) - begin, before["total_items"]) == (begin, 3600, "10000")
    code = http_client.ask("POST", f"/checkout?user_id=stats&id={next(items)}").body["checkout_code"]
    http_client.ask("POST", f"/purchase?code={code}")
    after = http_client.ask("GET", "/stats?schedule=hourly").body
    assert (after["success"], after["sale_id"]) == (True, hourly)
    assert int(after["stats"]["items_sold"]) == int(before["items_sold"]) + 1
    assert int(after["stats"]["current_inventory"]) == int(before["current_inventory"]) - 1


def test_an_item_is_checked_out_and_bought_once(http_client: Http, hourly: str, items: Any, operate: Operate) -> None:
    number = next(items)
    checkout = http_client.ask("POST", f"/checkout?user_id=ann&id={number}")
    assert checkout.status == 200
    body = checkout.body
    now_s = operate(lambda admin: admin.now())
    assert 880 <= body["expires_at"] - now_s <= 901
    assert (body["success"], body["message"]) == (True, "Checkout session created successfully")
    purchases = [http_client.ask("POST", f"/purchase?code={body['checkout_code']}") for _ in range(2)]
    assert [it.status for it in purchases] == [200, 200]
    assert purchases[0].body == purchases[1].body
    assert re.fullmatch(r"purchase_[0-9a-f]{16}", purchases[0].body["purchase_id"])
    assert purchases[0].body["message"] == "Purchase completed successfully"
    assert told(http_client.ask("POST", f"/checkout?user_id=bob&id={number}")) == (409, "item sold out")


def test_a_checkout_may_be_repeated_with_its_key(http_client: Http, hourly: str, items: Any) -> None:
    url = f"/checkout?user_id=key&id={next(items)}"
    codes = {http_client.ask("POST", url, idempotency_key="k").body["checkout_code"] for _ in range(2)}
    assert len(codes) == 1


def test_ten_are_enough_for_one_user(http_client: Http, hourly: str, items: Any) -> None:
    for _ in range(10):
        assert http_client.ask("POST", f"/checkout?user_id=greedy&id={next(items)}").status == 200
    refused = http_client.ask("POST", f"/checkout?user_id=greedy&id={next(items)}")
    assert told(refused) == (429, "user purchase limit exceeded")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/checkout", "missing required parameters: user_id and id"),
        ("/checkout?user_id=u", "missing required parameters: user_id and id"),
        ("/checkout?id=1", "missing required parameters: user_id and id"),
        ("/checkout?user_id=&id=1", "missing required parameters: user_id and id"),
        ("/checkout?user_id=u&id=abc", "invalid item id"),
        ("/checkout?user_id=u&id=0", "invalid item id"),
        ("/checkout?user_id=u&id=-1", "invalid item id"),
        ("/checkout?user_id=u&id=10001", "invalid item id"),
        ("/checkout?user_id=u&id=10000001", "invalid item id"),
        ("/checkout?user_id=u&id=" + "9" * 500, "invalid item id"),
        ("/checkout?user_id=u&id=%D9%A1", "invalid item id"),
        ("/checkout?user_id=" + "u" * 257 + "&id=1", "invalid user_id"),
        ("/checkout?user_id=a%00b&id=1", "invalid user_id"),
        ("/purchase", "missing required parameter: code"),
        ("/purchase?code=", "missing required parameter: code"),
        ("/purchase?code=nonsense", "invalid or expired checkout code"),
        ("/purchase?code=" + "A" * 22 + ".sale_1_a", "invalid or expired checkout code"),
        ("/purchase?code=1%27%20OR%20%271%27=%271", "invalid or expired checkout code"),
    ],
)
def test_what_is_missing_or_wrong_is_told(http_client: Http, hourly: str, url: str, message: str) -> None:
    assert told(http_client.ask("POST", url)) == (400, message)


@pytest.mark.parametrize("url", ["/checkout?user_id=%ff&id=1", "/stats?" + "&".join(f"p{n}=1" for n in range(99))])
def test_parameters_that_cannot_be_read_are_a_problem(http_client: Http, hourly: str, url: str) -> None:
    answer = http_client.ask("POST" if url.startswith("/checkout") else "GET", url)
    assert (answer.status, answer.body["type"]) == (400, "urn:flashsale:bad-request")


def test_a_hold_that_was_given_up_cannot_be_bought(http_client: Http, hourly: str, items: Any) -> None:
    code = http_client.ask("POST", f"/checkout?user_id=cy&id={next(items)}").body["checkout_code"]
    assert http_client.ask("DELETE", f"/v1/holds/{code}").status == 200
    assert told(http_client.ask("POST", f"/purchase?code={code}")) == (400, "invalid or expired checkout code")


def test_what_is_held_can_be_bought_while_nothing_else_can(
    http_client: Http, hourly: str, items: Any, operate: Operate
) -> None:
    code = http_client.ask("POST", f"/checkout?user_id=dee&id={next(items)}").body["checkout_code"]
    operate(lambda admin: admin.change(Pause(hourly)))
    assert told(http_client.ask("POST", f"/checkout?user_id=dee&id={next(items)}")) == (409, "the sale is paused")
    assert http_client.ask("POST", f"/purchase?code={code}").status == 200
    operate(lambda admin: admin.change(Resume(hourly)))


def test_one_purchase_in_a_hundred_is_told_a_surprise(http_client: Http, hourly: str, items: Any) -> None:
    for number in range(100):
        code = http_client.ask("POST", f"/checkout?user_id=lucky-{number}&id={next(items)}").body["checkout_code"]
        body = http_client.ask("POST", f"/purchase?code={code}").body
        assert body.get("surprise") == (current.SURPRISE if is_lucky(body["purchase_id"]) else None)
        assert http_client.ask("POST", f"/purchase?code={code}").body == body, "the same whenever it is asked"


@pytest.mark.parametrize("lottery", [True, False])
async def test_the_lucky_ones_are_one_in_a_hundred_unless_there_is_no_lottery(*, lottery: bool) -> None:
    refs = [OrderRef("p", "0000000a", version, 1_900_000_000_000) for version in range(2, 5_002)]
    lucky = [ref for ref in refs if is_lucky(current.make_purchase_id(make_order_id(ref)))]
    assert 25 <= len(lucky) <= 75
    for ref in (lucky[0], next(ref for ref in refs if ref not in lucky)):
        reply = await answered_at("purchase", b"code=" + CODE, Success(1, make_order_id(ref)), lottery=lottery)
        told = json.loads(reply.body)
        assert (reply.status, told.get("surprise")) == (200, current.SURPRISE if lottery and ref in lucky else None)


def test_items_have_names_and_pictures(http_client: Http, hourly: str) -> None:
    item = http_client.ask("GET", "/items/7").body
    assert (item["id"], item["picture"]) == (7, "/items/7.svg")
    picture = http_client.ask("GET", item["picture"])
    assert picture.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(picture.raw).tag.endswith("svg")
    assert item["name"] in picture.raw.decode()
    for number in ("0", "10001", "seven", "-1", "9" * 5_000, "%D9%A1"):
        for url in (f"/items/{number}", f"/items/{number}.svg"):
            assert told(http_client.ask("GET", url)) == (404, "item not found")
