"""Asks the batcher one thing and waits for its answer: for doors whose requests come one by one."""

import asyncio
from collections.abc import Callable
from itertools import count

from flashsale.batching import Sink
from flashsale.domain.answers import NOT_EXECUTED, Answer
from flashsale.domain.requests import Request


class Asker:
    """A sink of the batcher that hands each answer to whoever waits for it. Belongs to one event loop."""

    def __init__(self, submit: Callable[[Request, Sink, int], None]) -> None:
        self._submit = submit
        self._new_future = asyncio.get_running_loop().create_future
        self._tickets = count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    @property
    def waiting_count(self) -> int:
        """How many answers are waited for."""
        return len(self._waiting)

    def ask(self, request: Request) -> "asyncio.Future[Answer]":
        """Submit a request; await its answer.

        Whoever is cancelled while it waits has asked all the same: what was decided stands.
        """
        answer: asyncio.Future[Answer] = self._new_future()
        ticket = next(self._tickets)
        self._waiting[ticket] = answer
        self._submit(request, self, ticket)
        return answer

    def refuse(self) -> None:
        """Answer everything from now on as not executed; what is under way has its answer from the batcher."""
        self._submit = _refuse

    def answer(self, ticket: int, answer: Answer) -> None:
        """Take the answer to the request of that ticket."""
        waiting = self._waiting.pop(ticket)
        if not waiting.done():
            waiting.set_result(answer)

    def flush(self) -> None:
        """Nothing to send: each has its answer."""


def _refuse(request: Request, sink: Sink, ticket: int) -> None:
    sink.answer(ticket, NOT_EXECUTED)
