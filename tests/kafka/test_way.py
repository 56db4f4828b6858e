"""From the ledger through a topic into a database: whatever goes away and comes again, each order is one row."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from flashsale.domain.answers import Held, Success
from flashsale.domain.requests import Cancel, Confirm, Extend, Pause, Purchase, Refund, Reserve, Restock, Resume
from flashsale.domain.sale import Change, Kind, Portion
from flashsale.errors import BrokerUnavailableError
from flashsale.kafka import inbox, relay
from flashsale.kafka.brokers import Topic
from flashsale.kafka.inbox import Inbox
from flashsale.kafka.messages import decode, encode
from flashsale.kafka.relay import Relay
from flashsale.orders import carrier, reports
from flashsale.orders.carrier import Carrier
from flashsale.orders.database import Database, database_url
from flashsale.orders.mover import Mover
from flashsale.orders.moving import move
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore
from flashsale.store.outbox import RedisOutbox
from flashsale.store.relayed import RelayedNotes
from tests.kafka.cluster import Cluster
from tests.orders import plain
from tests.orders.test_mover import PATIENCE_S, Shop, until

CHILD = Path(__file__).parent / "child.py"
EPOCH = "0000000a"

on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
async def shop(embedded: EmbeddedStore, database: Database, url: str) -> AsyncIterator[Shop]:
    made = Shop(embedded, database, url)
    await made.redis.flushall()
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than it must be."""
    monkeypatch.setattr(carrier, "_WAIT_S", 0.05)
    monkeypatch.setattr(carrier, "_PUT_OFF_S", 0.02)
    monkeypatch.setattr(inbox, "_ASSIGNMENT_S", 0.1)


