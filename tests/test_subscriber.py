"""The client's subscriptions, against a real server and against stand-ins that break off where a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale import Client, FeedEvent
from flashsale.domain.answers import BUSY, NOT_EXECUTED, NOT_FOUND, Answer, Busy, Failed, Subscribed
from flashsale.domain.requests import Subscribe
from flashsale.errors import ConnectionLostError, ProductNotFoundError, ProtocolError
from flashsale.launch import ServerProcess
from flashsale.store.address import unix_url
from flashsale.store.admin import Admin
from flashsale.wire import FrameReader, decode_request, encode_answer, encode_feed_event, encode_frame

PATIENCE_S = 30.0
StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def home(module_home: Path) -> Path:
    """One store for all, that of `server`."""
    return module_home


@pytest.fixture
async def admin(server: ServerProcess, home: Path) -> AsyncIterator[Admin]:
    async with Admin(unix_url(str(home / "valkey.sock"))) as admin:
        yield admin


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        yield client


async def hear(events: AsyncIterator[FeedEvent], count: int) -> list[tuple[str, int]]:
    async with asyncio.timeout(PATIENCE_S):
        return [(event.event, event.version) for event in [await anext(events) for _ in range(count)]]


async def buy(client: Client, product_id: str, count: int = 1) -> None:
    await asyncio.gather(*(client.purchase(product_id, f"u{n}") for n in range(count)))


def sold(first: int, last: int) -> list[tuple[str, int]]:
    return [("sold", version) for version in range(first, last + 1)]


# A real server


async def test_from_the_beginning_and_then_live(client: Client, admin: Admin, product_id: str) -> None:
    await admin.init(product_id, 100)
    await buy(client, product_id, 3)
    events = client.subscribe(product_id, 0)
    assert await hear(events, 4) == [("opened", 1), *sold(2, 4)]
    await buy(client, product_id, 2)
    assert await hear(events, 2) == sold(5, 6)


async def test_without_a_version_it_begins_with_the_next_change(client: Client, admin: Admin, product_id: str) -> None:
    await admin.init(product_id, 100)
    events = client.subscribe(product_id)
    first = asyncio.create_task(hear(events, 1))
    while not first.done():
        await buy(client, product_id)
    [(event, version)] = await first
    assert event == "sold"
    assert version > 1


async def test_a_broken_link_is_noticed_by_nobody(
    start_server: StartServer, admin: Admin, product_id: str, store: "redis.Redis"
) -> None:
    server = await asyncio.to_thread(start_server)
    await admin.init(product_id, 10_000)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
        one, every = client.subscribe(product_id, 0), client.subscribe()
        assert await hear(one, 1) == [("opened", 1)]
        heard: list[tuple[str, int]] = []
        listening = asyncio.create_task(keep(every, product_id, heard))
        for turn in range(3):
            await buy(client, product_id, 20)
            if turn < 2:
                while len(heard) < 20 * (turn + 1) - 10:
                    await buy(client, product_id)
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(server.kill)
                async with Client(*await elsewhere(start_server, server)) as other:
                    await buy(other, product_id, 5)
        status = await admin.status(product_id)
        assert await hear(one, status.version - 1) == sold(2, status.version)
        async with asyncio.timeout(PATIENCE_S):
            while not heard or heard[-1][1] < status.version:  # noqa: ASYNC110 - somebody else appends to it
                await asyncio.sleep(0.01)
        first = heard[0][1]
        assert heard == sold(first, status.version)
        listening.cancel()


async def keep(events: AsyncIterator[FeedEvent], product_id: str, heard: list[tuple[str, int]]) -> None:
    async for event in events:
        if event.product_id == product_id:
            heard.append((event.event, event.version))  # noqa: PERF401 - it is looked at meanwhile


async def elsewhere(start_server: StartServer, server: ServerProcess) -> tuple[str, int]:
    """Start the server again at its port."""
    again = await asyncio.to_thread(start_server, port=server.port)
    server.kill = again.kill  # type: ignore[method-assign]
    return again.host, again.port


async def test_what_begins_and_ends_while_the_link_is_broken_is_heard_of_all_products(
    start_server: StartServer, admin: Admin, client: Client, product_id: str
) -> None:
    victim = await asyncio.to_thread(start_server)
    names = [f"{product_id}-{name}" for name in ("stays", "goes", "new", "begins-anew")]
    for name in (names[0], names[1], names[3]):
        await admin.init(name, 10)
    async with Client(victim.host, victim.port, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as lost:
        events = lost.subscribe()
        heard: dict[str, list[tuple[str, int]]] = {name: [] for name in names}

        async def hear_until(holds: Callable[[], bool]) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not holds():
                    event = await anext(events)
                    heard.get(event.product_id, []).append((event.event, event.version))

        first = asyncio.create_task(hear_until(lambda: bool(heard[names[0]])))
        while not first.done():
            await buy(client, names[0])
            await asyncio.sleep(0.02)
        await asyncio.to_thread(victim.kill)
        await buy(client, names[0], 1)
        await admin.reset(names[1])
        await admin.init(names[2], 5)
        await buy(client, names[2], 2)
        await admin.reset(names[3])
        await admin.init(names[3], 7)
        await buy(client, names[3], 2)
        last = (await admin.status(names[0])).version
        await asyncio.to_thread(start_server, port=victim.port)
        await hear_until(
            lambda: (
                heard[names[0]][-1][1] == last
                and len(heard[names[1]]) == 1
                and len(heard[names[2]]) == 3
                and len(heard[names[3]]) == 4
            )
        )
        assert heard[names[0]] == sold(heard[names[0]][0][1], last)
        assert heard[names[1]] == [("reset", 0)]
        assert heard[names[2]] == [("opened", 1), *sold(2, 3)]
        assert heard[names[3]] == [("reset", 0), ("opened", 1), *sold(2, 3)]


async def test_a_product_deleted_while_the_link_is_broken_is_waited_for(
    start_server: StartServer, admin: Admin, client: Client, product_id: str
) -> None:
    victim = await asyncio.to_thread(start_server)
    await admin.init(product_id, 10)
    async with Client(victim.host, victim.port, timeout_s=PATIENCE_S) as lost:
        events = lost.subscribe(product_id, 0)
        assert await hear(events, 1) == [("opened", 1)]
        await asyncio.to_thread(victim.kill)
        await admin.reset(product_id)
        await asyncio.to_thread(start_server, port=victim.port)
        assert await hear(events, 1) == [("reset", 0)]
        later = asyncio.create_task(hear(events, 2))
        await asyncio.sleep(0.3)
        await admin.init(product_id, 20)
        await buy(client, product_id)
        assert await later == [("opened", 1), ("sold", 2)]


async def test_who_names_an_earlier_sale_is_told(client: Client, admin: Admin, product_id: str) -> None:
    await admin.init(product_id, 10)
    events = client.subscribe(product_id, 1, epoch="00000000")
    assert await hear(events, 2) == [("reset", 0), ("opened", 1)]
    events = client.subscribe(product_id, 9)
    assert await hear(events, 2) == [("reset", 0), ("opened", 1)]


async def test_a_slow_user_is_waited_for(start_server: StartServer, admin: Admin, product_id: str) -> None:
    server = await asyncio.to_thread(start_server, FLASHSALE_WRITE_TIMEOUT_S="1")
    await admin.init(product_id, 100_000)
    async with Client(server.host, server.port, timeout_s=PATIENCE_S) as client:
        events = client.subscribe(product_id, 0)
        assert await hear(events, 1) == [("opened", 1)]
        name = "\x01" * 256  # six bytes each, in an event
        for _ in range(12):
            await asyncio.gather(*(client.purchase(product_id, name) for _ in range(1_000)))
        await asyncio.sleep(4)  # long enough to be dropped
        assert await hear(events, 12_000) == sold(2, 12_001)


async def test_no_such_product(client: Client) -> None:
    with pytest.raises(ProductNotFoundError):
        await anext(client.subscribe("no-such", 0))


async def test_a_closed_client_ends_its_subscriptions(client: Client, admin: Admin, product_id: str) -> None:
    await admin.init(product_id, 10)
    events = client.subscribe(product_id)
    waiting = asyncio.create_task(hear(events, 1))
    await asyncio.sleep(0.1)
    client.close()
    with pytest.raises(ConnectionLostError):
        await waiting
    with pytest.raises(ConnectionLostError):
        await anext(client.subscribe(product_id))


async def test_a_server_that_is_not_there_is_a_lost_connection() -> None:
    async with Client("127.0.0.1", 1, connect_timeout_s=0.3) as client:
        with pytest.raises(ConnectionLostError, match=r"cannot subscribe at 127\.0\.0\.1:1"):
            await anext(client.subscribe("p"))


# Stand-ins

Reply = Callable[[Subscribe], bytes]
StandIn = Callable[[Sequence[Reply]], Awaitable[tuple[int, list[list[Any]]]]]


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    """Listen, and answer each SUBSCRIBE of the n-th connection with the n-th reply, then close; the last one stays.

    Returns the port, and what was asked on each connection.
    """
    listeners: list[asyncio.Server] = []
    serving: set[asyncio.Task[None]] = set()

    async def listen(replies: Sequence[Reply]) -> tuple[int, list[list[Any]]]:
        asked: list[list[Any]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            number = min(len(asked), len(replies) - 1)
            requests: list[Any] = []
            asked.append(requests)
            frames = FrameReader()
            with suppress(OSError):
                while data := await reader.read(65_536):
                    for frame in frames.feed(data):
                        requests.append(decode_request(frame) if frame[0] == 0x10 else frame)
                        if frame[0] == 0x10:
                            writer.write(replies[number](requests[-1]))
                    if number < len(replies) - 1:
                        break
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

        listeners.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        port: int = listeners[-1].sockets[0].getsockname()[1]
        return port, asked

    yield listen
    for listener in listeners:
        listener.close()
    await asyncio.gather(*serving)  # the clients are closed


def answer(value: Answer) -> bytes:
    return encode_answer(0x10, value)


def event(kind: str, version: int, product_id: str = "p", epoch: str = "") -> bytes:
    return encode_feed_event(FeedEvent(event=kind, product_id=product_id, version=version, epoch=epoch))


async def test_it_asks_for_the_rest_of_what_it_has_heard(stand_in: StandIn) -> None:
    def first(request: Subscribe) -> bytes:
        return answer(Subscribed(product_id="p", version=9, epoch="e1")) + event("sold", 4) + event("sold", 5)[:9]

    def second(request: Subscribe) -> bytes:
        return (
            answer(Subscribed(product_id="p", version=9, epoch="e1"))
            + event("reset", 0, epoch="e2")
            + event("opened", 1, epoch="e2")
        )

    def third(request: Subscribe) -> bytes:
        return answer(Busy()) + event("sold", 7)

    def fourth(request: Subscribe) -> bytes:
        return encode_answer(0x00, Failed("subscriber too slow"))

    def fifth(request: Subscribe) -> bytes:
        return answer(Subscribed(product_id="p", version=9, epoch="e2")) + event("sold", 2)

    port, asked = await stand_in([first, second, third, fourth, fifth])
    async with Client("127.0.0.1", port) as client:
        events = client.subscribe("p", 3)
        assert await hear(events, 4) == [("sold", 4), ("reset", 0), ("opened", 1), ("sold", 2)]
    assert asked == [
        [Subscribe("p", 3)],
        [Subscribe("p", 4, "e1")],
        [Subscribe("p", 1, "e2")],
        [Subscribe("p", 1, "e2")],
        [Subscribe("p", 1, "e2")],
    ]


async def test_a_link_that_breaks_before_the_reset_was_told_asks_for_it_again(stand_in: StandIn) -> None:
    port, asked = await stand_in(
        [
            lambda _: answer(Subscribed(product_id="p", version=2, epoch="e2")),
            lambda _: answer(Subscribed(product_id="p", version=12, epoch="e2")) + event("reset", 0, epoch="e2"),
        ]
    )
    async with Client("127.0.0.1", port) as client:
        assert await hear(client.subscribe("p", 9), 1) == [("reset", 0)]
    [_, [again]] = asked
    assert again.after_version == 9
    assert again.epoch != "e2"


async def test_events_of_all_products_count_once_their_own_answer_is_there(stand_in: StandIn) -> None:
    def first(request: Subscribe) -> bytes:
        return answer(Subscribed(version=0)) + event("subscribed", 4, "p", "e1") + event("sold", 5, "p")

    def second(request: Subscribe) -> bytes:
        if request.product_id is None:
            return answer(Subscribed(version=0)) + event("subscribed", 8, "p", "e1") + event("sold", 9, "p")
        assert request == Subscribe("p", 5, "e1")
        return answer(Subscribed(product_id="p", version=9, epoch="e1")) + event("sold", 6, "p")

    port, _ = await stand_in([first, second])
    async with Client("127.0.0.1", port) as client:
        assert await hear(client.subscribe(), 2) == [("sold", 5), ("sold", 6)]


@pytest.mark.parametrize("refusal", [BUSY, NOT_EXECUTED])
async def test_a_subscription_that_was_refused_at_first_begins_with_what_comes(
    stand_in: StandIn, refusal: Answer
) -> None:
    def second(request: Subscribe) -> bytes:
        return answer(Subscribed(version=0)) + event("subscribed", 7, "p", "e1") + event("sold", 8, "p")

    port, asked = await stand_in([lambda _: answer(refusal), second])
    async with Client("127.0.0.1", port, connect_timeout_s=PATIENCE_S) as client:
        assert await hear(client.subscribe(), 1) == [("sold", 8)]
    assert asked == [[Subscribe()], [Subscribe()]], "the past is not asked for"


async def test_a_deletion_is_told_once_also_when_the_link_breaks_behind_it(stand_in: StandIn) -> None:
    def first(request: Subscribe) -> bytes:
        return answer(Subscribed(product_id="p", version=1, epoch="e1")) + event("sold", 2) + event("reset", 0)

    def last(request: Subscribe) -> bytes:
        return answer(Subscribed(product_id="p", version=1, epoch="e2")) + event("opened", 1, epoch="e2")

    port, asked = await stand_in([first, lambda _: answer(NOT_FOUND), lambda _: answer(NOT_FOUND), last])
    async with Client("127.0.0.1", port) as client:
        assert await hear(client.subscribe("p"), 3) == [("sold", 2), ("reset", 0), ("opened", 1)]
    assert asked == [[Subscribe("p")], *[[Subscribe("p", 0)]] * 3]


async def test_a_deletion_that_an_answer_told_is_not_told_by_an_event_too(stand_in: StandIn) -> None:
    def first(request: Subscribe) -> bytes:
        return answer(Subscribed(version=0)) + event("subscribed", 4, "p", "e1") + event("sold", 5, "p")

    def second(request: Subscribe) -> bytes:
        if request.product_id is None:
            return answer(Subscribed(version=0)) + event("subscribed", 5, "p", "e1")
        return answer(NOT_FOUND) + event("reset", 0, "p") + event("opened", 1, "p", "e2") + event("reset", 0, "p", "e3")

    port, _ = await stand_in([first, second, lambda _: b""])
    async with Client("127.0.0.1", port) as client:
        events = client.subscribe()
        assert await hear(events, 4) == [("sold", 5), ("reset", 0), ("opened", 1), ("reset", 0)]


@pytest.mark.parametrize(
    "reply",
    [
        answer(Failed("invalid after_version")),
        b"\x10\x00\x00\x00\x02{}",
        answer(Subscribed(version=0)) + b"\x11\x00\x00\x00\x02{}",
        answer(Subscribed(version=0)) + b"\x11\xff\xff\xff\xff",
        answer(Subscribed(version=0)) * 2,
        encode_frame(0x01, b"{}"),
    ],
)
async def test_what_is_no_answer_and_no_event_is_an_error(stand_in: StandIn, reply: bytes) -> None:
    port, _ = await stand_in([lambda _: reply])
    async with Client("127.0.0.1", port) as client:
        with pytest.raises(ProtocolError):
            await anext(client.subscribe("p", 0))


async def test_a_server_that_is_always_busy_is_given_up_at_the_beginning(stand_in: StandIn) -> None:
    port, asked = await stand_in([lambda _: answer(Busy())])
    async with Client("127.0.0.1", port, connect_timeout_s=0.5) as client:
        with pytest.raises(ConnectionLostError, match="Busy"):
            await anext(client.subscribe("p"))
    assert len(asked) > 1


async def test_after_a_long_silence_the_server_is_asked_whether_it_lives(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsale.subscriber._SILENCE_MAX_S", 0.05)
    subscribed = answer(Subscribed(product_id="p", version=1, epoch="e"))
    port, asked = await stand_in(
        [lambda _: subscribed + b"", lambda _: subscribed, lambda _: subscribed + event("sold", 2)]
    )
    async with Client("127.0.0.1", port, timeout_s=0.1) as client:
        assert await hear(client.subscribe("p"), 1) == [("sold", 2)]
    port, asked = await stand_in([lambda _: subscribed])
    async with Client("127.0.0.1", port, timeout_s=0.1) as client:
        listening = asyncio.create_task(hear(client.subscribe("p"), 1))
        while len(asked) < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert asked[0] == [Subscribe("p"), (0x06, b"")]
        listening.cancel()
