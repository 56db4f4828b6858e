"""Publishes what happens in the ledgers to a topic, at least once and in order for each product.

Any number may run: what two of them publish is there twice, which its readers know to pass over.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flashsale.domain.sale import Portion
from flashsale.errors import BrokerUnavailableError, StoreUnavailableError
from flashsale.kafka.brokers import Topic, stop
from flashsale.kafka.messages import encode
from flashsale.orders.carrier import Carrier, Outbox
from flashsale.store.relayed import RelayedNotes

_START_S = 15.0
_ANSWER_S = 5.0
"""After so long without an acknowledgement the log says so; it is waited for nevertheless."""
_STOP_S = 2.0


class _Flight:
    """Portions on their way."""

    def __init__(self, portions: Sequence[Portion]) -> None:
        self.portions = portions
        self.unsent = deque(
            (number, portion.product_id.encode(), message)
            for number, portion in enumerate(portions)
            for message in encode(portion.product_id, portion.epoch, portion.changes)
        )
        self.sent: list[list[asyncio.Future[Any]]] = [[] for _ in portions]
        """For each portion, what will say of each of its messages that a broker has it."""

    def failure(self, number: int) -> BaseException | None:
        """Return why a portion is not there as a whole, once all was sent and decided."""
        return next((found for found in [sent.exception() for sent in self.sent[number]] if found), None)

    def abandon(self) -> None:
        """Forget what has become of it."""
        for sent in self.sent:
            for future in sent:
                if not future.cancel():
                    future.exception()  # or it is told that nobody asked


class Relay(Carrier):
    """One relay; `run` it once, then `close` it."""

    def __init__(
        self, outbox: Outbox, topic: Topic, notes: RelayedNotes, revive: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Publish from there to there.

        Args:
            outbox: the ledgers.
            topic: where to.
            notes: how far each of them is published.
            revive: called when the store cannot be reached: it may start it again.
        """
        super().__init__(outbox, revive)
        self._topic = topic
        self._notes = notes
        self._producer: Any = None
        self._flight: _Flight | None = None

    async def close(self) -> None:
        """Give up the connections; what no broker has acknowledged is published again by the next relay."""
        await self._drop()

    async def _prepare(self) -> None:
        await self._open()

    async def _open(self) -> None:
        producer = self._topic.make_producer()
        try:
            async with self._topic.answering(_START_S):
                await producer.start()
                await producer.partitions_for(self._topic.name)
        except BaseException:
            await stop(producer, _STOP_S)
            raise
        self._producer = producer

    async def _drop(self) -> None:
        """Give up the producer: a new one knows nothing of the messages that went wrong."""
        producer, self._producer = self._producer, None
        flight, self._flight = self._flight, None
        if producer is not None:
            await stop(producer, _STOP_S)
        if flight is not None:
            flight.abandon()

    async def _known(self, epochs: Mapping[str, str]) -> dict[str, tuple[str, int]]:
        """Return how far this relay or another one is."""
        noted = await self._notes.read()
        gone = noted.keys() - epochs.keys()
        if gone:
            await self._notes.forget(gone)
        found = {}
        for name, epoch in epochs.items():
            places = [place for place in (noted.get(name), self._positions.get(name)) if place and place[0] == epoch]
            found[name] = max(places, default=(epoch, 0))
        return found

    async def step(self, wait_s: float) -> int:
        """Publish what there is, or what comes within so many seconds, or wait for what is on its way."""
        return await super().step(wait_s) if self._flight is None else await self._land(self._flight)

    async def _carry(self, portions: Sequence[Portion]) -> int:
        if not portions:
            return 0
        if self._producer is None:
            await self._open()
        self._flight = _Flight(portions)
        return await self._land(self._flight)

    async def _land(self, flight: _Flight) -> int:
        """Wait until the brokers have what is on its way, and note it. When they are silent, call again."""
        try:
            async with self._topic.answering(_ANSWER_S):
                while flight.unsent:
                    number, key, message = flight.unsent[0]
                    flight.sent[number].append(await self._producer.send(self._topic.name, message, key=key))
                    flight.unsent.popleft()
                await asyncio.wait([future for sent in flight.sent for future in sent])
        except BrokerUnavailableError as error:
            if not isinstance(error.__cause__, TimeoutError):
                await self._drop()
            raise
        self._flight = None
        failures = [flight.failure(number) for number in range(len(flight.portions))]
        if any(failures):
            await self._drop()
        await self._note([portion for portion, why in zip(flight.portions, failures, strict=True) if why is None])
        for portion, why in zip(flight.portions, failures, strict=True):
            if why is not None and not self._topic.is_too_large(why):
                raise self._topic.explain(why)
            if why is not None:
                self._put_off(portion.product_id, str(self._topic.explain(why)))
        return sum(len(portion.changes) for portion, why in zip(flight.portions, failures, strict=True) if why is None)

    async def _note(self, portions: Sequence[Portion]) -> None:
        if not portions:
            return
        with suppress(StoreUnavailableError):  # it may be full, or read-only: then the next relay publishes it again
            await self._notes.write(
                {portion.product_id: (portion.epoch, portion.changes[-1].version) for portion in portions}
            )
        for portion in portions:
            await self._advance(portion)
            self.moved_count += len(portion.changes)
