"""Where the topic is, the clients that talk to it, and what their errors mean.

The client is an extra of the package, and imported only by whoever asks for a topic.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from flashsale.errors import BrokerUnavailableError, InvalidValueError

_REQUEST_TIMEOUT_MS = 10_000
_METADATA_AGE_MAX_MS = 30_000
"""Within so long a worker hears of new partitions."""
_SESSION_S = 10.0
"""A worker that is silent for so long loses its partitions to others."""

_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][\s,:/@]+):(\d{1,5})", re.ASCII)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what is wrong is said here, and once


class Topic:
    """A topic on a Kafka cluster."""

    def __init__(self, brokers: str, name: str) -> None:
        """Name the brokers, as HOST:PORT,HOST:PORT, and the topic; connects nowhere.

        Raises:
            InvalidValueError: one of them cannot be right, or the client is not installed.
        """
        for broker in brokers.split(","):
            found = _BROKER.fullmatch(broker)
            if found is None or not 0 < int(found[2]) < 65_536:
                raise InvalidValueError(f"{broker!r} is no broker: give HOST:PORT, or several of them with commas")
        if _TOPIC.fullmatch(name) is None or name in {".", ".."}:
            raise InvalidValueError(
                f"{name!r} is no topic: its name has letters, digits, '.', '_' and '-', at most 249"
            )
        try:
            import aiokafka  # noqa: F401
        except ModuleNotFoundError as error:
            raise InvalidValueError("a topic needs a client of Kafka: pip install 'flashsale[kafka]'") from error
        self.brokers = brokers
        self.name = name

    def make_producer(self) -> Any:
        """Return a producer whose messages a broker keeps once and in order, however often it has to send them."""
        from aiokafka import AIOKafkaProducer

        return AIOKafkaProducer(
            bootstrap_servers=self.brokers,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=_METADATA_AGE_MAX_MS,
        )

    def make_consumer(self, group: str) -> Any:
        """Return a member of a group, which has not subscribed yet and commits nothing by itself."""
        from aiokafka import AIOKafkaConsumer

        return AIOKafkaConsumer(
            bootstrap_servers=self.brokers,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=_METADATA_AGE_MAX_MS,
            session_timeout_ms=round(_SESSION_S * 1000),
            heartbeat_interval_ms=round(_SESSION_S * 1000 / 5),
        )

    def subscribe(self, consumer: Any, revoked: Callable[[], None]) -> None:
        """Have a consumer take its part of the partitions; `revoked` is called whenever it loses them."""
        from aiokafka import ConsumerRebalanceListener

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # it comes without types
            def on_partitions_revoked(self, _partitions: object) -> None:
                revoked()

            def on_partitions_assigned(self, _partitions: object) -> None:
                pass

        consumer.subscribe([self.name], listener=Listener())

    @asynccontextmanager
    async def answering(self, timeout_s: float) -> AsyncIterator[None]:
        """Raise BrokerUnavailableError when a call fails, or takes longer than so many seconds."""
        from aiokafka.errors import KafkaError

        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            raise self.explain(error) from error

    def explain(self, error: BaseException) -> BrokerUnavailableError:
        """Return the error in one sentence, which is the same for as long as the brokers are away."""
        from aiokafka import errors

        match error:
            case errors.UnknownTopicOrPartitionError():
                text = f"Kafka at {self.brokers} has no topic '{self.name}'"
            case errors.KafkaConnectionError():
                text = f"cannot reach Kafka at {self.brokers}"
            case TimeoutError() | errors.KafkaTimeoutError() | errors.RequestTimedOutError():
                text = f"Kafka at {self.brokers} does not answer"
            case _:
                text = f"Kafka at {self.brokers} refused: {' '.join(str(error).split())}"
        return BrokerUnavailableError(text)

    def is_too_large(self, error: BaseException) -> bool:
        """Whether a broker refused a message for its size."""
        from aiokafka.errors import MessageSizeTooLargeError

        return isinstance(error, MessageSizeTooLargeError)


async def stop(client: Any, timeout_s: float) -> None:
    """End a client, within so many seconds also when no broker answers."""
    ending = asyncio.create_task(client.stop())
    done, _ = await asyncio.wait([ending], timeout=timeout_s)
    if not done:
        ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
