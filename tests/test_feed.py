"""Subscriptions over a ledger in memory: what each subscriber hears, whatever happens to it and to the ledger."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest

from flashsale import feed as feed_module
from flashsale.domain.answers import BUSY, NOT_EXECUTED, NOT_FOUND, Answer, Subscribed
from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import Subscribe
from flashsale.domain.sale import Change, Kind, Page, Standing
from flashsale.errors import StoreUnavailableError
from flashsale.feed import Feed
from flashsale.subscriptions import FeedLimits
from flashsale.wire import FrameReader, decode_feed_event

PATIENCE_S = 20.0


class Books:
    """What a store would hold: for each product its epoch and its changes, batch by batch."""

    def __init__(self) -> None:
        self.batches: dict[str, list[list[Change]]] = {}
        self.epochs: dict[str, str] = {}
        self.versions: dict[str, int] = defaultdict(int)
        self.plain: set[str] = set()  # with a stock, but without a ledger
        self.unreadable: set[str] = set()
        self.away = False
        self.pages_read = 0

    def open(self, product_id: str, epoch: str) -> None:
        """Open a sale, also anew; the versions go on."""
        self.batches[product_id], self.epochs[product_id] = [], epoch
        self._write(product_id, [Kind.OPENED])

    def sell(self, product_id: str, count: int = 1) -> None:
        """Sell so many units in one batch."""
        self._write(product_id, [Kind.SOLD] * count)

    def _write(self, product_id: str, kinds: list[Kind]) -> None:
        first = self.versions[product_id] + 1
        self.versions[product_id] += len(kinds)
        self.batches[product_id].append(
            [Change(kind=kind, version=first + i, at_ms=0, remaining=0) for i, kind in enumerate(kinds)]
        )

    def trim(self, product_id: str, batch_count: int) -> None:
        """Keep so many batches."""
        self.batches[product_id] = self.batches[product_id][-batch_count:] if batch_count else []

    def delete(self, product_id: str) -> None:
        for part in (self.batches, self.epochs, self.versions):
            part.pop(product_id, None)


class MemoryLedger:
    """Reads those books as the feed expects it; pages are three batches long."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def _visit(self) -> None:
        await asyncio.sleep(0)
        if self._books.away:
            raise StoreUnavailableError("away")

    async def standings(self, product_ids: Sequence[str]) -> list[Standing | None]:
        await self._visit()
        return [None if name in self._books.unreadable else self._standing(name) for name in product_ids]

    def _standing(self, name: str) -> Standing:
        books = self._books
        exists = name in books.plain or name in books.epochs
        return Standing(exists, books.epochs.get(name, ""), books.versions.get(name, 0))

    async def products(self, count_max: int) -> set[str] | None:
        await self._visit()
        return set(self._books.epochs) if len(self._books.epochs) <= count_max else None

    async def page(self, product_id: str, after_version: int) -> Page | None:
        await self._visit()
        self._books.pages_read += 1
        if product_id in self._books.unreadable:
            return None
        return self._page(product_id, after_version)

    def _page(self, product_id: str, after_version: int) -> Page:
        books = self._books
        ahead = [batch for batch in books.batches.get(product_id, []) if batch[-1].version > after_version]
        return Page(
            product_id=product_id,
            epoch=books.epochs.get(product_id, ""),
            version=books.versions.get(product_id, 0),
            batches=ahead[:3],
            complete=len(ahead) <= 3,
            position=ahead[:3][-1][-1].version if ahead else after_version,
        )

    async def wait(self, positions: Mapping[str, int], timeout_s: float) -> list[Page]:
        await self._visit()
        pages = [self._page(name, version) for name, version in positions.items() if name not in self._books.unreadable]
        if not any(page.batches for page in pages):
            await asyncio.sleep(timeout_s)
        await self._visit()
        return [page for page in pages if page.batches]

    async def close(self) -> None: ...


