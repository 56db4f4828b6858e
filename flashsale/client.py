"""The client library: requests over one pipelined connection, with time-outs, reconnecting, and typed answers.

What a subscriber hears is in subscriber.py: it has a connection of its own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Self, cast
from weakref import WeakSet

from flashsale.domain.answers import Answer, Busy
from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Reserve
from flashsale.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    FlashsaleError,
    InvalidValueError,
    NotSentError,
    ProtocolError,
)
from flashsale.subscriber import RECONNECT_PAUSE_S, Subscription
from flashsale.wire import (
    PAYLOAD_SIZE_MAX,
    FrameReader,
    MessageType,
    decode_answer,
    encode_frame,
    encode_request,
)

_REQUEST_SIZE_MAX = 65_536  # bytes, which is what a server takes unless it was told otherwise
_SHOWN_SIZE = 200  # bytes of an answer that an error tells


class Client:
    """A client of one flashsale server; an async context manager, safe for any number of tasks at once.

        async with Client("127.0.0.1", 8080) as client:
            answer = await client.purchase("iphone15", "user_1")

    Requests are pipelined over one connection, which is made with the first request and again after it broke. A request
    that was under way when it broke is never sent again by itself. With a request id the caller may send it again, and
    gets the first answer if there was one.

    Every method that asks returns the server's answer, also when that is a refusal, such as Busy, Unavailable or Failed
    with the server's words, and raises:
        NotSentError: the request certainly was not executed: no connection could be made, it broke before the request
            was sent, or the server had no room for it. To repeat it is safe, also without a request id.
        ConnectionLostError, of which that is one: the connection broke before the answer: the outcome is unknown.
        AnswerTimeoutError: no answer within `timeout_s`: the outcome is unknown.
        ProtocolError: the server answered something else.
        InvalidValueError: the request could not be sent: an id holds no text, or far too much of it.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 5.0,
    ) -> None:
        """Name the server.

        Args:
            host: its name or address.
            port: its TCP port.
            timeout_s: how long to wait for each answer.
            connect_timeout_s: how long each request waits for a connection, while the server is not there.
        """
        self._host, self._port = host, port
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._link: _Link | None = None
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._connecting = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Return itself; connects with the first request."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections; requests under way raise ConnectionLostError, and so do subscriptions."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        if self._link is not None:
            self._link.close()

    async def purchase(
        self,
        product_id: str,
        user_id: str,
        *,
        quantity: int = 1,
        request_id: str | None = None,
        item_id: int | None = None,
    ) -> Answer:
        """Buy: Success, SoldOut, LimitExceeded, NotOpen, Paused, Closed, ItemTaken, Mismatch, or a refusal."""
        return await self._ask(Purchase(product_id, user_id, quantity, request_id, item_id))

    async def reserve(
        self,
        product_id: str,
        user_id: str,
        *,
        quantity: int = 1,
        request_id: str | None = None,
        item_id: int | None = None,
        hold_seconds: int | None = None,
    ) -> Answer:
        """Hold units for a while: Held, with the code of the hold, or what `purchase` returns instead of Success."""
        return await self._ask(Reserve(product_id, user_id, quantity, request_id, item_id, hold_seconds))

    async def confirm(self, code: str, request_id: str | None = None) -> Answer:
        """Buy what is held: Success, Cancelled or Expired if it ended otherwise, or a refusal."""
        return await self._ask(Confirm(code, request_id))

    async def cancel(self, code: str) -> Answer:
        """Give back what is held: Cancelled, Expired, or a refusal."""
        return await self._ask(Cancel(code))

    async def extend(self, code: str, hold_seconds: int | None = None) -> Answer:
        """Hold on for so many seconds from now, as far as the sale allows: Held, Cancelled, Expired, or a refusal."""
        return await self._ask(Extend(code, hold_seconds))

    async def status(self, product_id: str) -> Answer:
        """Return a ProductStatus, or a refusal."""
        return await self._ask(GetStatus(product_id))

    def subscribe(
        self, product_id: str | None = None, after_version: int | None = None, *, epoch: str | None = None
    ) -> AsyncIterator[FeedEvent]:
        """Iterate over the changes of a product, or of all, as they come; for ever, over a connection of its own.

        After a broken link it subscribes again from where it was: no change is missed, none is told twice. What cannot
        be had any more is told by an event `gap`; `reset` says that the product was deleted or opened anew. Whoever
        iterates slowly is waited for: the changes wait in the server's ledger.

        Args:
            product_id: None follows all products, also those to come.
            after_version: begin with the change behind this version; None begins with the next.
            epoch: of the sale that `after_version` belongs to, as `opened` and `reset` told it.

        Raises:
            ProductNotFoundError: there is no such product at the beginning. One that is deleted later is waited for.
            ConnectionLostError: at the beginning, no subscription could be had within `connect_timeout_s`; or the
                client is closed.
            ProtocolError: the server refused the request, or sent what is no event.
        """
        subscription = Subscription(
            self._host,
            self._port,
            product_id,
            after_version,
            epoch,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
        )
        self._subscriptions.add(subscription)
        if self._closed:
            subscription.close()
        return subscription.events()

    async def ping(self, payload: bytes = b"") -> bytes:
        """Return the payload as the server echoes it; ProtocolError when it says something else."""
        echo = await self._exchange(encode_frame(MessageType.PING, payload))
        if echo != payload:
            raise ProtocolError(f"the server did not echo the PING: {echo[:_SHOWN_SIZE].decode(errors='replace')}")
        return echo

    async def _ask(self, request: BuyerRequest) -> Answer:
        try:
            frame = encode_request(request)
        except UnicodeEncodeError as error:
            raise InvalidValueError(f"the request holds text that is none: {error.reason}") from error
        payload = await self._exchange(frame)
        try:
            return decode_answer(payload)
        except ValueError as error:
            raise ProtocolError(f"the server sent an answer that is none: {error}") from error

    async def _exchange(self, frame: bytes) -> bytes:
        if len(frame) > _REQUEST_SIZE_MAX:  # the server would end the connection, with the requests of all others on it
            raise InvalidValueError(f"the request is {len(frame)} bytes long; at most {_REQUEST_SIZE_MAX} are allowed")
        link = self._link
        if link is None or link.lost:
            link = await self._connect()
        begun_at = asyncio.get_running_loop().time()
        answer = None
        try:
            async with asyncio.timeout(self._timeout_s):
                await link.writable.wait()
                answer = link.send(frame)
                return await answer
        except TimeoutError:
            if link.heard_at < begun_at:
                link.close()  # all that time nothing came: there may be nobody at the other end
            if answer is None:
                raise NotSentError(f"the server took no more requests for {self._timeout_s} s") from None
            raise AnswerTimeoutError(f"no answer within {self._timeout_s} s") from None

    async def _connect(self) -> "_Link":
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout_s  # also of those who wait for another task's attempt
        reason = "no connection in time"
        try:
            async with asyncio.timeout_at(deadline), self._connecting:
                while self._link is None or self._link.lost:
                    if self._closed:
                        raise NotSentError("the client is closed")
                    try:
                        _, self._link = await loop.create_connection(_Link, self._host, self._port)
                    except OSError as error:
                        reason = error.strerror or str(error)
                        await asyncio.sleep(RECONNECT_PAUSE_S)
                    else:
                        if self._closed:  # meanwhile
                            self._link.close()
                return self._link
        except TimeoutError:
            raise NotSentError(f"cannot reach {self._host}:{self._port}: {reason}") from None


