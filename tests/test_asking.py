"""Asking one thing at a time."""

import asyncio

import pytest

from flashsale.asking import Asker, Pace
from flashsale.batching import Sink
from flashsale.domain.answers import NOT_EXECUTED, SoldOut
from flashsale.domain.requests import Purchase, Request

REQUEST = Purchase("p", "u")


class Queue:
    """What was submitted and not answered yet."""

    def __init__(self) -> None:
        self.asked: list[tuple[Request, Sink, int]] = []

    def submit(self, request: Request, sink: Sink, ticket: int) -> None:
        self.asked.append((request, sink, ticket))

    def answer(self, position: int, left: int) -> None:
        _, sink, ticket = self.asked[position]
        sink.answer(ticket, SoldOut(left))
        sink.flush()


async def test_everybody_gets_the_answer_to_what_he_asked() -> None:
    queue = Queue()
    asker = Asker(queue.submit)
    first, second = asker.ask(REQUEST), asker.ask(REQUEST)
    queue.answer(1, 2)
    queue.answer(0, 1)
    assert (await first, await second) == (SoldOut(1), SoldOut(2))
    assert asker.waiting_count == 0


async def test_the_answer_to_somebody_who_has_gone_is_dropped() -> None:
    queue = Queue()
    asker = Asker(queue.submit)
    waiting = asker.ask(REQUEST)
    waiting.cancel()
    queue.answer(0, 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asker.waiting_count == 0


async def test_one_that_refuses_asks_nothing_more() -> None:
    queue = Queue()
    asker = Asker(queue.submit)
    before = asker.ask(REQUEST)
    asker.refuse()
    assert await asker.ask(REQUEST) == NOT_EXECUTED
    queue.answer(0, 1)
    assert await before == SoldOut(1)
    assert len(queue.asked) == 1


async def test_what_comes_close_together_is_submitted_together() -> None:
    queue = Queue()
    pace = Pace(queue.submit, pause_s=0.05)
    asker = Asker(pace.submit)
    answers = [asker.ask(REQUEST)]
    assert len(queue.asked) == 1, "nobody came before"
    answers += [asker.ask(REQUEST) for _ in range(3)]
    assert len(queue.asked) == 1
    await asyncio.sleep(0.1)
    assert len(queue.asked) == 4
    for position in range(4):
        queue.answer(position, position)
    assert [await answer for answer in answers] == [SoldOut(left) for left in range(4)]
    await asyncio.sleep(0.1)
    last = asker.ask(REQUEST)
    assert len(queue.asked) == 5, "there was a pause"
    queue.answer(4, 9)
    assert await last == SoldOut(9)


async def test_at_the_end_what_was_gathered_is_still_submitted() -> None:
    queue = Queue()
    pace = Pace(queue.submit, pause_s=60)
    asker = Asker(pace.submit)
    for _ in range(2):
        asker.ask(REQUEST)
    pace.flush()
    asker.refuse()
    assert len(queue.asked) == 2
    assert await asker.ask(REQUEST) == NOT_EXECUTED
