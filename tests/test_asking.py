"""Asking one thing at a time."""

import asyncio

import pytest

from flashsale.asking import Asker
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
