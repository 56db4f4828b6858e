"""The deadlines and the turns of a session, without waiting for them; everything else is in tests/e2e."""

import asyncio
import resource
import socket
from typing import Any

import pytest

from flashsale import server
from flashsale.connection import TURN_COUNT_MAX
from flashsale.domain.answers import BUSY, NOT_EXECUTED, Failed, SoldOut, Subscribed
from flashsale.domain.events import FeedEvent
from flashsale.domain.requests import Purchase, Request, Subscribe
from flashsale.errors import ConfigError
from flashsale.server import SEGMENT_SIZE_MAX, UNSENT_SIZE_MAX, ServerLimits, Session, TcpServer
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
        self.unsent_size_max: int | None = None
        self.reading = True
        self.socket: socket.socket | None = None

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def close(self) -> None:
        self.dropped = True

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

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.unsent_size_max = high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


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
        client.session.receive(bytes([byte]))
        client.session.sweep(LIMITS)
    assert not client.survives(2)


async def test_an_idle_client_may_begin_a_frame_across_a_sweep(client: Client) -> None:
    client.session.receive(PING)
    assert client.survives(60)
    client.session.receive(PURCHASE[:3])
    assert client.survives(10)
    assert not client.survives(2)


async def test_a_later_frame_that_drips_is_cut_short_too(client: Client) -> None:
    client.session.receive(PING)
    client.session.sweep(LIMITS)
    for byte in PURCHASE[:12]:
        client.session.receive(bytes([byte]))
        client.session.sweep(LIMITS)
    assert client.transport.dropped


async def test_an_idle_client_is_dropped_in_the_end(client: Client) -> None:
    client.session.receive(PING)
    assert client.survives(300)
    assert not client.survives(3)


async def test_a_client_that_waits_for_its_answer_is_not_idle(client: Client) -> None:
    client.session.receive(PURCHASE)
    assert client.survives(1000)
    client.session.answer(client.asked[0], SoldOut())
    client.session.flush()
    assert client.transport.written.endswith(b'{"status":"SOLD_OUT"}')
    assert client.survives(300)


async def test_a_client_that_takes_no_answers_is_dropped(client: Client) -> None:
    client.session.receive(PING)
    client.session.pause_writing()
    assert client.survives(9)
    assert not client.survives(3)


async def test_after_the_end_the_client_has_a_moment_to_close(client: Client) -> None:
    client.session.receive(PING)
    client.session.finish()
    assert client.transport.ended
    assert client.survives(2)
    assert not client.survives(2)


async def test_a_client_that_still_takes_its_last_answers_has_longer(client: Client) -> None:
    client.session.receive(PING)
    client.transport.unsent_size = 1
    client.session.finish()
    assert client.survives(10)
    assert not client.survives(2)


# Turns

EMPTY = encode_frame(0x77, b"")
REFUSAL = encode_answer(0x77, Failed("unknown message type"))


def turns_taken(client: Client) -> float:
    return len(client.transport.written) / len(REFUSAL) / TURN_COUNT_MAX


async def test_a_segment_of_the_smallest_frames_leaves_turns_to_others(client: Client) -> None:
    client.session.receive(EMPTY * 5 * TURN_COUNT_MAX)
    assert turns_taken(client) == 1
    assert not client.transport.reading
    for turns in range(2, 6):
        client.session.flush()  # as when an answer comes: that makes no more turns
        await asyncio.sleep(0)
        assert turns_taken(client) == turns
    assert client.transport.reading


async def test_who_does_not_take_what_it_was_answered_has_no_further_turn(client: Client) -> None:
    client.session.receive(EMPTY * 5 * TURN_COUNT_MAX)
    client.session.pause_writing()
    for _ in range(5):
        client.session.flush()
        await asyncio.sleep(0)
    assert turns_taken(client) == 1
    assert not client.transport.reading
    client.session.resume_writing()
    for _ in range(5):
        await asyncio.sleep(0)
    assert turns_taken(client) == 5
    assert client.transport.reading


async def test_who_is_gone_has_no_further_turn(client: Client) -> None:
    client.session.receive(PURCHASE * 5 * TURN_COUNT_MAX)
    client.session.abort()
    await asyncio.sleep(0)
    client.session.connection_lost(None)
    await asyncio.sleep(0)
    assert len(client.asked) == TURN_COUNT_MAX, "nobody waits for these"


async def test_who_has_asked_everything_is_answered_everything_before_the_end(client: Client) -> None:
    client.session.receive(EMPTY * 3 * TURN_COUNT_MAX)
    client.session.eof_received()
    assert not client.transport.ended
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns_taken(client) == 3
    assert client.transport.dropped


