"""The page at `/`, in a real browser, with a real sale running."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashsale import Client
from flashsale.domain.answers import Held, ProductStatus, SoldOut, Success
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from tests.browser import ENTER, ESCAPE, TAB, Browser
from tests.conftest import kept_port
from tests.http.client import Http

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
MARKUP = "<b>bold</b>"
ON_SALE = "document.querySelectorAll('#stock li').length === 3"
FOLLOWS = "changes.source.readyState === EventSource.OPEN"  # from here on it is told what is sold
NETWORK = re.compile(r"net::ERR_|EventSource")  # what a browser says of a server that is away


class Shop:
    """A server that can be stopped and started again in its place."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home, self._environment, self.port = home, environment, kept_port()
        self._server: ServerProcess | None = None
        self.start()

    def start(self) -> None:
        flags = ["--home", str(self._home), "--listen", f"127.0.0.1:{self.port}"]
        self._server = ServerProcess(flags, environment=self._environment, log=subprocess.DEVNULL)

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def run(self, act):
        """Return what comes of act(client, admin)."""

        async def running():
            async with Admin(f"unix://{self._home}/valkey.sock") as admin, Client("127.0.0.1", self.port) as client:
                return await act(client, admin)

        return asyncio.run(running())

    def status(self, product_id: str) -> ProductStatus:
        return self.run(lambda client, _: client.status(product_id))


@pytest.fixture(scope="module")
def shop(module_home: Path, environment: dict[str, str]) -> Iterator[Shop]:
    shop = Shop(module_home, environment)
    yield shop
    shop.stop()


@pytest.fixture(scope="module")
def sale(shop: Shop) -> list[str]:
    """Sales that go on, from the first test on that asks for them."""

    async def sell(client, admin):
        await admin.init("iphone15", 2_000)
        await admin.init("seats", 5)
        await admin.init(MARKUP, 100)
        for number in range(7):
            answer = await client.purchase("seats", f"user_{number}")
            assert isinstance(answer, Success if number < 5 else SoldOut)
        assert isinstance(await client.reserve("iphone15", "holder", quantity=3), Held)
        await asyncio.gather(*(client.purchase("iphone15", f"buyer_{number}") for number in range(700)))

    shop.run(sell)
    return ["iphone15", "seats", MARKUP]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing and os.environ.get("FLASHSALE_REQUIRE_BROWSER"):
        pytest.fail(f"{missing[0]} is missing, and FLASHSALE_REQUIRE_BROWSER says that it must be there")
    if missing:
        pytest.skip(f"needs {missing[0]}, which is not installed here")
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, shop: Shop) -> Iterator[Browser]:
    """The page as wide as a desk's screen, open for as long as the tests of this module; nothing on it goes wrong."""
    browser.resize(1280, 1000)
    if browser.run("location.href") != shop.url:
        open_page(browser, shop)
    yield browser
    assert browser.complaints() == []


def open_page(browser: Browser, shop: Shop) -> None:
    browser.open(shop.url)
    browser.until(f"document.body.className === 'live' && {FOLLOWS}")


def row(product_id: str) -> str:
    """Return what finds the row of a product, in the page's own language."""
    return (
        f"[...document.querySelectorAll('#stock li')].find((row) => row.innerText.startsWith({json.dumps(product_id)}))"
    )


def told(product_id: str, status: ProductStatus) -> str:
    """Return the condition that the page tells these numbers of a product."""
    left, sold, held = status.remaining_stock, status.sold, status.held
    words = re.escape(f"{left:,} left") + r"\s+" + re.escape(f"{sold:,} sold, {held:,} held, of {left + sold + held:,}")
    return f"/{words}/.test(({row(product_id)})?.innerText)"


def test_it_is_one_file_that_a_browser_keeps(shop):
    http = Http(shop.port)
    first = http.ask("GET", "/")
    assert (first.status, first.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert first.raw == Path("flashsale/http/page.html").read_bytes()
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f'"other", W/{tag}', "*"):
        again = http.ask("GET", "/", if_none_match=known)
        assert (again.status, again.raw, again.headers["etag"]) == (304, b"", tag)
    for known in ('"other"', ""):
        assert http.ask("GET", "/", if_none_match=known).status == 200
    assert http.ask("HEAD", "/").headers["content-length"] == str(len(first.raw))
    assert http.ask("POST", "/", {}).status == 405
    http.close()