class Listener:
    """A subscriber that takes so many bytes, then pauses until it is asked to go on."""

    def __init__(self, feed: Feed, room: int = 1 << 30) -> None:
        self._feed = feed
        self.room = room
        self.listening = False
        self.connected = True
        self.held_back: set[int] = set()  # tickets whose answer waits for its turn
        self.answers: list[Answer] = []
        self.dismissed: Answer | None = None
        self.events: list[FeedEvent] = []

    @property
    def writable(self) -> bool:
        return self.connected and self.room > 0

    def answer(self, ticket: int, answer: Answer) -> None:
        self.answers.append(answer)

    def has_answered(self, ticket: int) -> bool:
        return ticket not in self.held_back

    def flush(self) -> None:
        self._feed.pump(self)

    def push(self, frames: bytes) -> None:
        assert self.writable
        self.room -= len(frames)
        reader = FrameReader()
        self.events += [decode_feed_event(payload) for _, payload in reader.feed(frames)]
        assert not reader.incomplete

    def dismiss(self, answer: Answer) -> None:
        self.dismissed = answer
        self.leave()

    def leave(self) -> None:
        self.connected = False
        self._feed.forget(self)

    def take(self, room: int) -> None:
        self.room = room
        self._feed.pump(self)

    async def subscribe(
        self, product_id: str | None = None, after_version: int | None = None, epoch: str | None = None
    ) -> Answer:
        count = len(self.answers)
        self._feed.subscribe(Subscribe(product_id, after_version, epoch), self, count)
        await until(lambda: len(self.answers) > count)
        return self.answers[-1]

    def heard(self, product_id: str = "p") -> list[tuple[str, int]]:
        return [(event.event, event.version) for event in self.events if event.product_id == product_id]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - the conditions are of many kinds
            await asyncio.sleep(0.001)


def sold(first: int, last: int) -> list[tuple[str, int]]:
    return [("sold", version) for version in range(first, last + 1)]


@pytest.fixture
def books() -> Books:
    books = Books()
    books.open("p", "e1")
    return books


MakeFeed = Callable[..., Feed]


@pytest.fixture
async def make_feed(books: Books, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeFeed]:
    hasty = {"_WAIT_S": 0.002, "_CHECK_S": 0.01, "_RETRY_PAUSE_S": 0.002}
    small = {"_ADMITTED_TOGETHER_COUNT": 4, "_ENCODED_TOGETHER_COUNT": 2, "_SERVED_TOGETHER_COUNT": 3}
    for name, value in (hasty | small).items():
        monkeypatch.setattr(feed_module, name, value)
    feeds = []

    def make(**limits: int) -> Feed:
        feeds.append(Feed(MemoryLedger(books), MemoryLedger(books), FeedLimits(**limits)))
        return feeds[-1]

    yield make
    for feed in feeds:
        await feed.close()


@pytest.fixture
async def feed(make_feed: MakeFeed) -> Feed:
    return make_feed()


# What is heard


async def test_without_a_version_only_what_comes_later_is_heard(feed: Feed, books: Books) -> None:
    books.sell("p", 3)
    it = Listener(feed)
    assert await it.subscribe("p") == Subscribed(product_id="p", version=4, epoch="e1")
    assert it.listening
    books.sell("p", 2)
    await until(lambda: it.heard() == sold(5, 6))


@pytest.mark.parametrize("after_version", range(9))
async def test_with_a_version_everything_behind_it_is_heard_and_then_what_comes(
    feed: Feed, books: Books, after_version: int
) -> None:
    for count in (1, 2, 1, 1, 2):
        books.sell("p", count)
    it = Listener(feed)
    await it.subscribe("p", after_version)
    books.sell("p")
    await until(lambda: it.heard()[-1:] == [("sold", 9)])
    assert it.heard() == [("opened", 1), *sold(2, 9)][after_version:]


async def test_a_product_without_a_ledger_is_heard_from_its_first_change(feed: Feed, books: Books) -> None:
    books.plain.add("plain")
    it = Listener(feed)
    assert await it.subscribe("plain") == Subscribed(product_id="plain", version=0)
    books.open("plain", "e9")
    books.sell("plain")
    await until(lambda: it.heard("plain") == [("opened", 1), ("sold", 2)])


async def test_nothing_is_pushed_before_the_answer_has_had_its_turn(feed: Feed, books: Books) -> None:
    books.sell("p", 5)
    it = Listener(feed)
    it.held_back.add(0)
    await it.subscribe("p", 0)
    books.sell("p")
    await asyncio.sleep(0.05)
    assert it.events == []
    it.held_back.clear()
    it.flush()
    await until(lambda: it.heard() == [("opened", 1), *sold(2, 7)])


