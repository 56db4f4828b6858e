"""The processes that carry orders: from the ledgers into the database, to a topic, from there; and attempts.

Each builds what it needs from one Config and runs until SIGTERM or SIGINT. What is behind the imports in here takes
longer to import than all else together.
"""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Protocol

import uvloop

from flashsale import crash
from flashsale.attempts import Pipe
from flashsale.backends import Store, open_admin, open_database, open_store
from flashsale.config import Config, OnReject
from flashsale.kafka.brokers import Topic
from flashsale.kafka.inbox import Inbox
from flashsale.kafka.relay import Relay
from flashsale.orders.database import Database
from flashsale.orders.fence import Fence
from flashsale.orders.mover import Mover
from flashsale.orders.recording import Recorder
from flashsale.store.outbox import RedisOutbox
from flashsale.store.relayed import RelayedNotes
from flashsale.store.trimming import Window

_END_S = 3.0
"""From the signal to the end of one whose other side does not answer."""

_RECORD_END_S = 2.0
"""Likewise of a recorder; less than the last third of the time that a server has to end."""
_RECORD_NICENESS = 19

_log = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Gets the one line that says between what orders are moved."""


def move_orders(config: Config, announce: Announce) -> None:
    """Move orders into the database until a signal ends it.

    Raises:
        FlashsaleError: an address is none, or the embedded store does not start.
    """
    crash.arm()
    database = open_database(config)
    with open_store(config) as store:
        announce(f"Worker started - Redis: {store}, database: {database}")
        uvloop.run(move(config, store, database))


def relay_orders(config: Config, topic: Topic, announce: Announce) -> None:
    """Publish orders to a topic until a signal ends it; see move_orders."""
    crash.arm()
    with open_store(config) as store:
        announce(f"Relay started - Redis: {store}, Kafka: {topic.brokers}, topic: {topic.name}")
        uvloop.run(_relay(config, store, topic))


def move_published_orders(config: Config, topic: Topic, group: str, announce: Announce) -> None:
    """Move orders from a topic into the database until a signal ends it, as a member of a group; see move_orders."""
    crash.arm()
    database = open_database(config)
    announce(f"Worker started - Kafka: {topic.brokers}, topic: {topic.name}, group: {group}, database: {database}")
    uvloop.run(_move_published(topic, group, database))


async def move(config: Config, store: Store, database: Database) -> None:
    """Move orders from the ledgers into the database."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        outbox = RedisOutbox(store.url, _window(config))
        stack.push_async_callback(outbox.close)
        admin = await stack.enter_async_context(open_admin(store))
        mover = Mover(
            outbox,
            database,
            fence=Fence(outbox, database, writes=True),
            reject=admin.take_back if config.on_reject is OnReject.REFUND else None,
            revive=store.revive,
        )
        await run_until_told(mover, end_s=_END_S, told=store.give_up)


async def _relay(config: Config, store: Store, topic: Topic) -> None:
    async with AsyncExitStack() as stack:
        notes = RelayedNotes(store.url)
        stack.push_async_callback(notes.close)
        outbox = RedisOutbox(store.url, _window(config), stores=False)
        stack.push_async_callback(outbox.close)
        relay = Relay(outbox, topic, notes, revive=store.revive)
        stack.push_async_callback(relay.close)
        await run_until_told(relay, end_s=_END_S, told=store.give_up)


async def _move_published(topic: Topic, group: str, database: Database) -> None:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        inbox = Inbox(topic, group)
        stack.push_async_callback(inbox.close)
        await run_until_told(Mover(inbox, database), end_s=_END_S)


async def record(pipe: Pipe, database: Database) -> None:
    """Write attempts into the database, with what the sale leaves of the cores."""
    os.nice(_RECORD_NICENESS)
    recorder = Recorder(pipe, database)
    try:
        await run_until_told(recorder, end_s=_RECORD_END_S)
    finally:
        if recorder.unsettled_count:
            _log.error("%d attempts may not be recorded: the database did not say so in time", recorder.unsettled_count)
        await database.close()


def _window(config: Config) -> Window:
    return Window(config.ledger_count, config.ledger_age_s)


class Runner(Protocol):
    """What runs until it is told to end."""

    async def run(self) -> None:
        """Run."""
        ...

    def end(self) -> None:
        """Have `run` return once what is under way is done."""
        ...


async def run_until_told(runner: Runner, *, end_s: float, told: Callable[[], None] = lambda: None) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        runner: what runs.
        end_s: from the signal to its being cancelled, when it takes too long to end.
        told: called with the signal.
    """
    loop = asyncio.get_running_loop()
    running = loop.create_task(runner.run())

    def stop() -> None:
        runner.end()
        loop.call_later(end_s, running.cancel)
        told()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    gc.collect()
    gc.freeze()  # the libraries stay: a collection that walks through them takes a tenth of a second
    with suppress(asyncio.CancelledError):
        await running
