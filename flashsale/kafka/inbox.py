"""What was published of the ledgers, read as a member of a group: for a mover the same as the ledgers themselves.

Offsets are committed to the brokers only after a mover has noted that the database has what stands there. Whatever
comes again, because a member died or partitions changed hands, the mover knows to pass over.
"""

import asyncio
import logging
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from flashsale.domain.sale import Change
from flashsale.errors import BrokerUnavailableError
from flashsale.kafka.brokers import Topic, stop
from flashsale.kafka.messages import decode
from flashsale.store.outbox import Delivery

_START_S = 15.0
_ANSWER_S = 5.0
_ASSIGNMENT_S = 0.5
"""For partitions, before a look at what is waiting already."""
_SILENCE_S = 3.0
"""Without messages, until the brokers are asked whether they are there."""
_STOP_S = 2.0
_MESSAGE_COUNT_MAX = 64
"""In one reading."""
_DELIVERY_COUNT_MAX = 5_000
"""Changes of a product, from which on no further message is delivered with them."""
_WAITING_COUNT_MAX = 10_000
"""Changes of a partition, from which on it is not read further; they may wait for a product that is put off."""
_KNOWN_COUNT_MAX = 1_024
"""Products of which nothing waits: of these a mover takes what comes at once, of others with its next look."""

_log = logging.getLogger(__name__)


class _Waiting(Struct, frozen=True):
    """A message that is not in the database yet, as far as is known here."""

    changes: Sequence[Change]
    partition: Any
    offset: int


def _first_version(message: _Waiting) -> int:
    return message.changes[0].version


class _Partition:
    """How far a partition was read, and what of it may be committed."""

    def __init__(self, offset: int) -> None:
        self.waiting: dict[int, int] = {}  # offset -> how many changes, of messages that wait
        self.waiting_count = 0
        self.next_offset = self.committed = offset

    def take(self, offset: int, count: int) -> None:
        """Note that a message was read, with changes that wait, or with nothing of use."""
        self.next_offset = offset + 1
        if count:
            self.waiting[offset] = count
            self.waiting_count += count

    def finish(self, offset: int) -> None:
        """Note that a message is in the database."""
        self.waiting_count -= self.waiting.pop(offset)

    @property
    def done_offset(self) -> int:
        """Before which nothing waits."""
        return next(iter(self.waiting), self.next_offset)


