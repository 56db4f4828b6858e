"""The deadlines of a session, sweep by sweep, without waiting for them; everything else is in tests/e2e."""

import asyncio
import socket
from typing import Any

import pytest

from flashsale.domain.answers import BUSY, NOT_EXECUTED, Failed, SoldOut, Subscribed
from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import Purchase, Request, Subscribe
from flashsale.server import ServerLimits, Session, TcpServer
from flashsale.subscriptions import Subscriber
from flashsale.wire import (
    MessageType,
    encode_answer,
    encode_feed_event,
    encode_frame,
    encode_request,
)

PURCHASE = encode_request(Purchase("p", "u"))
SUBSCRIBE = encode_request(Subscribe("p"))
PING = encode_frame(0x06, b"")
EVENT = encode_feed_event(FeedEvent(event="sold", product_id="p", version=2))
LIMITS = ServerLimits(frame_timeout_s=10, idle_timeout_s=300, write_timeout_s=10, linger_timeout_s=2)


class Transport(asyncio.Transport):
    """Keeps what is written, and whether it was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.dropped = False
        self.ended = False
        self.unsent_size = 0
        self.socket: socket.socket | None = None

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.dropped

    def abort(self) -> None:
        self.dropped = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket

    def get_write_buffer_size(self) -> int:
        return self.unsent_size

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Feed:
    """Takes every subscription, and remembers who asked and who may be pushed to again."""

    def __init__(self) -> None:
        self.pumped: list[Subscriber] = []
        self.forgotten: list[Subscriber] = []

    def subscribe(self, request: Subscribe, subscriber: Subscriber, ticket: int) -> None:
        subscriber.answer(ticket, Subscribed(product_id=request.product_id, version=1))
        subscriber.listening = True

    def pump(self, subscriber: Subscriber) -> None:
        self.pumped.append(subscriber)

    def forget(self, subscriber: Subscriber) -> None:
        self.forgotten.append(subscriber)


class Client:
    """A session with its transport, and the requests that it has submitted."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.transport = Transport()
        self.feed = Feed()
        self.session = Session(TcpServer(self.submit, LIMITS, self.feed))  # type: ignore[arg-type]
        self.session.connection_made(self.transport)

    def submit(self, request: Request, session: Session, ticket: int) -> None:
        self.asked.append(ticket)

    def survives(self, sweeps: int) -> bool:
        for _ in range(sweeps):
            self.session.sweep(LIMITS)
        return not self.transport.dropped


@pytest.fixture
async def client() -> Client:
    return Client()


async def test_silence_after_connecting_is_cut_short(client: Client) -> None:
    assert client.survives(10)
    assert not client.survives(2)


async def test_a_first_frame_that_drips_gains_no_time(client: Client) -> None:
    for byte in PURCHASE[:10]:
        client.session.data_received(bytes([byte]))
        client.session.sweep(LIMITS)
    assert not client.survives(2)


async def test_an_idle_client_may_begin_a_frame_across_a_sweep(client: Client) -> None:
    client.session.data_received(PING)
    assert client.survives(60)
    client.session.data_received(PURCHASE[:3])
    assert client.survives(10)
    assert not client.survives(2)


async def test_a_later_frame_that_drips_is_cut_short_too(client: Client) -> None:
    client.session.data_received(PING)
    client.session.sweep(LIMITS)
    for byte in PURCHASE[:12]:
        client.session.data_received(bytes([byte]))
        client.session.sweep(LIMITS)
    assert client.transport.dropped


async def test_an_idle_client_is_dropped_in_the_end(client: Client) -> None:
    client.session.data_received(PING)
    assert client.survives(300)
    assert not client.survives(3)


async def test_a_client_that_waits_for_its_answer_is_not_idle(client: Client) -> None:
    client.session.data_received(PURCHASE)
    assert client.survives(1000)
    client.session.answer(client.asked[0], SoldOut())
    client.session.flush()
    assert client.transport.written.endswith(b'{"status":"SOLD_OUT"}')
    assert client.survives(300)


async def test_a_client_that_takes_no_answers_is_dropped(client: Client) -> None:
    client.session.data_received(PING)
    client.session.pause_writing()
    assert client.survives(9)
    assert not client.survives(3)


