"""Asks the gate before a request is submitted, for every door, and has the recorder told whom it refused."""

from collections.abc import Callable
from math import ceil
from typing import Any, TypeAlias, TypeVar

from flashsale.domain.answers import Answer, Busy
from flashsale.domain.requests import Request, Subscribe
from flashsale.limiting import OPERATIONS, Gate, parse_rate, parse_route_rates

Record: TypeAlias = Callable[[list[Request], list[Answer]], None]
Asked = TypeVar("Asked", bound=Request | Subscribe)
Submit: TypeAlias = Callable[[Asked, Any, int], None]
"""Takes a request, the client's session and the ticket; of the session are asked `client` and `answer`."""


def make_gate(clock: Callable[[], float], *, user: str | None, client: str | None, routes: str | None) -> Gate | None:
    """Return what refuses those who come too often; None when nobody is refused for that.

    Args:
        clock: see Gate.
        user: the rate as it is said, such as `10/s`.
        client: likewise.
        routes: rates of operations as they are said.

    Raises:
        InvalidValueError: one of them is none.
    """
    if user is None and client is None and routes is None:
        return None
    return Gate(
        clock,
        user=parse_rate(user) if user is not None else None,
        client=parse_rate(client) if client is not None else None,
        routes=parse_route_rates(routes) if routes is not None else None,
    )


def refuse(request: Request | Subscribe, client: str, gate: Gate, record: Record) -> Busy | None:
    """Return the answer to a request that comes too often; None when it is to be submitted.

    Args:
        request: of a buyer.
        client: who asks, as flashsale.peers calls it; empty when that is not known.
        gate: knows how often everybody came.
        record: is told of a request that was refused, with its answer.
    """
    user_id = "" if isinstance(request, Subscribe) else request.user_id
    wait_s = gate.wait_s(OPERATIONS[type(request)], client, user_id)
    if not wait_s:
        return None
    busy = Busy(ceil(wait_s * 1000))
    if not isinstance(request, Subscribe):
        record([request], [busy])
    return busy


def guarded(submit: Submit[Asked], gate: Gate, record: Record) -> Submit[Asked]:
    """Return what submits a request unless it comes too often, and then answers it; see `refuse`."""

    def ask(request: Asked, session: Any, ticket: int) -> None:
        busy = refuse(request, session.client, gate, record)
        if busy is None:
            submit(request, session, ticket)
        else:
            session.answer(ticket, busy)

    return ask
