"""Attempts on their way: what is packed comes out as it was, in order, and what there is no room for is counted."""

import asyncio
import logging
import socket
from collections.abc import Iterator

import pytest

from flashsale import attempts
from flashsale.attempts import GROUP_SIZE_MAX, AttemptSender, Group, Pipe
from flashsale.domain.answers import (
    BUSY,
    NOT_EXECUTED,
    SOLD_OUT,
    UNKNOWN,
    Answer,
    Cancelled,
    Expired,
    Failed,
    Held,
    ItemTaken,
    Mismatch,
    NotOpen,
    ProductStatus,
    Success,
    Swept,
)
from flashsale.domain.attempts import KINDS, OUTCOMES
from flashsale.domain.requests import Cancel, Confirm, Extend, GetStatus, Pause, Purchase, Request, Reserve, Sweep

PATIENCE_S = 20.0
CODE = f"{'t' * 22}.p.ü"
LONG = "ü" * 128
ATTEMPTS: list[tuple[Request, Answer]] = [
    (Purchase("p", "ann"), Success(4, "order", 7)),
    (Purchase("p", "a\0b\n\N{PILE OF POO}", 1_000_000, "r" * 128, 10_000_000), SOLD_OUT),
    (Purchase("p", "bob", 2, "r", 3), Success(2, "order", 8, 3, duplicate=True)),
    (Purchase("p", "cy"), BUSY),
    (Purchase("p", "cy"), NOT_EXECUTED),
    (Purchase("p", "cy"), UNKNOWN),
    (Purchase("p", "cy", request_id="r"), Mismatch()),
    (Reserve(LONG, LONG, 2, None, None, 60), Held("code", 1_900_000_000, 3, 9, 5)),
    (Reserve("p", "dee", item_id=4), ItemTaken()),
    (Reserve("p", "dee"), NotOpen(1_900_000_000)),
    (Confirm(CODE, "r"), Success(2, "order", 10)),
    (Cancel(CODE), Cancelled(3, 11)),
    (Extend(CODE, 5), Failed("hold not found")),
    (Extend(CODE), Expired()),
]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


async def taken(pipe: Pipe, attempt_count: int) -> list[Group]:
    """Return groups as a recorder takes them, until they tell of so many attempts."""
    groups: list[Group] = []
    async with asyncio.timeout(PATIENCE_S):
        while sum(group.attempt_count for group in groups) < attempt_count:
            group = pipe.take()
            if group is not None:
                groups.append(group)
            else:
                await asyncio.sleep(0.001)
    return groups


def crowd(count: int, user_size: int = 0) -> tuple[list[Request], list[Answer]]:
    return [Purchase("p", f"{number}".rjust(user_size, "x")) for number in range(count)], [SOLD_OUT] * count


def users(groups: list[Group]) -> list[str | None]:
    return [asked.user_id and asked.user_id.lstrip("x") for group in groups for asked in group.requests]


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_the_outcomes_are_those_of_attempts() -> None:
    assert set(OUTCOMES) == {
        *("SUCCESS", "HELD", "CANCELLED", "EXPIRED", "SOLD_OUT", "LIMIT_EXCEEDED", "NOT_OPEN", "CLOSED", "PAUSED"),
        *("ITEM_TAKEN", "MISMATCH", "BUSY", "UNAVAILABLE", "UNKNOWN", "ERROR"),
    }


