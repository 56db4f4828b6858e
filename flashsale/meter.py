"""Counts what a worker answers: once for each batch, as there may be some hundred thousand requests a second."""

from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import get_args

from flashsale.domain.answers import Answer
from flashsale.domain.attempts import KINDS
from flashsale.domain.batches import Ambiguous, Batch, NotExecuted, Outcome
from flashsale.domain.requests import GetStatus, Request
from flashsale.engine import Engine
from flashsale.metrics import (
    ANSWERS,
    AWAY,
    BATCH,
    LATENCY,
    REQUESTS,
    RESPONSE_CLASSES,
    RESPONSES,
    ROUND_TRIP,
    ROUNDS_FAILED,
    STATUS,
    Observations,
    Slot,
    place_of,
)

_TAGS: dict[type[Answer], str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(Answer)}
_PLACES = {
    (kind, answer): place_of(REQUESTS, operation, tag)
    for kind, operation in (*KINDS, (GetStatus, STATUS))
    for answer, tag in _TAGS.items()
    if tag in ANSWERS
}
_RESPONSE_PLACES = {number: place_of(RESPONSES, name) for number, name in enumerate(RESPONSE_CLASSES, 1)}
_AWAY, _ROUNDS_FAILED = place_of(AWAY), place_of(ROUNDS_FAILED)
_UNDECIDED = (NotExecuted, Ambiguous)


class Meter:
    """Counts into a worker's slot; see flashsale.batching.Meter."""

    def __init__(self, slot: Slot, now: Callable[[], float] = monotonic) -> None:
        self._words = slot.words
        self._batch = Observations(slot, BATCH)
        self._latency = Observations(slot, LATENCY)
        self._now = now

    def measure(self, requests: Sequence[Request], answers: Sequence[Answer], arrivals: Sequence[float]) -> None:
        """Count requests that were answered now; what nobody asked for from outside is not counted.

        Args:
            requests: at least one.
            answers: in the same order.
            arrivals: when each came, on the same clock, the oldest first.
        """
        now = self._now()
        kinds, ends = list(map(type, requests)), list(map(type, answers))
        count = len(kinds)
        if kinds.count(kinds[0]) == count and ends.count(ends[0]) == count:  # a crowd wants, and gets, the same
            place = _PLACES.get((kinds[0], ends[0]))
            if place is None:
                return
            self._words[place] += count
        else:
            for pair, number in Counter(zip(kinds, ends, strict=True)).items():
                if pair in _PLACES:
                    self._words[_PLACES[pair]] += number
        self._batch.add(count)
        self._latency.add_waits(arrivals, now)

    def refuse(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Count requests that were answered at once, as there was no use in waiting."""
        for request, answer in zip(requests, answers, strict=True):
            place = _PLACES.get((type(request), type(answer)))
            if place is not None:
                self._words[place] += 1

    def respond(self, status: int) -> None:
        """Count a response over HTTP."""
        self._words[_RESPONSE_PLACES[status // 100]] += 1


class MeteredEngine:
    """An engine whose rounds are measured; see flashsale.engine.Engine."""

    def __init__(self, engine: Engine, slot: Slot) -> None:
        self._engine = engine
        self._words = slot.words
        self._round_trip = Observations(slot, ROUND_TRIP)

    async def commit(self, batches: Sequence[Batch], *, timeout_s: float) -> list[Outcome]:
        """Have the batches decided."""
        begun = monotonic()
        outcomes = await self._engine.commit(batches, timeout_s=timeout_s)
        lasted_s = monotonic() - begun
        for outcome in outcomes:
            if not isinstance(outcome, _UNDECIDED):
                self._words[_AWAY] = 0
                self._round_trip.add(lasted_s)
                return outcomes
        self._words[_AWAY] = 1
        self._words[_ROUNDS_FAILED] += 1
        return outcomes
