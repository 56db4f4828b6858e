"""One connection of the crowd, as lean as it can be: it shares the machine with the server that it measures.

The frames of a connection all have the same size and differ in the user id only, `user_<connection>_<number>`, and in
the request id if they have one. They are made a hundred at a time, by one `bytes.replace`, and sent as slices of that
block.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from bench.load import CONNECTION_LOST, ECHO, NOT_SENT, REQUEST_COUNT_MAX, SOLD_OUT, SUCCESS
from flashsale.domain.requests import Purchase
from flashsale.wire import HEADER_SIZE, MessageType, encode_request

clock_ns = time.monotonic_ns

_BLOCK_COUNT = 100
_HOLE = b"\0" * len("00042_000000")  # no product id can hold it: JSON escapes control characters
_FILLED = "x" * len(_HOLE)
_REQUEST_ID_HEAD = "request-0f8fad5b-d9cb-"  # with what follows as long as a UUID, which most clients would take
_KEY_SIZE = 15
KINDS = {b'{"status":"SUCC': SUCCESS, b'{"status":"SOLD': SOLD_OUT, b'{"product_id":"': ECHO}
"""The usual answers over TCP by the first bytes of their payload; the others are decoded."""
_FINE_US_MAX, _COARSE = 65_536, 63
_COARSE_US_MAX, _COARSER = 1_048_576, 1_023
_KIND_COUNT_MAX = 50
_KIND_SIZE_MAX = 80


class Blocks:
    """Makes the requests of the crowd, `size` bytes each; `make` returns the one in which a user has that name."""

    def __init__(self, make: Callable[[str], bytes]) -> None:
        names = (f"{_FILLED}{number:02d}" for number in range(_BLOCK_COUNT))
        requests = [make(name).replace(_FILLED.encode(), _HOLE) for name in names]
        self.size = len(requests[0])
        self._template = b"".join(requests)

    def block(self, connection: int, number: int) -> bytes:
        """Return the block of that number: a hundred requests of a connection."""
        return self._template.replace(_HOLE, b"%05d_%06d" % (connection, number))


class Frames(Blocks):
    """Purchases of one product over TCP."""

    def __init__(self, product_id: str, *, request_ids: bool = False) -> None:
        super().__init__(lambda name: encode_request(make_purchase(product_id, name, request_ids=request_ids)))


def make_purchase(product_id: str, name: str, *, request_ids: bool) -> Purchase:
    """Return what a user of that name buys."""
    return Purchase(product_id, f"user_{name}", request_id=_REQUEST_ID_HEAD + name if request_ids else None)


def whole_us(latency_ns: int) -> int:
    """Return a latency in microseconds, above 65 ms to a thousandth: 200,000 different ones in two minutes at most."""
    latency_us = latency_ns // 1000
    if latency_us < _FINE_US_MAX:
        return latency_us
    return latency_us | (_COARSE if latency_us < _COARSE_US_MAX else _COARSER)


class Tally:
    """What all connections of a generator have counted so far."""

    def __init__(self, connection_count: int, kinds: Mapping[bytes, str] = KINDS) -> None:
        self._kinds = kinds
        self.usual: dict[bytes, int] = dict.fromkeys(kinds, 0)
        self.rare: dict[str, int] = defaultdict(int)
        self.latencies_us: dict[int, int] = defaultdict(int)
        self.open_count = connection_count
        """Connections that still have something to do."""
        self.finished = asyncio.Event()

    def counts(self) -> dict[str, int]:
        """Return the requests by what became of them."""
        usual = {kind: self.usual[key] for key, kind in self._kinds.items() if self.usual[key]}
        return usual | dict(self.rare)

    def add(self, kind: str, count: int = 1) -> None:
        """Count requests of an unusual end."""
        if count:
            known = kind in self.rare or len(self.rare) < _KIND_COUNT_MAX
            self.rare[kind[:_KIND_SIZE_MAX] if known else "OTHER"] += count

    def close_one(self) -> None:
        """Note that one more connection has nothing left to do."""
        self.open_count -= 1
        if not self.open_count:
            self.finished.set()


class Buyer(asyncio.Protocol):
    """One client: sends as the loop is closed (on each answer) or open (when told), and pairs answers in order."""

    __slots__ = (
        "_block",
        "_block_number",
        "_connection",
        "_counted",
        "_finished",
        "_frames",
        "_kept",
        "_lost_kind",
        "_position",
        "_sent",
        "_tally",
        "_transport",
        "ending",
        "remaining_count",
        "waiting_count",
    )

    def __init__(self, connection: int, frames: Blocks, tally: Tally) -> None:
        self._connection = connection
        self._frames = frames
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._block = b""
        self._block_number = 0
        self._position = 0
        self._kept = b""
        self._sent: deque[tuple[int, int]] = deque()  # (moment in ns, requests) still without an answer
        self._lost_kind = CONNECTION_LOST
        self._counted = False  # the closed loop ends after a number of requests, not after a time
        self._finished = False
        self.waiting_count = 0
        """Requests without an answer."""
        self.remaining_count = 0
        """Requests still to be sent by the closed loop."""
        self.ending = False
        """No request comes from outside any more: finished when the last answer is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; nothing is sent yet."""
        self._transport = cast(asyncio.Transport, transport)

    def start(self, depth: int, count: int | None) -> None:
        """Begin the closed loop, `depth` requests at once; without a count it goes on until `end`."""
        self._counted = count is not None
        self.remaining_count = REQUEST_COUNT_MAX if count is None else count
        self.ending = True
        first_count = min(depth, self.remaining_count)
        self.remaining_count -= first_count
        self.send(first_count, clock_ns())

    def send(self, count: int, moment_ns: int) -> None:
        """Send requests whose latency counts from that moment."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._tally.add(CONNECTION_LOST, count)
            return
        end = self._position + count * self._frames.size
        if end <= len(self._block):
            data = self._block[self._position : end]
            self._position = end
        else:
            data = self._next_blocks(count * self._frames.size)
        self._sent.append((moment_ns, count))
        self.waiting_count += count
        transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Count the answers, and in the closed loop send as many new requests."""
        now_ns = clock_ns()
        if self._kept:
            data = self._kept + data
            self._kept = b""
        count = self._parse(data)
        self.waiting_count -= count
        latencies_us, sent = self._tally.latencies_us, self._sent
        left = count
        while left and sent:
            moment_ns, sent_count = sent[0]
            if sent_count <= left:
                sent.popleft()
                taken = sent_count
            else:
                sent[0] = (moment_ns, sent_count - left)
                taken = left
            left -= taken
            latencies_us[whole_us(now_ns - moment_ns)] += taken
        if self.remaining_count:
            if count > self.remaining_count:
                count = self.remaining_count
            self.remaining_count -= count
            if count:
                self.send(count, now_ns)
        elif self.ending and not self.waiting_count:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what is left without an answer."""
        self._transport = None
        self._tally.add(self._lost_kind, self.waiting_count)
        self.waiting_count = 0
        self._sent.clear()
        if self._counted:
            self._tally.add(NOT_SENT, self.remaining_count)
        self.remaining_count = 0
        self._finish()

    def end(self) -> None:
        """Send no more; finished once the answers that are due have come."""
        self.remaining_count = 0
        self.ending = True
        if not self.waiting_count:
            self._finish()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _parse(self, data: bytes) -> int:
        """Count the answers in a segment by kind, keep an incomplete one, return how many there were."""
        usual = self._tally.usual
        position, size, count = 0, len(data), 0
        while size - position >= HEADER_SIZE:
            end = position + HEADER_SIZE + int.from_bytes(data[position + 1 : position + HEADER_SIZE], "big")
            if end > size:
                break
            try:
                usual[data[position + HEADER_SIZE : position + HEADER_SIZE + _KEY_SIZE]] += 1
                count += 1
            except KeyError:
                count += self._count_rare(data[position], data[position + HEADER_SIZE : end])
            position = end
        self._kept = data[position:]
        return count

    def _count_rare(self, message_type: int, payload: bytes) -> int:
        """Count an answer by its status and error text; return 0 if it answers no request."""
        try:
            answer = msgspec.json.decode(payload, type=dict[str, object])
            kind = ": ".join(str(answer[name]) for name in ("status", "error") if name in answer)
        except ValueError:
            kind = "UNREADABLE"
        if message_type != MessageType.PURCHASE:
            self._lost_kind = kind  # a notice; the server closes after it, and then nothing was executed
            return 0
        self._tally.add(kind or "UNREADABLE")
        return 1

    def _next_blocks(self, size: int) -> bytes:
        data = self._block[self._position :]
        while len(data) < size:
            self._block = self._frames.block(self._connection, self._block_number)
            self._block_number += 1
            self._position = size - len(data)
            data += self._block[: self._position]
        return data

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._tally.close_one()