async def test_another_subscribe_moves_the_cursor(feed: Feed, books: Books) -> None:
    books.sell("p", 3)
    it = Listener(feed)
    await it.subscribe("p")
    await it.subscribe("p", 2)
    await until(lambda: it.heard() == sold(3, 4))
    await it.subscribe("p", 3)
    await until(lambda: it.heard() == [*sold(3, 4), *sold(4, 4)])
    books.sell("p")
    await until(lambda: it.heard()[-1] == ("sold", 5))
    assert len(it.events) == 4, "one cursor, not three"


# Gaps and resets


@pytest.mark.parametrize(("kept", "gap"), [(2, 3), (1, 4), (0, 5)])
async def test_what_the_ledger_no_longer_has_is_a_gap(feed: Feed, books: Books, kept: int, gap: int) -> None:
    for _ in range(4):
        books.sell("p")
    books.trim("p", kept)
    it = Listener(feed)
    await it.subscribe("p", 1)
    books.sell("p")
    await until(lambda: it.heard()[-1:] == [("sold", 6)])
    assert it.heard() == [("gap", gap), *sold(gap + 1, 6)]
    assert it.events[0].after_version == 1


async def test_what_is_trimmed_before_it_was_read_is_a_gap_for_those_who_listen(feed: Feed, books: Books) -> None:
    it = Listener(feed)
    await it.subscribe("p")
    books.sell("p", 3)
    books.trim("p", 0)
    await until(lambda: it.heard() == [("gap", 4)])
    books.sell("p")
    await until(lambda: it.heard() == [("gap", 4), ("sold", 5)])


async def test_a_product_deleted_and_opened_again_is_told_once_and_followed(feed: Feed, books: Books) -> None:
    books.sell("p", 5)
    it = Listener(feed)
    await it.subscribe("p")
    books.delete("p")
    await until(lambda: it.heard() == [("reset", 0)])
    assert it.events[0].epoch == ""
    books.open("p", "e2")
    books.sell("p")
    await until(lambda: it.heard() == [("reset", 0), ("opened", 1), ("sold", 2)])
    books.delete("p")
    books.open("p", "e3")
    await until(lambda: it.heard()[3:] == [("reset", 0), ("opened", 1)])
    assert [event.epoch for event in it.events] == ["", "e2", "", "e3", "e3"]


async def test_a_sale_opened_anew_whose_versions_go_on_is_a_reset(feed: Feed, books: Books) -> None:
    books.sell("p", 2)
    it, late = Listener(feed), Listener(feed)
    await it.subscribe("p")
    books.open("p", "e2")
    await until(lambda: it.heard() == [("reset", 0), ("opened", 4)])
    await late.subscribe("p", 2)  # it knows of no epoch
    await until(lambda: late.heard() == [("reset", 0), ("opened", 4)])


@pytest.mark.parametrize(("version", "epoch"), [(2, "e1"), (1, "e0"), (0, "e1"), (9, None), (9, "e2")])
async def test_who_comes_back_to_another_sale_is_told(
    feed: Feed, books: Books, version: int, epoch: str | None
) -> None:
    books.delete("p")
    books.open("p", "e2")
    books.sell("p", 2)
    it = Listener(feed)
    await it.subscribe("p", version, epoch)
    await until(lambda: it.heard() == [("reset", 0), ("opened", 1), *sold(2, 3)])
    assert it.events[0].epoch == "e2"


async def test_who_comes_back_to_the_same_sale_hears_of_no_other(feed: Feed, books: Books) -> None:
    books.sell("p", 2)
    it = Listener(feed)
    await it.subscribe("p", 2, "e1")
    await until(lambda: it.heard() == sold(3, 3))


async def test_a_store_that_lost_its_last_changes_is_a_reset(feed: Feed, books: Books) -> None:
    books.sell("p", 3)
    it = Listener(feed)
    await it.subscribe("p")
    books.batches["p"].pop()
    books.versions["p"] = 1
    await until(lambda: it.heard() == [("reset", 0), ("opened", 1)])


# All products


