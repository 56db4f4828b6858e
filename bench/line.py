"""A connection of the scenarios: pipelined, with typed answers, for any number of customers at once.

It costs more than bench.buyer, which only counts: here what a request is depends on the answer to the one before.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, cast

from bench.buyer import clock_ns
from bench.load import Measured
from bench.result import Result
from flashsale.domain.answers import Answer, Unavailable, Unknown
from flashsale.errors import FlashsaleError
from flashsale.wire import PAYLOAD_SIZE_MAX, ClientRequest, FrameReader, MessageType, decode_answer, encode_request

_CONNECT_TIMEOUT_S = 30.0
_NOT_SENT = Unavailable("not connected")
_LOST = Unknown("connection lost")


class Timings:
    """What was answered to each operation, and how fast."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._latencies_us: dict[str, Counter[int]] = defaultdict(Counter)
        self._started_ns = self._ended_ns = 0

    def add(self, operation: str, answer: Answer, latency_us: int | None = None) -> None:
        """Count an answer; without a latency it is one that never came."""
        self.count(operation, kind_of(answer), latency_us)

    def count(self, operation: str, kind: str, latency_us: int | None = None) -> None:
        """Count an answer of that kind."""
        self._counts[operation][kind] += 1
        if latency_us is not None:
            self._latencies_us[operation][latency_us] += 1

    def begin(self) -> None:
        """Note that this is the start of the run."""
        self._started_ns = clock_ns()

    def end(self) -> None:
        """Note that this is the end of the run."""
        self._ended_ns = clock_ns()

    @property
    def duration_s(self) -> float:
        """From the start to the end of the run."""
        return (self._ended_ns - self._started_ns) / 1e9

    def results(self) -> dict[str, Result]:
        """Return the figures of each operation."""
        return {
            operation: Result(
                [
                    Measured(
                        counts=dict(counts),
                        latencies_us=dict(self._latencies_us[operation]),
                        started_ns=self._started_ns,
                        ended_ns=self._ended_ns,
                        samples=[],
                        cpu_s=0.0,
                    )
                ],
                connection_count=0,
            )
            for operation, counts in self._counts.items()
        }


def as_json(results: dict[str, Result]) -> dict[str, Any]:
    """Return the figures of each operation as they go into a JSON file."""
    return {
        operation: {
            "answers": result.counts,
            "rate_per_s": result.throughput_per_s,
            "latency_mean_ms": result.latency_mean_ms,
            "latency_ms": result.latencies_ms,
        }
        for operation, result in results.items()
    }


def kind_of(answer: Answer) -> str:
    """Return an answer's status, with its error text, and whether it is the repetition of an earlier one."""
    status = str(answer.__struct_config__.tag)
    error = getattr(answer, "error", None)
    again = " again" if getattr(answer, "duplicate", False) else ""
    return f"{status}: {error}" if error else status + again


class Line(asyncio.Protocol):
    """One connection; answers come in the order of requests."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._reader = FrameReader(PAYLOAD_SIZE_MAX)
        self._sent: deque[tuple[asyncio.Future[Answer], str, int]] = deque()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Give each answer to whoever waits for it."""
        now_ns = clock_ns()
        for message_type, payload in self._reader.feed(data):
            if message_type == MessageType.NOTICE or not self._sent:
                continue  # it answers nobody; the server closes after it
            future, operation, moment_ns = self._sent.popleft()
            answer = decode_answer(payload)
            self._timings.add(operation, answer, (now_ns - moment_ns) // 1000)
            if not future.done():
                future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Answer for the server what it will not answer any more."""
        self._transport = None
        while self._sent:
            future, operation, _ = self._sent.popleft()
            self._timings.add(operation, _LOST)
            if not future.done():
                future.set_result(_LOST)

    def send(self, requests: Sequence[tuple[str, ClientRequest]]) -> list[asyncio.Future[Answer]]:
        """Send requests, each with the operation that it counts as, in one segment; return their answers to come."""
        futures: list[asyncio.Future[Answer]] = [self._loop.create_future() for _ in requests]
        open_transport = None if self._transport is None or self._transport.is_closing() else self._transport
        moment_ns = clock_ns()
        for future, (operation, _) in zip(futures, requests, strict=True):
            if open_transport is not None:
                self._sent.append((future, operation, moment_ns))
            else:
                self._timings.add(operation, _NOT_SENT)
                future.set_result(_NOT_SENT)
        if open_transport is not None:
            open_transport.write(b"".join([encode_request(request) for _, request in requests]))
        return futures

    async def ask(self, operation: str, request: ClientRequest) -> Answer:
        """Send one request and return its answer."""
        return await self.send([(operation, request)])[0]

    def close(self) -> None:
        """Close the connection once everything is sent, and wait for no answers."""
        if self._transport is not None:
            self._transport.close()


async def connect(host: str, port: int, count: int, timings: Timings) -> list[Line]:
    """Return as many connections; raises FlashsaleError when one cannot be made."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            made: list[tuple[Any, Line]] = await asyncio.gather(
                *(loop.create_connection(lambda: Line(timings), host, port) for _ in range(count))
            )
    except OSError as error:  # also the time-out
        raise FlashsaleError(f"cannot connect {count} times to {host}:{port}: {error}") from error
    return [line for _, line in made]