async def test_what_is_read_at_once_is_bounded_and_so_is_what_is_not_sent(client: Client) -> None:
    buffer = client.session.get_buffer(-1)
    assert len(buffer) == SEGMENT_SIZE_MAX
    buffer[: len(PING)] = PING
    client.session.buffer_updated(len(PING))
    assert client.transport.written == PING
    assert client.transport.unsent_size_max == UNSENT_SIZE_MAX


# The server's own bounds


async def test_the_deadlines_of_many_are_kept_some_at_a_time_and_a_bug_ends_none(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swept: list[object] = []

    class Swept:
        def sweep(self, limits: ServerLimits) -> None:
            swept.append(self)
            if len(swept) % 7 == 0:
                raise ZeroDivisionError

    monkeypatch.setattr(server, "_SWEEP_S", 0.0)
    it = TcpServer(client.submit)  # type: ignore[arg-type]
    sessions = [Swept() for _ in range(2 * server._SWEEP_COUNT + 1)]
    it._sessions.update(sessions)  # type: ignore[arg-type]
    sweeping = asyncio.create_task(it._sweep())
    most = 0
    while len(swept) < 2 * len(sessions):
        before = len(swept)
        await asyncio.sleep(0)
        most = max(most, len(swept) - before)
    sweeping.cancel()
    await asyncio.wait({sweeping})
    assert most == server._SWEEP_COUNT
    assert set(swept[: len(sessions)]) == set(sessions)
    assert "the deadlines of a connection are not kept" in caplog.text


@pytest.mark.parametrize(
    ("limit", "allowed"), [(65, 1), (1000, 936), (16_448, 16_384), (resource.RLIM_INFINITY, 16_384)]
)
async def test_the_descriptor_limit_lowers_the_connection_cap_and_says_so(
    limit: int, allowed: int, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    it = TcpServer(client.submit)  # type: ignore[arg-type]
    assert it._connection_count_max == allowed
    told = [f"at most {allowed} connections at once instead of 16384: the descriptor limit is {limit}"]
    assert [record.getMessage() for record in caplog.records] == (told if allowed < 16_384 else [])


async def test_a_descriptor_limit_that_leaves_no_connection_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match="the descriptor limit of 64 leaves none for connections"):
        TcpServer(client.submit)  # type: ignore[arg-type]


# Subscribers


@pytest.fixture
def subscriber(client: Client) -> Client:
    client.session.receive(SUBSCRIBE)
    assert client.transport.written == encode_answer(0x10, Subscribed(product_id="p", version=1))
    client.transport.written = b""
    return client


async def test_a_subscriber_may_be_silent_but_a_frame_that_drips_is_cut_short(subscriber: Client) -> None:
    assert subscriber.survives(10_000)
    subscriber.session.receive(PURCHASE[:3])
    assert subscriber.survives(10)
    assert not subscriber.survives(2)


async def test_events_go_out_between_answers(subscriber: Client) -> None:
    session, transport = subscriber.session, subscriber.transport
    session.receive(PURCHASE + PING)
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
    session.receive(PING)
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
    subscriber.session.receive(PURCHASE)
    subscriber.session.finish()
    assert not subscriber.session.writable
    subscriber.session.answer(subscriber.asked[0], SoldOut())
    subscriber.session.flush()
    assert subscriber.transport.ended


async def test_the_kernel_looks_after_silent_subscribers(client: Client) -> None:
    with socket.socket() as found:
        client.transport.socket = found
        client.session.receive(SUBSCRIBE)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_without_a_feed_a_subscription_cannot_be_had() -> None:
    transport = Transport()
    session = Session(TcpServer(lambda request, session, ticket: None, LIMITS))
    session.connection_made(transport)
    session.receive(SUBSCRIBE)
    assert transport.written == encode_answer(0x10, NOT_EXECUTED)
    session.connection_lost(None)


class Over(Session):
    """A client of another door."""

    door = "http"


async def test_clients_are_counted_by_door_and_so_are_those_for_whom_there_was_no_room(client: Client) -> None:
    it = TcpServer(client.submit, ServerLimits(connection_count_max=2))  # type: ignore[arg-type]
    sessions = [Session(it), Over(it), Session(it)]
    assert [it.admit(session) for session in sessions] == [True, True, False]
    assert (it.count_of("tcp"), it.count_of("http"), it.count_of("grpc"), it.refused_count) == (1, 1, 0, 1)
    for session in [*sessions, sessions[0]]:  # one was not admitted, and one is told of twice
        it.forget(session)
    assert (it.count_of("tcp"), it.count_of("http"), it.connection_count) == (0, 0, 0)