async def test_all_products_are_heard_those_to_come_too(feed: Feed, books: Books) -> None:
    books.open("q", "e2")
    it = Listener(feed)
    assert await it.subscribe() == Subscribed(version=0)
    await until(
        lambda: {(e.event, e.version, e.epoch) for e in it.events} == {("subscribed", 1, "e1"), ("subscribed", 1, "e2")}
    )
    books.sell("q")
    books.open("new", "e3")
    books.sell("new")
    await until(lambda: it.heard("new") == [("opened", 1), ("sold", 2)] and it.heard("q")[1:] == sold(2, 2))
    books.delete("new")
    await until(lambda: it.heard("new")[2:] == [("reset", 0)])
    await until(lambda: "new" not in feed._tails)
    books.open("new", "e4")
    await until(lambda: it.heard("new")[3:] == [("opened", 1)])
    assert it.heard() == [("subscribed", 1)]


async def test_a_product_of_all_may_be_subscribed_to_from_an_earlier_version(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed(named_count_max=1)
    for name in ("q", "r"):
        books.open(name, "e")
        books.sell(name, 3)
    it = Listener(feed)
    await it.subscribe()
    for name in ("q", "r"):
        assert isinstance(await it.subscribe(name, 2), Subscribed)
        await until(lambda name=name: it.heard(name) == [("subscribed", 4), *sold(3, 4)])  # type: ignore[misc]
    assert await it.subscribe() == Subscribed(version=0)
    books.sell("q")
    await until(lambda: it.heard("q")[3:] == sold(5, 5))


async def test_what_is_followed_already_goes_on_without_being_announced_again(feed: Feed, books: Books) -> None:
    books.open("q", "e2")
    it = Listener(feed)
    await it.subscribe("p")
    for _ in range(2):
        assert await it.subscribe() == Subscribed(version=0)
        await until(lambda: it.heard("q") == [("subscribed", 1)])
    books.sell("p")
    books.sell("q")
    await until(lambda: it.heard("p") == sold(2, 2) and it.heard("q") == [("subscribed", 1), *sold(2, 2)])


async def test_a_product_that_cannot_be_read_is_new_once_it_can(feed: Feed, books: Books) -> None:
    books.unreadable.add("p")
    it, one = Listener(feed), Listener(feed)
    assert await it.subscribe() == Subscribed(version=0)
    assert await one.subscribe("p") == NOT_EXECUTED
    books.sell("p")
    await asyncio.sleep(0.05)
    books.unreadable.clear()
    await until(lambda: it.heard() == [("opened", 1), ("sold", 2)])


# Answers other than that


async def test_a_sale_that_ends_while_it_is_asked_about_is_asked_about_again(
    feed: Feed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, other = Listener(feed), Listener(feed)
    await it.subscribe("p")
    good = MemoryLedger.standings
    opened_anew = False

    async def slow(self: MemoryLedger, product_ids: Sequence[str]) -> list[Standing | None]:
        nonlocal opened_anew
        found = await good(self, product_ids)
        if self is feed._reading and not opened_anew:
            opened_anew = True
            books.delete("p")
            books.open("p", "e2")
            await until(lambda: len(it.events) == 2)
        return found

    monkeypatch.setattr(MemoryLedger, "standings", slow)
    assert await other.subscribe("p") == Subscribed(product_id="p", version=1, epoch="e2")
    books.sell("p")
    await until(lambda: other.heard() == [("sold", 2)])
    assert it.heard() == [("reset", 0), ("opened", 1), ("sold", 2)]


async def test_who_waits_while_others_begin_is_asked_for_again_if_a_sale_ends_meanwhile(
    feed: Feed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.open("q", "e")
    first, second = Listener(feed), Listener(feed)

    def end_the_sale() -> None:
        assert first.answers
        assert not second.answers
        books.delete("p")
        books.open("p", "e2")
        feed._tails["p"].renew("e2")
        books.sell("p", 3)

    def begun(ticket: int, answer: Answer) -> None:
        first.answers.append(answer)
        asyncio.get_running_loop().call_soon(end_the_sale)  # now it is the buyers' turn

    monkeypatch.setattr(first, "answer", begun)
    for it in (first, second):
        feed.subscribe(Subscribe(), it, 0)
    await until(lambda: second.heard() == [("subscribed", 4)])
    await until(lambda: first.heard() == [("subscribed", 0), ("opened", 1), *sold(2, 4)])
    assert {event.epoch for it in (first, second) for event in it.events if event.event == "subscribed"} == {"e", "e2"}


async def test_who_leaves_while_the_store_is_asked_has_nobody_asked_for_again(
    feed: Feed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, leaving = Listener(feed), Listener(feed)
    await leaving.subscribe("p")
    good, asked_count = MemoryLedger.standings, 0

    async def slow(self: MemoryLedger, product_ids: Sequence[str]) -> list[Standing | None]:
        nonlocal asked_count
        asked_count += self is feed._reading
        leaving.leave()
        return await good(self, product_ids)

    monkeypatch.setattr(MemoryLedger, "standings", slow)
    assert isinstance(await it.subscribe("p"), Subscribed)
    assert asked_count == 1
    books.sell("p")
    await until(lambda: it.heard() == sold(2, 2))


async def test_a_page_of_a_sale_that_was_opened_anew_is_not_told(
    make_feed: MakeFeed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = make_feed()
    books.sell("p", 3)
    good = MemoryLedger.page
    opened_anew = False

    async def slow(self: MemoryLedger, product_id: str, after_version: int) -> Page | None:
        nonlocal opened_anew
        if not opened_anew:
            opened_anew = True
            books.delete("p")
            books.open("p", "e2")
            books.sell("p", 9)
        return await good(self, product_id, after_version)

    monkeypatch.setattr(MemoryLedger, "page", slow)
    it = Listener(feed)
    await it.subscribe("p", 2)
    await until(lambda: it.heard()[-1:] == [("sold", 10)])
    assert it.heard() == [("reset", 0), ("opened", 1), *sold(2, 10)]


async def test_no_such_product(feed: Feed) -> None:
    it = Listener(feed)
    assert await it.subscribe("no-such") == NOT_FOUND
    assert not it.listening


async def test_a_store_that_is_away_is_unavailable_and_missed_by_nobody(feed: Feed, books: Books) -> None:
    it, late = Listener(feed), Listener(feed)
    await it.subscribe("p")
    books.away = True
    await asyncio.sleep(0.02)
    assert await late.subscribe("p") == NOT_EXECUTED
    assert await late.subscribe() == NOT_EXECUTED
    books.sell("p", 2)
    await asyncio.sleep(0.02)
    books.away = False
    await until(lambda: it.heard() == sold(2, 3))
    assert isinstance(await late.subscribe("p"), Subscribed)


async def test_a_crowd_that_asks_a_store_that_is_away_is_answered_at_once(feed: Feed, books: Books) -> None:
    books.away = True
    crowd = [Listener(feed) for _ in range(50)]
    for it in crowd:
        feed.subscribe(Subscribe("p"), it, 0)
    await until(lambda: all(it.answers == [NOT_EXECUTED] for it in crowd))


async def test_a_page_that_could_not_be_read_is_read_again(feed: Feed, books: Books) -> None:
    books.sell("p", 3)
    it = Listener(feed)
    it.held_back.add(0)
    await it.subscribe("p", 0)
    books.away = True
    it.held_back.clear()
    it.flush()
    await asyncio.sleep(0.02)
    books.away = False
    await until(lambda: it.heard() == [("opened", 1), *sold(2, 4)])


async def test_beyond_a_bound_it_is_busy(make_feed: MakeFeed, books: Books) -> None:
    for name in ("q", "r", "s"):
        books.open(name, "e")
    one = Listener(make_feed(named_count_max=2))
    assert [type(await one.subscribe(name)) for name in ("p", "q", "p")] == [Subscribed] * 3
    assert await one.subscribe("r") == BUSY
    feed = make_feed(product_count_max=2)
    first, second = Listener(feed), Listener(feed)
    assert [type(await first.subscribe(name)) for name in ("p", "q")] == [Subscribed] * 2
    assert await first.subscribe("r") == BUSY
    assert await second.subscribe() == BUSY
    assert isinstance(await second.subscribe("p"), Subscribed)
    feed = make_feed(cursor_count_max=3)
    first, second = Listener(feed), Listener(feed)
    assert await first.subscribe() == BUSY
    assert [type(await first.subscribe(name)) for name in ("p", "q", "r")] == [Subscribed] * 3
    assert await second.subscribe("p") == BUSY
    first.leave()
    assert isinstance(await second.subscribe("p"), Subscribed)
    books.plain.add("plain")  # and so it is not one of all
    for limits in ({"product_count_max": 4}, {"cursor_count_max": 4}):
        first = Listener(make_feed(**limits))
        assert isinstance(await first.subscribe("plain"), Subscribed)
        assert await first.subscribe() == BUSY
    feed = make_feed(asked_count_max=1)
    for ticket in range(3):
        feed.subscribe(Subscribe("p"), first, ticket)
    assert first.answers[-2:] == [BUSY, BUSY]


async def test_too_many_products_are_busy_for_those_alone_who_ask_for_all(
    make_feed: MakeFeed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("q", "r"):
        books.open(name, "e")
    feed = make_feed(product_count_max=2)
    good, asked_for = MemoryLedger.standings, set()

    async def record(self: MemoryLedger, product_ids: Sequence[str]) -> list[Standing | None]:
        asked_for.update(product_ids)
        return await good(self, product_ids)

    monkeypatch.setattr(MemoryLedger, "standings", record)
    everything, one = Listener(feed), Listener(feed)
    feed.subscribe(Subscribe(), everything, 0)
    feed.subscribe(Subscribe("p"), one, 0)
    await until(lambda: bool(everything.answers and one.answers))
    assert everything.answers == [BUSY]
    assert one.answers == [Subscribed(product_id="p", version=1, epoch="e1")]
    assert asked_for == {"p"}


@pytest.mark.parametrize("limits", [{"product_count_max": 2}, {"cursor_count_max": 2}])
async def test_who_would_miss_a_new_product_is_parted_from(
    make_feed: MakeFeed, books: Books, limits: dict[str, int]
) -> None:
    it = Listener(make_feed(**limits))
    await it.subscribe()
    books.open("q", "e")
    await until(lambda: ("opened", 1) in it.heard("q"))
    books.open("r", "e")
    await until(lambda: it.dismissed == BUSY)


async def test_those_who_wait_for_an_answer_at_the_end_are_refused(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed()
    it = Listener(feed)
    feed.subscribe(Subscribe("p"), it, 0)
    await feed.close()
    assert it.answers == [NOT_EXECUTED]
    feed = make_feed()
    feed.subscribe(Subscribe("p"), it, 0)
    await asyncio.sleep(0)  # the store is being asked
    await feed.close()
    assert it.answers == [NOT_EXECUTED] * 2


async def test_who_left_before_the_answer_is_not_followed(feed: Feed) -> None:
    it = Listener(feed)
    feed.subscribe(Subscribe("p"), it, 0)
    it.leave()
    other = Listener(feed)
    await other.subscribe("p")
    assert it.answers == []
    other.leave()
    assert not feed._tails, "nobody follows it any more"


# Slow subscribers


async def test_a_subscriber_that_pauses_goes_on_where_it_was_and_holds_up_nobody(
    make_feed: MakeFeed, books: Books
) -> None:
    feed = make_feed(kept_count_max=5, push_size_max=150)
    quick, slow = Listener(feed), Listener(feed, room=1)
    for it in (quick, slow):
        await it.subscribe("p")
    for _ in range(40):
        books.sell("p", 2)
    await until(lambda: quick.heard() == sold(2, 81))
    assert len(slow.events) <= 2
    while slow.heard() != sold(2, 81):
        count = len(slow.events)
        slow.take(1)
        await until(lambda count=count: len(slow.events) > count)  # type: ignore[misc]
    assert feed._tails["p"].window.count <= 5


class Turns:
    """Counts the turns of the event loop, and what is pushed to some subscribers in each."""

    def __init__(self) -> None:
        self.number = 0
        self.pushed: list[tuple[int, Listener, int]] = []  # turn, to whom, bytes

    async def count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.number += 1

    def watch(self, it: Listener) -> None:
        push = it.push

        def watched(frames: bytes) -> None:
            self.pushed.append((self.number, it, len(frames)))
            push(frames)

        it.push = watched  # type: ignore[method-assign]


@pytest.fixture
async def turns() -> AsyncIterator[Turns]:
    turns = Turns()
    counting = asyncio.create_task(turns.count())
    yield turns
    counting.cancel()


@pytest.mark.parametrize("room", [300, 1 << 30])
async def test_buyers_have_a_turn_after_so_many_bytes_however_much_is_owed(
    make_feed: MakeFeed, books: Books, turns: Turns, room: int
) -> None:
    slice_size, turn_size = 500, 2_000
    feed = make_feed(push_size_max=slice_size, turn_size_max=turn_size)
    for _ in range(30):
        books.sell("p", 5)
    crowd = [Listener(feed, room) for _ in range(20)]
    for it in crowd:
        turns.watch(it)
        feed.subscribe(Subscribe("p", 0), it, 0)

    def all_told() -> bool:
        for it in crowd:
            if it.room <= 0:
                it.take(room)
        return all(it.heard()[-1:] == [("sold", 151)] for it in crowd)

    await until(all_told)
    pushed_sizes: dict[int, int] = defaultdict(int)
    for number, _, size in turns.pushed:
        pushed_sizes[number] += size
    assert max(pushed_sizes.values()) < 3 * (turn_size + slice_size), "three tasks push, each so much in a turn"
    assert sum(pushed_sizes.values()) > 30 * turn_size


async def test_those_who_are_behind_take_turns_a_slice_at_a_time(
    make_feed: MakeFeed, books: Books, turns: Turns
) -> None:
    feed = make_feed(push_size_max=300)
    for _ in range(20):
        books.sell("p", 5)
    crowd = [Listener(feed) for _ in range(3)]
    for it in crowd:
        turns.watch(it)
        feed.subscribe(Subscribe("p", 0), it, 0)
    await until(lambda: all(it.heard()[-1:] == [("sold", 101)] for it in crowd))
    order = [crowd.index(it) for _, it, _ in turns.pushed]
    assert len(order) > 60
    for first in range(0, len(order), 3):
        assert set(order[first : first + 3]) == {0, 1, 2}


async def test_news_reaches_a_crowd_in_several_turns(make_feed: MakeFeed, books: Books, turns: Turns) -> None:
    feed = make_feed(turn_count_max=3)
    crowd = [Listener(feed) for _ in range(10)]
    for it in crowd:
        turns.watch(it)
        await it.subscribe("p")
    books.sell("p")
    await until(lambda: all(it.heard() == sold(2, 2) for it in crowd))
    told_in = [number for number, _, _ in turns.pushed]
    assert len(told_in) == 10
    assert max(told_in.count(number) for number in told_in) == 3


async def test_news_is_for_those_who_are_not_behind(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed(push_size_max=1)
    books.sell("p", 50)
    current, behind = Listener(feed), Listener(feed, room=1)
    await current.subscribe("p")
    await behind.subscribe("p", 0)
    await until(lambda: bool(behind.events))
    [cursor] = feed._subscriptions.find_current(feed._tails["p"])
    assert cursor.listener.subscriber is current
    books.sell("p")
    await until(lambda: current.heard() == sold(52, 52))
    behind.take(1 << 30)
    await until(lambda: behind.heard() == [("opened", 1), *sold(2, 52)])


async def test_who_asks_while_others_are_far_behind_does_not_wait_for_them(
    make_feed: MakeFeed, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = make_feed(push_size_max=1, turn_size_max=1)  # one event in a turn
    for _ in range(3):
        books.sell("p", 50)
    behind, other = Listener(feed), Listener(feed)
    good = behind.push
    heard_count = 0

    def push(frames: bytes) -> None:
        good(frames)
        if len(behind.events) == 9:
            feed.subscribe(Subscribe("p"), other, 0)

    def answer(ticket: int, answer: Answer) -> None:
        nonlocal heard_count
        heard_count = len(behind.events)

    monkeypatch.setattr(behind, "push", push)
    monkeypatch.setattr(other, "answer", answer)
    await behind.subscribe("p", 0)
    await until(lambda: behind.heard() == [("opened", 1), *sold(2, 151)])
    assert 9 <= heard_count < 30


async def test_a_subscriber_of_many_products_gets_a_slice_of_them_in_a_turn(
    make_feed: MakeFeed, books: Books, turns: Turns
) -> None:
    for number in range(40):
        books.open(f"q{number}", "e")
    it = Listener(make_feed(push_size_max=300, turn_count_max=3))
    turns.watch(it)
    it.held_back.add(0)
    await it.subscribe()
    it.held_back.clear()
    it.flush()
    await until(lambda: len(it.events) == 41)
    assert {event.event for event in it.events} == {"subscribed"}
    assert len({number for number, _, _ in turns.pushed}) > 10


async def test_one_page_serves_all_who_are_behind(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed()
    for _ in range(300):
        books.sell("p", 2)
    crowd = [Listener(feed) for _ in range(50)]
    for number, it in enumerate(crowd):
        feed.subscribe(Subscribe("p", number * 10), it, 0)
    await until(lambda: all(it.heard()[-1:] == [("sold", 601)] for it in crowd))
    for number, it in enumerate(crowd):
        assert [version for _, version in it.heard()] == list(range(number * 10 + 1, 602))
    assert books.pages_read < 250, "a page for each would be thousands"


async def test_a_page_is_read_again_when_the_ledger_could_not_be_read(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed()
    books.sell("p", 3)
    it = Listener(feed)
    it.held_back.add(0)
    await it.subscribe("p", 0)
    books.unreadable.add("p")
    it.held_back.clear()
    it.flush()
    await until(lambda: books.pages_read > 0)
    books.unreadable.clear()
    await until(lambda: it.heard() == [("opened", 1), *sold(2, 4)])


async def test_a_large_page_is_served_in_parts(make_feed: MakeFeed, books: Books) -> None:
    feed = make_feed(page_size_max=100, pages_size_max=100)
    for _ in range(20):
        books.sell("p", 2)
    it = Listener(feed)
    await it.subscribe("p", 0)
    await until(lambda: it.heard() == [("opened", 1), *sold(2, 41)])
    assert sum(window.size for _, window in feed._subscriptions._pages) <= 2 * 100 + 200
    await until(lambda: not feed._subscriptions._pages)


async def test_a_bug_is_survived(feed: Feed, books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Listener(feed)
    await it.subscribe("p")
    good = MemoryLedger.wait

    async def bad(self: MemoryLedger, positions: Mapping[str, int], timeout_s: float) -> list[Page]:
        raise KeyError("a bug")

    monkeypatch.setattr(MemoryLedger, "wait", bad)
    await asyncio.sleep(0.05)
    monkeypatch.setattr(MemoryLedger, "wait", good)
    books.sell("p")
    await until(lambda: it.heard() == sold(2, 2))


# Everything at once


def check_story(it: Listener, product_id: str, first: int) -> None:
    """Check that each event follows the one before, but for a gap that says so and a reset."""
    version: int | None = first
    for event in it.events:
        if event.product_id != product_id:
            continue
        if event.event == "reset":
            version = None
        elif event.event == "gap":
            assert (event.after_version or 0) <= (version or 0) < event.version
            version = event.version
        else:
            assert event.version == (version or 0) + 1 or (event.event == "opened" and not version)
            version = event.version


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_everyone_hears_everything_in_order(  # noqa: C901 - one table
    make_feed: MakeFeed, books: Books, seed: int
) -> None:
    chance = random.Random(seed)
    feed = make_feed(kept_count_max=chance.choice([1, 6, 4_096]), push_size_max=chance.choice([1, 500, 65_536]))
    books.open("q", "e")
    listeners: list[tuple[Listener, dict[str, int]]] = []
    for turn in range(250):
        name = chance.choice(["p", "q"])
        match chance.randrange(14):
            case 0 if turn % 3 == 0:
                books.open(name, f"e{turn}")
            case 1 if turn % 3 == 0:
                books.delete(name)
                books.open(name, f"e{turn}")
            case 2 if turn % 3 == 0:
                books.trim(name, chance.randrange(3))
            case 3 | 4:
                it = Listener(feed, chance.choice([1, 300, 1 << 20]))
                after_version = chance.choice([None, chance.randrange(books.versions[name] + 1)])
                answer = await it.subscribe(name, after_version, books.epochs[name])
                assert isinstance(answer, Subscribed)
                listeners.append((it, {name: answer.version if after_version is None else after_version}))
            case 5:
                books.away = True
                await asyncio.sleep(0.005)
                books.away = False
            case 6 | 7 if listeners:
                chance.choice(listeners)[0].take(chance.choice([1, 300, 1 << 20]))
            case 8 if len(listeners) > 5:
                listeners.pop(chance.randrange(len(listeners)))[0].leave()
            case _:
                books.sell(name, chance.randrange(1, 6))
        await asyncio.sleep(chance.choice([0, 0, 0.002]))
    for name in ("p", "q"):
        books.sell(name)
    for it, _ in listeners:
        it.take(1 << 30)
    await until(
        lambda: all(
            it.heard(name)[-1:] == [("sold", books.versions[name])] for it, firsts in listeners for name in firsts
        )
    )
    for it, firsts in listeners:
        for name, first in firsts.items():
            check_story(it, name, first)
