"""What goes to an engine at once, and what becomes of it."""

from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct

from flashsale.domain.answers import HOLD_NOT_FOUND, NOT_FOUND, Answer, Failed
from flashsale.domain.requests import Cancel, Confirm, Extend, Request


class Batch(Struct, frozen=True):
    """Requests for one product, in order of arrival, that an engine decides in one atomic step.

    `sequence` grows with every batch of a session. A batch that is sent again keeps its sequence, so that the engine
    can give the first outcome again instead of selling twice. `fenced` asks the engine to remember the sequence even
    when nothing changed: the fate of an earlier send is open, and it must find the door shut should it arrive late.
    """

    product_id: str
    requests: Sequence[Request]
    sequence: int
    fenced: bool = False


class NotExecuted(Struct, frozen=True):
    """The batch certainly had no effect and may be sent again."""

    reason: str
    alone: bool = False
    """Whether it is about this product; else it is the store that is away, or refuses, for every one."""


class Ambiguous(Struct, frozen=True):
    """The batch may have had its effect; only a fenced resend with the same sequence can tell."""

    reason: str
    alone: bool = False
    """As of NotExecuted."""


class Defective(Struct, frozen=True):
    """The product's keys are not what they should be; nothing was changed, and repeating will not help."""

    reason: str


Outcome: TypeAlias = list[Answer] | NotExecuted | Ambiguous | Defective
"""What became of a batch: one answer for each of its requests, or why there are none."""


def not_found(request: Request) -> Answer:
    """Return the answer to a request for a product that does not exist."""
    return Failed(HOLD_NOT_FOUND) if isinstance(request, Confirm | Cancel | Extend) else NOT_FOUND