class _Link(asyncio.Protocol):
    """One connection; answers come in the order of requests, so a queue of futures pairs them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(PAYLOAD_SIZE_MAX)
        self._waiting: deque[tuple[int, asyncio.Future[bytes]]] = deque()  # by type
        self.writable = asyncio.Event()
        """The server takes more; also set when the link is lost, so that nobody waits for it."""
        self.writable.set()
        self._transport: asyncio.Transport | None = None
        self.lost = False
        self.heard_at = self._loop.time()

    def send(self, frame: bytes) -> asyncio.Future[bytes]:
        """Send a request; the answer comes with what is returned."""
        if self.lost or self._transport is None or self._transport.is_closing():
            raise NotSentError("the connection broke before the request was sent")
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append((frame[0], answer))
        self._transport.write(frame)
        return answer

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        for message_type, payload in self._reader.feed(data):
            if message_type == MessageType.NOTICE:
                self._fail(_read_notice(payload))
                return
            if not self._waiting or self._waiting[0][0] != message_type:
                self._fail(ProtocolError("the server answered something that was not asked"))
                return
            _, answer = self._waiting.popleft()
            if not answer.done():  # its caller may have given up
                answer.set_result(payload)
        if self._reader.oversized is not None:
            self._fail(ProtocolError("the server sent what is no answer"))

    def eof_received(self) -> None:
        self.lost = True  # the server has said its last; nothing more may be asked here

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLostError("the connection broke before the answer came: outcome unknown"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _fail(self, error: FlashsaleError) -> None:
        """Close, and tell those who wait why."""
        self.close()
        self.writable.set()
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()


def _read_notice(payload: bytes) -> ConnectionLostError:
    """Return what a NOTICE means to requests without an answer (protocol.md, "Life of a connection")."""
    with suppress(ValueError):
        if isinstance(decode_answer(payload), Busy):  # it has read nothing
            return NotSentError("the server has no room for another connection")
    said = payload.decode(errors="replace")
    return ConnectionLostError(f"the server closes the connection: {said}: outcome unknown")
