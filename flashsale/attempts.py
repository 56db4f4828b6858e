"""What buyers asked and were told, on its way from the workers to the recorder, in groups.

A worker packs a group in one go and hands it over without waiting. What the recorder does not take waits in the worker,
in memory that was set aside for it: to ask the system for more in the middle of a rush costs more than the packing.
When that is full, attempts are dropped, and how many were is told with the next group that there is room for.
"""

import asyncio
import logging
import mmap
import secrets
import socket
import struct
import time
from collections import deque
from contextlib import suppress

import msgspec
from msgspec import Struct

from flashsale.domain.answers import Answer
from flashsale.domain.attempts import KINDS
from flashsale.domain.ids import CODE_SEPARATOR
from flashsale.domain.requests import Request

SIZE_MAX_DEFAULT = 32 * 1024 * 1024
"""Bytes that a worker sets aside for attempts that wait: 200,000 and more, unless their ids are long."""
GROUP_SIZE_MAX = 64 * 1024
"""Bytes of one group, which is one datagram; the system takes at least three times as many."""

_GROUP_COUNT_BEGIN, _GROUP_COUNT_MAX = 256, 1_024
_GROUP_FILL = 0.8
"""How full a group is made that holds as many attempts as the one before: one too large must be packed again."""
_GATHER_S = 0.05
"""Attempts wait so long for others to make a group with, and longer while others wait before them."""
_CLOSE_S = 2.0
"""A worker that ends waits so long for the recorder to take what there is."""
_CLOSE_COUNT_S = 1.0
"""And then so long for it to take the number of what it has not."""
_COUNTER = struct.Struct("=Q")

_log = logging.getLogger(__name__)
_NUMBERS = {kind: number for number, (kind, _) in enumerate(KINDS)}
_number_of = _NUMBERS.__getitem__
_encode_into = msgspec.msgpack.Encoder().encode_into


class Asked(Struct, frozen=True, gc=False):
    """What the recorder reads of a request, of whatever kind; what is missing had its default."""

    product_id: str = ""
    user_id: str | None = None
    quantity: int = 1
    request_id: str | None = None
    item_id: int | None = None
    code: str = ""
    """Of a hold: a secret, but for the product that it names."""

    @property
    def product(self) -> str:
        """The product that was asked for."""
        return self.product_id or self.code.partition(CODE_SEPARATOR)[2]


class Told(Struct, frozen=True, gc=False):
    """What the recorder reads of an answer."""

    status: str
    error: str | None = None
    version: int | None = None
    item_id: int | None = None
    duplicate: bool = False


class Group(Struct, frozen=True, array_like=True):
    """Attempts that one worker has answered, in this order."""

    begun_ms: int
    """When the first was answered: Unix milliseconds, by the server's clock."""
    delays_ms: list[int]
    """Since then, when each was."""
    dropped_count: int
    """Attempts that were dropped since the group before."""
    kinds: bytes
    """For each attempt its place in KINDS."""
    requests: list[Asked]
    answers: list[Told]

    @property
    def attempt_count(self) -> int:
        """How many attempts it tells of."""
        return len(self.kinds) + self.dropped_count


_decode = msgspec.msgpack.Decoder(Group).decode


class Pipe:
    """From all workers of a server to its recorder.

    Made before they are forked and kept by their parent, so that it outlives each of them. Each datagram in it is a
    group: a recorder that is started anew goes on with the next.
    """

    def __init__(self) -> None:
        self.receiving, self.sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.receiving, self.sending):
            end.setblocking(False)  # noqa: FBT003 - the socket API has no keyword for it
        self.name = secrets.token_hex(8)
        """Of this run of the server."""
        self._taken = mmap.mmap(-1, _COUNTER.size)  # shared by all who are forked

    @property
    def taken_count(self) -> int:
        """Attempts that left the pipe, whichever recorder took them."""
        count: int = _COUNTER.unpack_from(self._taken)[0]
        return count

    def take(self) -> Group | None:
        """Return the next group, for the recorder; None when there is none."""
        try:
            group = _decode(self.receiving.recv(2 * GROUP_SIZE_MAX))
        except BlockingIOError:
            return None
        _COUNTER.pack_into(self._taken, 0, self.taken_count + group.attempt_count)
        return group

    def close(self) -> int:
        """Close it, and return how many attempts were left in it."""
        before = self.taken_count
        while self.take() is not None:
            pass
        self.receiving.close()
        self.sending.close()
        return self.taken_count - before


