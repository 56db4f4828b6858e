"""Asks the gate before a request is submitted: for doors whose clients take BUSY for an answer."""

from collections.abc import Callable
from math import ceil
from typing import Any, TypeAlias, TypeVar

from flashsale.domain.answers import Answer, Busy
from flashsale.domain.requests import Request, Subscribe
from flashsale.limiting import OPERATIONS, Gate, parse_rate, parse_route_rates

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


def busy_for(wait_s: float) -> Busy:
    """Return the answer to one who comes too often."""
    return Busy(ceil(wait_s * 1000))


def guarded(
    submit: Submit[Asked], gate: Gate, record: Callable[[list[Request], list[Answer]], None] | None = None
) -> Submit[Asked]:
    """Return what submits a request unless it comes too often, and then answers it.

    Args:
        submit: what submits it.
        gate: says whether it does.
        record: is told of each that was refused.
    """

    def ask(request: Asked, session: Any, ticket: int) -> None:
        user_id = "" if isinstance(request, Subscribe) else request.user_id
        wait_s = gate.wait_s(OPERATIONS[type(request)], session.client, user_id)
        if not wait_s:
            submit(request, session, ticket)
            return
        answer = busy_for(wait_s)
        session.answer(ticket, answer)
        if record is not None and not isinstance(request, Subscribe):
            record([request], [answer])

    return ask