class Inbox:
    """The outbox of a mover that sees only the topic; see flashsale.orders.carrier.Outbox."""

    def __init__(self, topic: Topic, group: str) -> None:
        """Name the topic and the group; connects with the first call."""
        self._topic = topic
        self._group = group
        self._consumer: Any = None
        self._heard_at = float("-inf")
        self._partitions: dict[Any, _Partition] = {}
        self._waiting: dict[str, dict[str, list[_Waiting]]] = {}  # product -> epoch, as they came -> by version
        self._epochs: dict[str, str] = {}  # of products of which something has come, the last one last
        self.undecodable_count = 0
        """Messages that were passed over."""

    async def close(self) -> None:
        """Commit what is done, and leave the group."""
        if self._consumer is not None:
            with suppress(BrokerUnavailableError):
                await self._commit(_STOP_S)
        await self._drop()

    async def epochs(self) -> dict[str, str]:
        """Return the sale of each product of which something has come lately, the earliest that still waits."""
        await self._poll(0)
        waiting = {name: next(iter(sales)) for name, sales in self._waiting.items()}
        return self._epochs | waiting

    async def read(self, positions: Mapping[str, int], wait_s: float) -> list[Delivery]:
        """Return what waits of these products; waits for so long if there is nothing.

        The versions are no matter here: the brokers know what was read.
        """
        if self._consumer is not None:
            await self._commit()
        if self._waiting.keys().isdisjoint(positions):
            await self._poll(wait_s)
        found = []
        for name in self._waiting.keys() & positions.keys():
            epoch, messages = next(iter(self._waiting[name].items()))
            found.append(Delivery(name, epoch, _join(messages)))
        return found

    async def note(self, product_id: str, epoch: str, version: int) -> None:
        """Note up to where a sale is in the database; committed with the next reading."""
        sales = self._waiting.get(product_id, {})
        messages = sales.get(epoch, [])
        count = 0
        for message in messages:
            if message.changes[-1].version > version:
                break
            self._partitions[message.partition].finish(message.offset)
            count += 1
        del messages[:count]
        if not messages and sales.pop(epoch, None) is not None and not sales:
            del self._waiting[product_id]

    async def note_missing(self, positions: Mapping[str, tuple[str, int]]) -> None:
        """Do nothing: what was read and not noted comes again."""

    async def trim(self, product_ids: Iterable[str]) -> None:
        """Do nothing: what a topic keeps is its brokers' business."""

    async def _poll(self, wait_s: float) -> None:
        """Take in what has come, or comes within so many seconds."""
        from aiokafka.errors import KafkaError

        if self._consumer is None:
            await self._open()
        consumer = self._consumer
        assigned = consumer.assignment()
        readable = [name for name in assigned if not self._is_full(name)]
        if assigned and not readable:
            await asyncio.sleep(wait_s)
            return
        found: dict[Any, list[Any]] = {}
        try:
            with suppress(TimeoutError):  # partitions are being shared out
                async with asyncio.timeout(wait_s + _ASSIGNMENT_S):
                    found = await consumer.getmany(
                        *readable, timeout_ms=round(wait_s * 1000), max_records=_MESSAGE_COUNT_MAX
                    )
        except KafkaError as error:  # it may have ended for good
            await self._drop()
            raise self._topic.explain(error) from error
        for partition, records in found.items():
            for record in records:
                self._take(partition, record)
        now = asyncio.get_running_loop().time()
        if found:
            self._heard_at = now
        elif now - self._heard_at >= _SILENCE_S:
            await self._ask()

    def _is_full(self, partition: Any) -> bool:
        found = self._partitions.get(partition)
        return found is not None and found.waiting_count >= _WAITING_COUNT_MAX

    def _take(self, partition: Any, record: Any) -> None:
        """Put a message to those that wait."""
        place = self._partitions.setdefault(partition, _Partition(record.offset))
        try:
            told = decode(record.value or b"")
        except (ValueError, RecursionError) as error:
            self.undecodable_count += 1
            _log.error(
                "message %d of partition %d of topic '%s' is none of ours and was passed over: %s",
                record.offset,
                record.partition,
                self._topic.name,
                " ".join(str(error).split()),
            )
            place.take(record.offset, 0)
            return
        place.take(record.offset, len(told.changes))
        messages = self._waiting.setdefault(told.product_id, {}).setdefault(told.epoch, [])
        insort(messages, _Waiting(told.changes, partition, record.offset), key=_first_version)
        self._epochs.pop(told.product_id, None)
        self._epochs[told.product_id] = told.epoch
        if len(self._epochs) > _KNOWN_COUNT_MAX:  # their number grows for ever, with each recurring sale
            del self._epochs[next(iter(self._epochs))]

    async def _commit(self, timeout_s: float = _ANSWER_S) -> None:
        """Tell the brokers what is done.

        Raises:
            BrokerUnavailableError: they do not take it.
        """
        from aiokafka.errors import CommitFailedError, IllegalStateError

        offsets = {
            name: place.done_offset for name, place in self._partitions.items() if place.done_offset > place.committed
        }
        if not offsets:
            return
        try:
            async with self._topic.answering(timeout_s):
                await self._consumer.commit(offsets)
        except BrokerUnavailableError as error:
            if isinstance(error.__cause__, CommitFailedError | IllegalStateError):
                return  # another member has them now: it reads again what is done already
            raise
        self._heard_at = asyncio.get_running_loop().time()
        for name, offset in offsets.items():
            if name in self._partitions:
                self._partitions[name].committed = offset

    async def _ask(self) -> None:
        """Raise BrokerUnavailableError unless the group's broker answers: a consumer waits silently for lost ones."""
        from aiokafka import TopicPartition

        async with self._topic.answering(_ANSWER_S):
            await self._consumer.committed(TopicPartition(self._topic.name, 0))
        self._heard_at = asyncio.get_running_loop().time()

    async def _open(self) -> None:
        from aiokafka.errors import UnknownTopicOrPartitionError

        consumer = self._topic.make_consumer(self._group)
        try:
            async with self._topic.answering(_START_S):
                await consumer.start()
                if self._topic.name not in await consumer.topics():
                    raise UnknownTopicOrPartitionError
            self._topic.subscribe(consumer, self._forget)
        except BaseException:
            await stop(consumer, _STOP_S)
            raise
        self._consumer = consumer
        self._heard_at = asyncio.get_running_loop().time()

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer, _STOP_S)
        self._forget()

    def _forget(self) -> None:
        """Forget what waits: whoever gets the partitions reads it again from where they were committed."""
        self._partitions.clear()
        self._waiting.clear()
        self._epochs.clear()


def _join(messages: Sequence[_Waiting]) -> list[Change]:
    """Return the changes of messages as far as they follow each other, each once."""
    changes: list[Change] = []
    for message in messages:
        skipped = changes[-1].version + 1 - _first_version(message) if changes else 0
        if skipped < 0 or len(changes) >= _DELIVERY_COUNT_MAX:
            break
        changes += message.changes[skipped:]
    return changes