class AttemptSender:
    """A worker's end of the pipe: the Recorder of its batcher. Belongs to one event loop."""

    def __init__(self, sending: socket.socket, *, size_max: int = SIZE_MAX_DEFAULT) -> None:
        """Hand attempts over through this socket.

        Args:
            sending: of a Pipe.
            size_max: bytes for groups that wait here, at least GROUP_SIZE_MAX.
        """
        self._sending = sending
        self._loop = asyncio.get_running_loop()
        self._requests: list[Request] = []  # not packed yet
        self._answers: list[Answer] = []
        self._kinds = bytearray()
        self._delays_ms: list[int] = []
        self._begun_ms = 0
        self._group_count_max = _GROUP_COUNT_BEGIN
        self._timer: asyncio.TimerHandle | None = None
        self._groups: deque[tuple[bytearray, int]] = deque()  # packed, and of how many attempts each tells
        self._spare = [bytearray(b"1" * GROUP_SIZE_MAX) for _ in range(size_max // GROUP_SIZE_MAX)]
        self._dropped_count = 0  # and not told yet
        self._has_dropped = False
        self._is_full = False  # the pipe
        self._handed_over = asyncio.Event()

    def record(self, requests: list[Request], answers: list[Answer]) -> None:
        """Take requests of any kind with their answers; never waits, never fails."""
        now_ms = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000_000
        try:
            kinds = bytes(map(_number_of, map(type, requests)))
        except KeyError:  # somebody else's are among them
            attempts = [pair for pair in zip(requests, answers, strict=True) if type(pair[0]) in _NUMBERS]
            requests, answers = [pair[0] for pair in attempts], [pair[1] for pair in attempts]
            kinds = bytes(map(_number_of, map(type, requests)))
        if not self._requests:
            self._begun_ms = now_ms
        self._requests += requests
        self._answers += answers
        self._kinds += kinds
        self._delays_ms += [now_ms - self._begun_ms] * len(requests)
        if len(self._requests) >= self._group_count_max:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(_GATHER_S, self._hand_over_late)

    async def close(self) -> None:
        """Hand over what is left, or the number of it when that takes too long, or write the number to the log."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()
        if not await self._wait_for_recorder(_CLOSE_S):
            self._dropped_count += sum(count for _, count in self._groups)
            self._spare += [data for data, _ in self._groups]
            self._groups.clear()
            self._send()
            await self._wait_for_recorder(_CLOSE_COUNT_S)
        self._watch(is_full=False)
        lost_count = sum(count for _, count in self._groups) + self._dropped_count
        if lost_count:
            _log.error("%d attempts are not recorded: the recorder did not take them", lost_count)

    async def _wait_for_recorder(self, timeout_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._handed_over.wait()
        return self._handed_over.is_set()

    def _hand_over_late(self) -> None:
        self._timer = None
        if self._is_full and len(self._requests) < self._group_count_max:  # nothing is gained by making a small group
            self._timer = self._loop.call_later(_GATHER_S, self._hand_over_late)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        """Pack what was recorded, and send what the pipe takes."""
        requests, self._requests = self._requests, []
        answers, self._answers = self._answers, []
        kinds, self._kinds = self._kinds, bytearray()
        delays_ms, self._delays_ms = self._delays_ms, []
        first = 0
        while first < len(requests):
            some = slice(first, first + self._group_count_max)
            first += self._group_count_max
            self._add(requests[some], answers[some], kinds[some], delays_ms[some])
        self._send()

    def _add(self, requests: list[Request], answers: list[Answer], kinds: bytearray, delays_ms: list[int]) -> None:
        """Pack attempts into groups that wait, or drop them."""
        if not self._spare:
            self._drop(len(requests))
            return
        data = self._spare.pop()
        try:
            _encode_into((self._begun_ms, delays_ms, self._dropped_count, kinds, requests, answers), data)
        except Exception:  # noqa: BLE001 - a bug must not cost the buyers more than the record of it
            _log.exception("attempts cannot be packed")
            self._spare.append(data)
            self._drop(len(requests))
            return
        if len(data) > GROUP_SIZE_MAX and len(requests) > 1:
            self._spare.append(bytearray(GROUP_SIZE_MAX))  # the other has grown
            middle = len(requests) // 2
            self._add(requests[:middle], answers[:middle], kinds[:middle], delays_ms[:middle])
            self._add(requests[middle:], answers[middle:], kinds[middle:], delays_ms[middle:])
            return
        if requests:
            fitting_count = int(_GROUP_FILL * GROUP_SIZE_MAX * len(requests) / len(data))
            self._group_count_max = max(1, min(fitting_count, _GROUP_COUNT_MAX))
        self._groups.append((data, self._dropped_count + len(requests)))
        self._dropped_count = 0

    def _drop(self, count: int) -> None:
        self._dropped_count += count
        if not self._has_dropped:
            self._has_dropped = True
            _log.warning("attempts are dropped while the recorder is behind; it records how many")

    def _send(self) -> None:
        """Send groups until there are no more or the pipe is full; then go on once it is not."""
        is_full = False
        while not is_full:
            if not self._groups and self._dropped_count:
                self._add([], [], bytearray(), [])  # nobody else is there to tell of them
            if not self._groups:
                break
            try:
                self._sending.send(self._groups[0][0])
            except BlockingIOError:
                is_full = True
            except OSError:
                break  # nobody is there who could take it; neither will we be for long
            else:
                self._spare.append(self._groups.popleft()[0])
        self._watch(is_full=is_full)
        if self._groups:
            self._handed_over.clear()
        else:
            self._handed_over.set()

    def _watch(self, *, is_full: bool) -> None:
        """Have what waits sent when there is room in a pipe that is full."""
        if is_full and not self._is_full:
            self._loop.add_writer(self._sending, self._send)
        elif self._is_full and not is_full:
            self._loop.remove_writer(self._sending)
        self._is_full = is_full
