"""One client's connection without its socket: bytes in, requests out; answers and events in, bytes out, in order.

The shell (server.py) hands every segment to `receive`, submits the requests that come back, and hands each answer to
`answer` with the request's ticket. Answers may come in any order; `data_to_send` gives them in the order of the
requests (protocol.md, "Pipelining and order"). What is pushed goes between them, frame by frame, and delays none.
"""

from flashsale.domain.answers import Answer, Failed
from flashsale.wire import (
    PAYLOAD_TOO_LARGE,
    ClientRequest,
    FrameReader,
    MessageType,
    decode_request,
    encode_answer,
    encode_frame,
)

IN_FLIGHT_DEFAULT = 1024
"""How many requests of one connection may wait for their answers before reading stops."""

EARLY_SIZE_MAX = 256 * 1024
"""Bytes of answers that may wait behind one that is not there yet, before reading stops: PINGs may be large."""

TURN_COUNT_MAX = 128
"""Requests that a connection takes up before others have a turn: the smallest cost microseconds, and a segment of those
would be thousands."""

TURN_SIZE_MAX = 32 * 1024
"""The same in bytes, up to one request more: PINGs are answered at once, and may not be read."""

_TYPE_BITS = 8
_TYPE_MASK = (1 << _TYPE_BITS) - 1
_PING = int(MessageType.PING)


class ServerConnection:
    """Parses requests, keeps answers in order, and says when to stop reading and when to close.

    A ticket is an int that stands for one request of this connection; its meaning is private to this class.
    """

    __slots__ = (
        "_early",
        "_early_size",
        "_head",
        "_in_flight_count_max",
        "_next",
        "_out",
        "_reader",
        "_resume_count_max",
        "closing",
        "saturated",
    )

    def __init__(self, *, payload_size_max: int, in_flight_count_max: int = IN_FLIGHT_DEFAULT) -> None:
        self._reader = FrameReader(payload_size_max)
        self._in_flight_count_max = in_flight_count_max
        self._next = 0  # the index of the next request
        self._head = 0  # the index of the first request whose answer is not yet in _out
        self._early: dict[int, bytes] | None = None  # answers that came before their turn
        self._early_size = 0  # in bytes
        self._out: list[bytes] = []
        self._resume_count_max = 0  # go on when no more than so many are unanswered
        self.saturated = False
        """Requests wait for the next turn, or behind the in-flight limit; the shell should stop reading."""
        self.closing = False
        """No request is taken any more; close once `unanswered_count` is 0 and the bytes are out."""

    @property
    def unanswered_count(self) -> int:
        """How many requests were handed out and have no answer yet."""
        return self._next - self._head

    @property
    def received_count(self) -> int:
        """How many whole frames were taken so far."""
        return self._next

    @property
    def resumable(self) -> bool:
        """Whether `resume` takes requests up: half of those in flight are answered, or only their turn was missing."""
        return self.saturated and self.unanswered_count <= self._resume_count_max and self._early_size < EARLY_SIZE_MAX

    @property
    def incomplete(self) -> bool:
        """Whether the peer has begun a frame and not finished it."""
        return self._reader.incomplete

    def receive(self, data: bytes) -> list[tuple[int, ClientRequest]]:
        """Take a segment and return (ticket, request) for each request that someone must decide.

        What the connection answers by itself (PING, every error) goes straight to the output.
        """
        if self.closing:
            return []
        if self.saturated:
            self._reader.feed(data, count_max=0)
            return []
        return self._take(data)

    def resume(self) -> list[tuple[int, ClientRequest]]:
        """Return those of the requests that wait whose turn it is."""
        return self._take(b"") if self.resumable else []

    def _take(self, data: bytes) -> list[tuple[int, ClientRequest]]:
        reader = self._reader
        count_max = self._in_flight_count_max - (self._next - self._head)
        if count_max > TURN_COUNT_MAX:
            count_max = TURN_COUNT_MAX
        if self._early_size >= EARLY_SIZE_MAX:
            count_max = 0
        frames = reader.feed(data, count_max=count_max, size_max=TURN_SIZE_MAX)
        requests: list[tuple[int, ClientRequest]] = []
        for frame in frames:
            message_type = frame[0]
            ticket = self._next << _TYPE_BITS | message_type
            self._next += 1
            if message_type == _PING:
                self._put(ticket, encode_frame(message_type, frame[1]))
                continue
            request = decode_request(frame)
            if isinstance(request, str):
                self.answer(ticket, Failed(request))
            else:
                requests.append((ticket, request))
        self.saturated = reader.holds_back
        if self.saturated:
            full = self.unanswered_count >= self._in_flight_count_max
            self._resume_count_max = self._in_flight_count_max // 2 if full else self._in_flight_count_max - 1
        if reader.oversized is not None:
            self._refuse_oversized(reader.oversized)
        return requests

    def _refuse_oversized(self, message_type: int) -> None:
        ticket = self._next << _TYPE_BITS | message_type
        self._next += 1
        self.answer(ticket, Failed(PAYLOAD_TOO_LARGE))
        self.closing = True

    def answer(self, ticket: int, answer: Answer) -> None:
        """Give the answer to one request; each ticket exactly once."""
        self._put(ticket, encode_answer(ticket & _TYPE_MASK, answer))

    def has_answered(self, ticket: int) -> bool:
        """Whether the answer to that request has had its turn."""
        return ticket >> _TYPE_BITS < self._head

    def push(self, frames: bytes) -> None:
        """Send whole frames that answer nothing, behind the answers whose turn has come so far."""
        self._out.append(frames)

    def _put(self, ticket: int, frame: bytes) -> None:
        index = ticket >> _TYPE_BITS
        if index != self._head:
            if self._early is None:
                self._early = {}
            self._early[index] = frame
            self._early_size += len(frame)
            return
        self._out.append(frame)
        self._head = index + 1
        if self._early is not None:
            while (following := self._early.pop(self._head, None)) is not None:
                self._out.append(following)
                self._early_size -= len(following)
                self._head += 1
            if not self._early:
                self._early = None

    def data_to_send(self) -> bytes:
        """Return, once, the answers whose turn has come and what was pushed; empty when there is nothing."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data
