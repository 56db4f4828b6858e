"""The deadlines of a session, sweep by sweep, without waiting for them; everything else is in tests/e2e."""

import asyncio

import pytest

from flashsale.domain import Purchase, Request, SoldOut
from flashsale.server import ServerLimits, Session, TcpServer
from flashsale.wire import encode_frame, encode_request

PURCHASE = encode_request(Purchase("p", "u"))
PING = encode_frame(0x06, b"")
LIMITS = ServerLimits(frame_timeout_s=10, idle_timeout_s=300, write_timeout_s=10, linger_timeout_s=2)


class Transport(asyncio.Transport):
    """Keeps what is written, and whether it was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.dropped = False
        self.ended = False
        self.unsent_size = 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.dropped

    def abort(self) -> None:
        self.dropped = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_size

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client:
    """A session with its transport, and the requests that it has submitted."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.transport = Transport()
        self.session = Session(TcpServer(self.submit, LIMITS))
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