@asynccontextmanager
async def running(one: Carrier, *closings: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run it meanwhile; it is alive at the end."""
    task = asyncio.create_task(one.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        one.end()
        await asyncio.wait([task], timeout=PATIENCE_S)
        task.cancel()
        for close in closings:
            await close()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def relaying(shop: Shop, topic: Topic, **options: Any) -> AsyncIterator[Relay]:
    outbox, notes = RedisOutbox(shop.embedded.url), RelayedNotes(shop.embedded.url)
    one = Relay(outbox, topic, notes, **options)
    async with running(one, one.close, outbox.close, notes.close):
        yield one


@asynccontextmanager
async def working(database: Database, topic: Topic, group: str) -> AsyncIterator[Inbox]:
    read = Inbox(topic, group)
    async with running(Mover(read, database), read.close):
        yield read


async def published(topic: Topic) -> list[Portion]:
    """Return all messages of a topic."""
    consumer = AIOKafkaConsumer(topic.name, bootstrap_servers=topic.brokers, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Portion] = []
    for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
        while await consumer.position(partition) < end:
            found += [
                decode(record.value)
                for record in (await consumer.getmany(partition, timeout_ms=500)).get(partition, [])
            ]
    await consumer.stop()
    return found


async def publish(topic: Topic, *messages: bytes, key: str = "p") -> None:
    """Publish messages by hand."""
    producer = topic.make_producer()
    await producer.start()
    for message in messages:
        await producer.send_and_wait(topic.name, message, key=key.encode())
    await producer.stop()


async def committed(topic: Topic, group: str) -> int:
    """Return how many messages of a topic a group has done with."""
    consumer = AIOKafkaConsumer(bootstrap_servers=topic.brokers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    found = [await consumer.committed(TopicPartition(topic.name, number)) for number in range(4)]
    await consumer.stop()
    return sum(offset or 0 for offset in found)


async def run_a_sale(shop: Shop, product_id: str) -> None:
    """Have everything happen that can."""
    await shop.open(product_id)
    order_ids = await shop.buy(product_id, "ann", "bob", "ann", "ä")
    answers = await shop.ask(
        product_id,
        Purchase(product_id, "cy", 3, "r1"),
        *(Reserve(product_id, user, 2) for user in ("dee", "eve", "fay", "gus")),
        Reserve(product_id, "hal", hold_seconds=1),
    )
    codes = [answer.code for answer in answers if isinstance(answer, Held)]
    await shop.ask(product_id, Extend(codes[0], 1_000), Confirm(codes[0]), Cancel(codes[1]))
    [confirmed] = [answer for answer in await shop.ask(product_id, Confirm(codes[2])) if isinstance(answer, Success)]
    async with Admin(shop.embedded.url) as admin:
        for request in (
            Refund(order_ids[1]),
            Refund(confirmed.order_id),
            Restock(product_id, 5),
            Pause(product_id),
            Resume(product_id),
        ):
            await admin.change(request)
    await shop.buy(product_id, "iva")


@asynccontextmanager
async def another_database(tmp_path: Path, name: str = "another.db") -> AsyncIterator[Database]:
    made = Database(database_url(f"sqlite:///{tmp_path / name}", Path()))
    await made.upgrade()
    yield made
    await made.close()


class Children:
    """Processes of the command line, and what they log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._stack = ExitStack()

    def start(self, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, str(CHILD), *arguments],
                env={name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE")} | settings,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._stack.callback(child.communicate)
        self._stack.callback(child.kill)
        return child

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path / "log")
    yield made
    made.close()


# There and back


async def test_the_tables_are_what_a_direct_mover_makes_of_the_ledger(
    shop: Shop, topic: Topic, name: str, tmp_path: Path
) -> None:
    async with relaying(shop, topic), working(shop.database, topic, name):
        for product_id in ("p", "q"):
            await run_a_sale(shop, product_id)
        await until(lambda: shop.is_moved("p", "q"))
        assert len((await plain.read(shop.database))["orders"]) == 16
    async with another_database(tmp_path) as other, shop.mover(other) as mover:
        await shop.step(mover)
        assert await plain.read(other) == await plain.read(shop.database)
    messages = await published(topic)
    for product_id in ("p", "q"):
        epoch, ledger = await shop.ledger(product_id)
        told = [one for one in messages if one.product_id == product_id]
        assert {one.epoch for one in told} == {epoch}
        assert [change for one in told for change in one.changes] == ledger
        assert await shop.redis.hget("products_relayed", product_id) == f"{epoch} {len(ledger)}".encode()
        assert await shop.redis.hget(f"product:{product_id}:sale", "moved") == str(len(ledger)).encode()
    assert await committed(topic, name) == len(messages)


@on_sqlite
async def test_products_are_deleted_once_they_are_handed_on_and_told_again_they_change_nothing(
    shop: Shop, topic: Topic, name: str, tmp_path: Path
) -> None:
    async with relaying(shop, topic), working(shop.database, topic, name):
        await run_a_sale(shop, "p")
        first = await shop.expected("p")
        await shop.reset("p")  # waits for the relay
        await shop.open("p")
        await shop.buy("p", "later")
        expected = plain.together(first, await shop.expected("p"))
        await until(lambda: has(shop.database, expected))
        await shop.reset("p")
        await until(lambda: is_empty(shop))
    again = [next(encode(one.product_id, one.epoch, one.changes)) for one in await published(topic)]
    await publish(topic, again[0], *again)
    async with another_database(tmp_path) as other:
        for database in (shop.database, other):  # all of it from the beginning, into what has it and what has not
            group = f"{name}-{database}"
            async with working(database, topic, group):
                await until(lambda group=group: has_committed(topic, group, 2 * len(again) + 1))
            assert await plain.read(database) == expected
            assert await plain.read_letters(database) == []


async def has(database: Database, rows: plain.Rows) -> bool:
    return await plain.read(database) == rows


async def is_empty(shop: Shop) -> bool:
    return not await shop.redis.exists("products_relayed")


async def has_committed(topic: Topic, group: str, count: int) -> bool:
    return await committed(topic, group) == count


@on_sqlite
async def test_two_relays_and_two_workers_double_nothing_and_lose_nothing(
    shop: Shop, make_topic: Callable[[], Topic], name: str
) -> None:
    order_ids: list[str] = []
    names = [f"p{number}" for number in range(8)]
    other = Database(database_url(shop.url, Path()))
    try:
        async with relaying(shop, make_topic()), working(shop.database, make_topic(), name) as first:
            for product_id in names:
                await shop.open(product_id)
            await until(lambda: shop.is_moved(*names))
            async with relaying(shop, make_topic()), working(other, make_topic(), name) as second:
                while not (second._partitions and first._partitions):  # both have their part
                    for product_id in names:
                        order_ids += await shop.buy(product_id, "a", "b")
                    await asyncio.sleep(0.02)
                await until(lambda: shop.is_moved(*names))
            for product_id in names:  # the first has all of it again
                order_ids += await shop.buy(product_id, "c")
            await until(lambda: shop.is_moved(*names))
    finally:
        await other.close()
    assert sorted(row["order_id"] for row in (await plain.read(shop.database))["orders"]) == sorted(order_ids)


# Death


@on_sqlite
async def test_a_relay_that_is_killed_publishes_again_what_it_had_not_noted(
    shop: Shop, topic: Topic, name: str, children: Children
) -> None:
    command = ("relay", "--kafka", topic.brokers, "--topic", topic.name, "--redis", shop.embedded.url)
    await shop.open("p")
    first = children.start(*command)
    for number in range(10):
        await shop.buy("p", f"a{number}")
    await until(lambda: is_noted(shop))
    first.kill()
    await shop.redis.delete("products_relayed")  # as if it had died a moment before
    await shop.buy("p", "b")
    second = children.start(*command)
    async with working(shop.database, topic, name):
        await until(lambda: shop.is_moved("p"))
        await shop.buy("p", "c")
        await until(lambda: shop.is_moved("p"))
    second.send_signal(signal.SIGTERM)
    assert second.stdout is not None
    assert second.stdout.readline().startswith(f"Relay started - Redis: {shop.embedded.url}, Kafka: {topic.brokers}")
    assert await asyncio.to_thread(second.wait, PATIENCE_S) == 0
    versions = [change.version for one in await published(topic) for change in one.changes]
    assert len(versions) > len(set(versions)), "nothing was published twice"


async def is_noted(shop: Shop) -> bool:
    return bool(await shop.redis.exists("products_relayed"))


@on_postgresql
async def test_a_worker_that_is_killed_before_it_commits_offsets_leaves_no_row_twice(
    shop: Shop, topic: Topic, name: str, children: Children
) -> None:
    await run_a_sale(shop, "p")
    command = ("worker", "--from-kafka", topic.brokers, "--topic", topic.name, "--group", name, "--database", shop.url)
    async with relaying(shop, topic):
        await until(lambda: is_noted(shop))
        first = children.start(*command, KILLED_BEFORE_COMMIT="1")
        assert await asyncio.to_thread(first.wait, PATIENCE_S) == -signal.SIGKILL
        found = await plain.read(shop.database)
        assert found["orders"]
        assert await committed(topic, name) == 0
        second = children.start(*command)
        await shop.buy("p", "b")
        await until(lambda: shop.is_moved("p"))
        await until(lambda: has_committed_all(topic, name))
    second.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(second.wait, PATIENCE_S) == 0
    assert await plain.read_letters(shop.database) == []
    assert second.stdout is not None
    line = second.stdout.readline()
    assert line.startswith(f"Worker started - Kafka: {topic.brokers}, topic: {name}, group: {name}, database: ")


async def has_committed_all(topic: Topic, group: str) -> bool:
    return await committed(topic, group) == len(await published(topic))


# What goes away comes back


@pytest.fixture
def away(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, which is up again after the test."""
    yield cluster
    cluster.up()


@on_sqlite
async def test_the_brokers_go_and_come_back_and_the_log_says_so_once(
    shop: Shop,
    topic: Topic,
    name: str,
    away: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for module in (inbox, relay):
        monkeypatch.setattr(module, "_ANSWER_S", 0.3)
    monkeypatch.setattr(inbox, "_SILENCE_S", 0.2)
    await shop.open("p")
    async with relaying(shop, topic):
        await until(lambda: is_noted(shop))  # now there is a topic
    async with relaying(shop, topic), working(shop.database, topic, name):
        await shop.buy("p", "a")
        await until(lambda: shop.is_moved("p"))
        await until(lambda: is_noted_up_to(shop, 2))
        away.down()
        for number in range(20):
            await shop.buy("p", f"b{number}")
        await until(lambda: says(caplog, "orders are not moved", 2))
        await asyncio.sleep(1)  # in which they try again
        assert not await shop.is_moved("p")
        assert await is_noted_up_to(shop, 2), "it is noted before the brokers have it"
        away.up()
        await shop.buy("p", "c")
        await until(lambda: shop.is_moved("p"))
        await until(lambda: says(caplog, "orders are moved again", 2))
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [f"orders are not moved: Kafka at {topic.brokers} does not answer"] * 2  # each of the two
    versions = [change.version for one in await published(topic) for change in one.changes]
    assert versions == sorted(set(versions)), "what was on its way is neither lost nor sent anew"


async def is_noted_up_to(shop: Shop, version: int) -> bool:
    noted = await shop.redis.hget("products_relayed", "p"), await shop.redis.hget("product:p:sale", "moved")
    return [(found or b"").split()[-1:] for found in noted] == [[str(version).encode()]] * 2


async def says(caplog: pytest.LogCaptureFixture, text: str, count: int) -> bool:
    return sum(record.getMessage().startswith(text) for record in caplog.records) == count


@on_sqlite
async def test_who_starts_before_the_brokers_and_the_topic_are_there_waits_for_them(
    shop: Shop, topic: Topic, name: str, away: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.open("p")
    away.down()
    async with working(shop.database, topic, name):
        await until(lambda: says(caplog, f"orders are not moved: cannot reach Kafka at {topic.brokers}", 1))
        async with relaying(shop, topic):
            await until(lambda: says(caplog, f"orders are not moved: cannot reach Kafka at {topic.brokers}", 2))
            away.up()
            await shop.buy("p", "a")
            await until(lambda: shop.is_moved("p"))


@on_sqlite
async def test_the_store_dies_and_the_relay_goes_on_with_the_next(shop: Shop, topic: Topic, name: str) -> None:
    await shop.open("p")

    async def revive() -> None:
        await asyncio.to_thread(shop.embedded.acquire)

    async with relaying(shop, topic, revive=revive), working(shop.database, topic, name):
        await shop.buy("p", "a")
        await until(lambda: shop.is_moved("p"))
        os.kill((await shop.redis.info("server"))["process_id"], signal.SIGKILL)
        await shop.buy("p", "b")
        await until(lambda: shop.is_moved("p"))


@on_sqlite
async def test_a_relay_and_a_worker_end_in_time_without_brokers(
    shop: Shop, topic: Topic, name: str, away: Cluster, children: Children
) -> None:
    await shop.open("p")
    where = ("--topic", topic.name)
    relaying_one = children.start("relay", "--kafka", topic.brokers, *where, "--redis", shop.embedded.url)
    working_one = children.start(
        "worker", "--from-kafka", topic.brokers, *where, "--group", name, "--database", shop.url
    )
    await until(lambda: shop.is_moved("p"))
    await until(lambda: is_noted(shop))
    away.down()
    await shop.buy("p", "a")
    for one in (relaying_one, working_one):
        one.send_signal(signal.SIGTERM)
    for one in (relaying_one, working_one):
        assert await asyncio.to_thread(one.wait, 10.0) == 0


# What should not be there


def ledger(*users: str) -> list[Change]:
    opened = Change(kind=Kind.OPENED, version=1, at_ms=1_900_000_000_123, remaining=99, quantity=99)
    return [opened] + [
        Change(kind=Kind.SOLD, version=version, at_ms=1_900_000_000_123, remaining=0, user_id=user, quantity=1)
        for version, user in enumerate(users, 2)
    ]


def in_messages(changes: Sequence[Change], size: int = 1, product_id: str = "p") -> list[bytes]:
    return [
        message
        for first in range(0, len(changes), size)
        for message in encode(product_id, EPOCH, changes[first : first + size])
    ]


@on_sqlite
async def test_a_message_that_is_none_of_ours_is_passed_over(
    database: Database, topic: Topic, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened, *sold = in_messages(ledger("a", "b"))
    await publish(topic, b"\xff garbage", opened, b'{"product_id":"p","changes":[["stolen"]]}', *sold)
    async with working(database, topic, name) as read:
        await until(lambda: has(database, plain.together(plain.fold("p", EPOCH, ledger("a", "b")))))
        await until(lambda: has_committed(topic, name, 5))
    assert read.undecodable_count == 2
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all("is none of ours and was passed over: " in error for error in errors)


@on_sqlite
async def test_messages_that_overlap_or_come_too_early_become_the_same_rows(
    database: Database, topic: Topic, name: str
) -> None:
    changes = ledger(*"abcdefgh")
    whole, ones, threes = in_messages(changes, 20), in_messages(changes), in_messages(changes, 3)
    await publish(topic, ones[4], *threes[1:], ones[0], *ones[:3], *whole, *ones)
    async with working(database, topic, name):
        await until(lambda: has(database, plain.together(plain.fold("p", EPOCH, changes))))
        await until(lambda: has_committed(topic, name, 1 + 2 + 1 + 3 + 1 + 9))


@on_sqlite
async def test_products_of_which_nothing_has_come_for_long_are_forgotten(
    database: Database, topic: Topic, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_KNOWN_COUNT_MAX", 2)
    ids = [f"p{number}" for number in range(5)]
    begun, whole = ledger("a"), ledger("a", "b")
    async with working(database, topic, name) as read:
        for changes, size in ((begun, 2), (whole, 3)):  # what comes later is taken as well
            for product_id in ids:
                await publish(topic, *in_messages(changes, size, product_id), key=product_id)
            rows = plain.together(*(plain.fold(product_id, EPOCH, changes) for product_id in ids))
            await until(partial(has, database, rows))
        await until(lambda: has_committed(topic, name, 10))
        assert len(read._epochs) == 2


async def test_a_change_that_the_database_does_not_take_is_a_dead_letter_and_what_is_behind_it_goes_on(
    database: Database, topic: Topic, name: str
) -> None:
    changes = ledger("a", "nul\0", "b")
    await publish(topic, *in_messages(changes, 2))
    async with working(database, topic, name):
        await until(
            lambda: has_orders(database, ["a", "b"] if database.dialect == "postgresql" else ["a", "nul\0", "b"])
        )
        await until(lambda: has_committed(topic, name, 2))
    letters = await reports.list_dead_letters(database)
    assert [letter["version"] for letter in letters] == ([3] if database.dialect == "postgresql" else [])


async def has_orders(database: Database, users: Sequence[str]) -> bool:
    return [row["user_id"] for row in (await plain.read(database))["orders"]] == users


@on_sqlite
async def test_a_gap_blocks_only_its_partition_bounds_what_waits_and_ends_when_another_has_filled_it(
    database: Database, topic: Topic, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_WAITING_COUNT_MAX", 4)
    monkeypatch.setattr(inbox, "_MESSAGE_COUNT_MAX", 2)
    changes = ledger(*"abcdefghijkl")
    await publish(topic, *in_messages(changes)[1:])
    others = {f"q{number}": ledger("x") for number in range(8)}  # some of them in other partitions
    for product_id, sold in others.items():
        await publish(topic, *in_messages(sold, 9, product_id), key=product_id)
    async with working(database, topic, name) as read:
        await until(lambda: waits(read, 4))
        await until(lambda: has_orders_of(database, others, 2))
        assert max(place.waiting_count for place in read._partitions.values()) <= 4 + 2
        assert await read._consumer.committed(read._waiting["p"][EPOCH][0].partition) is None
        assert "p" not in [row["product_id"] for row in (await plain.read(database))["products"]]
        await fill(database, changes[:1])
        await until(lambda: has_rows(database, "p", plain.fold("p", EPOCH, changes)))


async def waits(read: Inbox, count: int) -> bool:
    return any(place.waiting_count >= count for place in read._partitions.values())


async def has_orders_of(database: Database, product_ids: Mapping[str, object], count: int) -> bool:
    return len((await plain.read(database, *product_ids))["orders"]) >= count


async def has_rows(database: Database, product_id: str, rows: plain.Rows) -> bool:
    return await plain.read(database, product_id) == plain.together(rows)


async def fill(database: Database, changes: Sequence[Change]) -> None:
    async with database.writing() as connection:
        assert await move(connection, [Portion("p", EPOCH, changes)]) == len(changes)


@on_sqlite
async def test_a_message_too_large_for_the_brokers_holds_up_its_own_product_only(
    shop: Shop, topic: Topic, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.open("p")
    await shop.open("q")
    async with relaying(shop, topic) as one, working(shop.database, topic, name):
        await until(lambda: shop.is_moved("p", "q"))
        send = one._producer.send

        async def refuse(topic_name: str, message: bytes, key: bytes) -> Any:
            sent = await send(topic_name, message, key=key)
            if key == b"p":
                await asyncio.wait([sent])
                sent = asyncio.get_running_loop().create_future()
                sent.set_exception(MessageSizeTooLargeError())
            return sent

        monkeypatch.setattr(one._producer, "send", refuse)
        await shop.buy("p", "a")
        await shop.buy("q", "a")
        await until(lambda: shop.is_moved("p", "q"))  # another producer has other luck
        assert one._producer.send != refuse


async def test_a_topic_that_is_not_there_is_said_in_one_sentence(topic: Topic) -> None:
    read = Inbox(topic, "g")
    with pytest.raises(BrokerUnavailableError, match=rf"^Kafka at {topic.brokers} has no topic '{topic.name}'$"):
        await read.epochs()
    await read.close()