async def test_after_the_end_the_client_has_a_moment_to_close(client: Client) -> None:
    client.session.data_received(PING)
    client.session.finish()
    assert client.transport.ended
    assert client.survives(2)
    assert not client.survives(2)


async def test_a_client_that_still_takes_its_last_answers_has_longer(client: Client) -> None:
    client.session.data_received(PING)
    client.transport.unsent_size = 1
    client.session.finish()
    assert client.survives(10)
    assert not client.survives(2)


# Subscribers


@pytest.fixture
def subscriber(client: Client) -> Client:
    client.session.data_received(SUBSCRIBE)
    assert client.transport.written == encode_answer(0x10, Subscribed(product_id="p", version=1))
    client.transport.written = b""
    return client


async def test_a_subscriber_may_be_silent_but_a_frame_that_drips_is_cut_short(subscriber: Client) -> None:
    assert subscriber.survives(10_000)
    subscriber.session.data_received(PURCHASE[:3])
    assert subscriber.survives(10)
    assert not subscriber.survives(2)


async def test_events_go_out_between_answers(subscriber: Client) -> None:
    session, transport = subscriber.session, subscriber.transport
    session.data_received(PURCHASE + PING)
    session.push(EVENT)
    assert transport.written == EVENT, "they wait for no answer"
    session.answer(subscriber.asked[0], SoldOut())
    session.push(EVENT)
    assert transport.written == EVENT + encode_answer(0x01, SoldOut()) + PING + EVENT


async def test_the_feed_is_told_when_there_may_be_something_to_push(subscriber: Client) -> None:
    feed, session = subscriber.feed, subscriber.session
    assert session.writable
    count = len(feed.pumped)
    session.pause_writing()
    assert not session.writable
    session.resume_writing()
    assert session.writable
    assert feed.pumped[count:] == [session]
    session.data_received(PING)
    assert len(feed.pumped) == count + 2


async def test_a_subscriber_that_takes_nothing_is_told_why_it_is_parted_from(subscriber: Client) -> None:
    transport = subscriber.transport
    transport.unsent_size = 1
    subscriber.session.pause_writing()
    assert subscriber.survives(10)
    assert transport.written == b""
    assert subscriber.survives(1)
    assert transport.written == encode_answer(MessageType.NOTICE, Failed("subscriber too slow"))
    assert transport.ended
    assert not subscriber.session.connected
    subscriber.session.push(EVENT)
    assert subscriber.survives(9), "it has as long again for what it was sent"
    assert not subscriber.survives(3)


async def test_who_is_dismissed_twice_is_told_once(subscriber: Client) -> None:
    for _ in range(2):
        subscriber.session.dismiss(BUSY)
    assert subscriber.transport.written == encode_answer(MessageType.NOTICE, BUSY)


async def test_who_is_gone_is_forgotten_and_pushed_nothing(subscriber: Client) -> None:
    session = subscriber.session
    assert session.connected
    session.connection_lost(None)
    assert not session.connected
    assert not session.writable
    assert subscriber.feed.forgotten == [session]
    session.push(EVENT)
    session.dismiss(BUSY)
    assert subscriber.transport.written == b""


async def test_nothing_is_pushed_to_who_is_to_finish(subscriber: Client) -> None:
    subscriber.session.data_received(PURCHASE)
    subscriber.session.finish()
    assert not subscriber.session.writable
    subscriber.session.answer(subscriber.asked[0], SoldOut())
    subscriber.session.flush()
    assert subscriber.transport.ended


async def test_the_kernel_looks_after_silent_subscribers(client: Client) -> None:
    with socket.socket() as found:
        client.transport.socket = found
        client.session.data_received(SUBSCRIBE)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_without_a_feed_a_subscription_cannot_be_had() -> None:
    transport = Transport()
    session = Session(TcpServer(lambda request, session, ticket: None, LIMITS))
    session.connection_made(transport)
    session.data_received(SUBSCRIBE)
    assert transport.written == encode_answer(0x10, NOT_EXECUTED)
    session.connection_lost(None)