async def test_whatever_is_recorded_comes_out_as_it_was(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record(*map(list, zip(*ATTEMPTS, strict=True)))  # type: ignore[arg-type]
    [group] = await taken(pipe, len(ATTEMPTS))
    assert pipe.taken_count == group.attempt_count == len(ATTEMPTS)
    for (request, answer), number, asked, told in zip(
        ATTEMPTS, group.kinds, group.requests, group.answers, strict=True
    ):
        assert KINDS[number][0] is type(request)
        assert asked.product == request.product_id
        for name in ("user_id", "quantity", "request_id", "item_id"):
            if name != "user_id" or request.user_id:
                assert getattr(asked, name) == getattr(request, name, getattr(Purchase(), name))
        assert told.status == type(answer).__struct_config__.tag
        for name in ("error", "version", "item_id"):
            assert getattr(told, name) == getattr(answer, name, None)
        assert told.duplicate == getattr(answer, "duplicate", False)
    await sender.close()


async def test_what_is_no_attempt_of_a_buyer_is_left_out(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record([Sweep("p"), Pause("p")], [Swept(more=False), Failed("no")])
    sender.record([GetStatus("p"), Purchase("p", "u"), Sweep("p")], [ProductStatus(1, 1), SOLD_OUT, Swept(more=False)])
    [group] = await taken(pipe, 1)
    assert (users([group]), [told.status for told in group.answers]) == (["u"], ["SOLD_OUT"])
    await sender.close()
    assert pipe.take() is None


async def test_what_comes_one_by_one_goes_in_groups_and_in_order(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    for request, answer in zip(*crowd(2_000), strict=True):
        sender.record([request], [answer])
    groups = await taken(pipe, 2_000)
    assert users(groups) == numbers(2_000)
    assert len(groups) <= 4
    await sender.close()


async def test_more_than_the_pipe_takes_waits_and_what_is_large_is_divided(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(10_000, user_size=256))  # 2.7 MB: in the pipe is not room for a tenth
    groups = await taken(pipe, 10_000)
    assert users(groups) == numbers(10_000)
    assert not any(group.dropped_count for group in groups)
    await sender.close()


async def test_what_there_is_no_room_for_is_counted_and_told_once_there_is(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    sender = AttemptSender(pipe.sending, size_max=GROUP_SIZE_MAX)
    for _ in range(100):
        sender.record(*crowd(512))
    first = await taken(pipe, 51_200)  # nothing comes after them: the number is told by itself
    dropped_count = sum(group.dropped_count for group in first)
    assert 0 < dropped_count < 51_200
    assert (first[-1].dropped_count, users(first[-1:])) != (0, [])
    assert dropped_count + len(users(first)) == 51_200
    sender.record(*crowd(200))
    assert users(await taken(pipe, 200)) == numbers(200)
    await sender.close()
    assert [record.getMessage() for record in caplog.records] == [
        "attempts are dropped while the recorder is behind; it records how many"
    ]


async def test_the_number_of_the_dropped_goes_with_the_next_that_there_is_room_for(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending, size_max=GROUP_SIZE_MAX)
    for _ in range(100):
        sender.record(*crowd(512))
    await taken(pipe, 512)
    async with asyncio.timeout(PATIENCE_S):
        while not sender._spare:  # it goes on as soon as there is room in the pipe
            pipe.take()
            await asyncio.sleep(0.001)
    sender.record(*crowd(200))
    rest = await taken(pipe, 51_200 + 200 - pipe.taken_count)
    assert users(rest)[-200:] == numbers(200)
    assert pipe.taken_count == 51_400
    await sender.close()


async def test_a_worker_that_ends_hands_over_what_it_has_not_packed_yet(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(3))
    await sender.close()
    assert users(await taken(pipe, 3)) == numbers(3)


async def test_a_worker_that_ends_waits_for_the_recorder_to_take_the_rest(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(20_000))
    groups, _ = await asyncio.gather(taken(pipe, 20_000), sender.close())
    assert users(groups) == numbers(20_000)


async def test_a_worker_that_cannot_wait_any_longer_hands_over_the_number(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_CLOSE_S", 0.01)
    monkeypatch.setattr(attempts, "_CLOSE_COUNT_S", PATIENCE_S)
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(20_000))
    closing = asyncio.create_task(sender.close())
    await asyncio.sleep(0.1)  # the pipe is full, and the recorder takes nothing
    groups = await taken(pipe, 20_000)
    await closing
    assert 0 < groups[-1].dropped_count == 20_000 - len(users(groups))


async def test_what_nobody_takes_in_the_end_is_told_to_the_log(
    pipe: Pipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_CLOSE_S", 0.01)
    monkeypatch.setattr(attempts, "_CLOSE_COUNT_S", 0.01)
    sender = AttemptSender(pipe.sending, size_max=GROUP_SIZE_MAX)
    for _ in range(100):
        sender.record(*crowd(512))
    await sender.close()
    [*_, last] = [record for record in caplog.records if record.levelno == logging.ERROR]
    left_count = 0
    while (group := pipe.take()) is not None:
        left_count += group.attempt_count
    assert last.getMessage() == f"{51_200 - left_count} attempts are not recorded: the recorder did not take them"


async def test_a_recorder_and_a_supervisor_that_are_gone_harm_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_CLOSE_S", 0.01)
    monkeypatch.setattr(attempts, "_CLOSE_COUNT_S", 0.01)
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sending.setblocking(False)
    sender = AttemptSender(sending, size_max=GROUP_SIZE_MAX)
    receiving.close()
    for _ in range(100):
        sender.record(*crowd(512))
    await sender.close()
    sending.close()


async def test_what_cannot_be_packed_is_counted(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record([Purchase("p", "\ud800")], [SOLD_OUT])  # no text: the door lets none of it in
    sender.record(*crowd(1))
    groups = await taken(pipe, 2)
    assert sum(group.dropped_count for group in groups) == 2  # they were to be one group
    await sender.close()
    assert caplog.records[0].getMessage() == "attempts cannot be packed"


async def test_another_recorder_goes_on_with_the_next_group_and_knows_how_many_were_taken(pipe: Pipe) -> None:
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(1_000))
    first = users(await taken(pipe, 1))
    assert pipe.taken_count == len(first) < 1_000
    assert first + users(await taken(pipe, 1_000 - len(first))) == numbers(1_000)
    assert pipe.taken_count == 1_000
    await sender.close()


async def test_a_pipe_that_is_closed_says_how_many_were_left_in_it() -> None:
    pipe = Pipe()
    sender = AttemptSender(pipe.sending)
    sender.record(*crowd(1_000))
    await sender.close()
    first = pipe.take()
    assert first is not None
    assert pipe.close() == 1_000 - first.attempt_count > 0
