"""Asks the batcher one thing and waits for its answer: for doors whose requests come one by one."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from flashsale.batching import Sink
from flashsale.domain.answers import NOT_EXECUTED, Answer
from flashsale.domain.requests import Request

Submit: TypeAlias = Callable[[Request, Sink, int], None]


class Asker:
    """A sink of the batcher that hands each answer to whoever waits for it. Belongs to one event loop."""

    def __init__(self, submit: Submit) -> None:
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


class Pace:
    """Submits what comes close together in one go, so that it shares a round trip to the store.

    For a door that takes its requests so slowly that else each would have a round trip of its own, which costs the
    server more than the request. Who comes after a pause is submitted at once. Belongs to one event loop.
    """

    def __init__(self, submit: Submit, *, pause_s: float) -> None:
        """Submit there, at most once in so many seconds."""
        self._to = submit
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._gathered: list[tuple[Request, Sink, int]] = []
        self._next_at = 0.0  # on the loop's clock

    def submit(self, request: Request, sink: Sink, ticket: int) -> None:
        """Take a request."""
        if self._gathered:
            self._gathered.append((request, sink, ticket))
            return
        wait_s = self._next_at - self._loop.time()
        if wait_s <= 0:
            self._next_at = self._loop.time() + self._pause_s
            self._to(request, sink, ticket)
            return
        self._gathered.append((request, sink, ticket))
        self._loop.call_later(wait_s, self.flush)

    def flush(self) -> None:
        """Submit what was gathered."""
        self._next_at = self._loop.time() + self._pause_s
        gathered, self._gathered = self._gathered, []
        for request, sink, ticket in gathered:
            self._to(request, sink, ticket)


def _refuse(request: Request, sink: Sink, ticket: int) -> None:
    sink.answer(ticket, NOT_EXECUTED)