def test_it_may_run_its_own_script_and_ask_this_server_and_nothing_else(shop):
    http = Http(shop.port)
    answer = http.ask("GET", "/")
    http.close()
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert all(re.fullmatch(r"'sha256-[\w+/]{43}='", policy[kind]) for kind in ("script-src", "style-src"))
    text = answer.raw.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|\sstyle=|\son\w+=", text)
    assert set(re.findall(r"https?://[^\s'\"]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_when_nothing_is_on_sale_it_says_how_to_begin(page):
    page.until("document.body.innerText.includes('Nothing is on sale')")
    assert "flashsale init iphone15 100" in page.text("main")
    assert not page.run("[...document.querySelectorAll('.column')].some((column) => column.checkVisibility())")
    assert page.run("document.querySelectorAll('#workers tr').length") == 1


def test_its_numbers_are_the_stores(page, sale, shop):
    for product_id in sale:
        page.until(told(product_id, shop.status(product_id)))
    assert "sold out" in page.run(f"{row('seats')}.innerText")
    # 5 seats, 700 phones
    page.until("document.querySelector('[data-outcome=SUCCESS]')?.lastElementChild.innerText === '705'")
    assert page.run("document.querySelector('[data-outcome=SOLD_OUT]').lastElementChild.innerText") == "2"
    page.until("/^highest [1-9]/.test(document.querySelector('#sales-peak').innerText)")
    assert page.run("document.querySelector('.sales .line').getAttribute('d').length > 10")
    sizes = (
        "[...document.querySelectorAll('#stock .bar')].map((bar) => [...bar.children].map((part) => part.style.width))"
    )
    assert page.run(sizes) == [["0%", "0%"], ["35%", "0.15%"], ["100%", "0%"]]


def test_what_buyers_call_themselves_is_text(page, sale, shop):
    names = [HOSTILE, "</li><script>document.title='taken'</script>", "&lt;b&gt;", "\u202eresrever", "x" * 256]

    async def sell(client, _):
        for name in names:
            assert isinstance(await client.purchase(MARKUP, name, quantity=2), Success)

    open_page(page, shop)
    page.until("document.querySelector('#orders-note').checkVisibility()")
    shop.run(sell)
    page.until(f"document.querySelectorAll('#orders li').length === {len(names)}")
    shown = page.run(
        "[...document.querySelectorAll('#orders li')].map((row) => [...row.children].map((e) => e.textContent))"
    )
    assert [cells[1] for cells in shown] == names[::-1]
    assert {(cells[3], cells[4]) for cells in shown} == {(MARKUP, "× 2")}
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", cells[0]) for cells in shown)
    page.until(told(MARKUP, shop.status(MARKUP)))
    assert page.run("[document.title, document.querySelectorAll('img, li script, b').length]") == ["flashsale", 0]


def test_it_is_as_wide_as_a_phone(page, sale):
    page.resize(360, 740)
    page.until(ON_SALE)
    assert page.run("document.scrollingElement.scrollWidth") == 360
    wider = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 360).length"
    assert page.run(wider) == 0


def test_a_keyboard_is_enough(page, sale, shop):
    page.until(ON_SALE)
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
    page.press(TAB)
    assert page.run(focused) == "Filter products"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(*"PHONE")
    assert page.run("[...document.querySelectorAll('#stock bdi')].map((name) => name.innerText)") == ["iphone15"]
    page.press(TAB, ENTER)
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.run("[document.querySelector('#orders-title').innerText, location.hash]") == [
        "Last orders of iphone15",
        "#iphone15",
    ]
    page.until(FOLLOWS)

    async def sell(client, _):
        await client.purchase(MARKUP, "somebody else")
        await client.purchase("iphone15", "ann")

    shop.run(sell)
    page.until("document.querySelector('#orders .who')?.innerText === 'ann'")
    page.until(
        told("iphone15", shop.status("iphone15"))
    )  # a second later: the row that has the focus is still the same
    assert page.run(focused) == "iphone15"
    assert page.run("document.querySelectorAll('#orders li').length") == 1
    page.press(ENTER)
    assert page.run("[document.querySelector('#orders-title').innerText, location.hash]") == ["Last orders", ""]
    page.run("document.querySelector('#filter').focus()")
    page.press(ESCAPE)
    assert page.run(ON_SALE)


def test_it_says_what_it_is_to_those_who_do_not_see_it(page, sale):
    landmarks = "[...document.querySelectorAll('header, main, footer')].map((e) => e.localName)"
    assert page.run(landmarks) == ["header", "main", "footer"]
    visible = "[...document.querySelectorAll('section, input, button')].filter((e) => e.checkVisibility())"
    assert page.run(f"{visible}.filter((e) => !e.ariaLabel && !e.innerText).length") == 0
    page.until("/sales a second, [0-9,]+ left in all/.test(document.querySelector('[role=status]#summary').innerText)")
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"
    assert page.run(moving) == 0
    page.command("Emulation.setEmulatedMedia", features=[])
    assert page.run(moving) > 0


def test_without_a_store_it_says_so_and_keeps_what_was_left(page, sale):
    page.until(ON_SALE)
    before = page.text("#stock")
    assert not page.run("document.querySelector('#alarm').checkVisibility()")
    page.run("pictures.hear(JSON.stringify({...live, store_up: false, products: []}))")
    assert (page.text("#alarm"), page.text("#stock")) == (
        "The store is away: nothing is sold until it is back.",
        before,
    )
    page.until("!document.querySelector('#alarm').checkVisibility()")  # with the next picture


def test_a_crowd_leaves_it_as_large_as_it_was(page, sale, shop):
    async def sell(client, _):
        for number in range(60):
            await client.purchase("iphone15", f"crowd_{number}")
            await asyncio.sleep(0.02)

    shop.run(sell)
    page.until("document.querySelector('#orders .who')?.innerText === 'crowd_59'")
    assert page.run("[document.querySelectorAll('#orders li').length, orders.length, recent.length <= 12]") == [
        12,
        12,
        True,
    ]
    assert page.run("orders.every((order) => order.buyer.startsWith('crowd_'))")
    assert page.run("salesChart.values.length") == 300


def test_a_page_that_was_left_keeps_no_connection(page, shop):
    for _ in range(4):  # of two connections each: a browser has six for a server
        open_page(page, shop)


def test_it_comes_back_with_its_server(page, sale, shop):
    shop.stop()
    page.until("document.querySelector('#state').innerText === 'reconnecting'")
    assert page.run("document.body.className") == "stale"
    shop.start()
    page.until("document.body.className === 'live'")

    async def sell(client, _):
        for number in range(100):
            if page.run("document.querySelector('#orders .who')?.innerText.startsWith('back')"):
                return
            await client.purchase("iphone15", f"back_{number}")
            await asyncio.sleep(0.05)

    shop.run(sell)
    page.until("document.querySelector('#orders .who')?.innerText.startsWith('back')")
    page.until(told("iphone15", shop.status("iphone15")))
    assert all(NETWORK.search(line) for line in page.complaints())
