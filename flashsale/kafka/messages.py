"""What stands in the topic of the orders: each message holds changes of one product, as they follow each other.

    {"product_id":"p","epoch":"5c0ffee5","version":8,"at":1764000000123,
     "changes":[["sold",91,"ann",2,0,"r1",0,0,"19ab697e87b-0000000008-5c0ffee5-p"],["paused",91,"",0,0,"",0,0,""]]}

- Key: the product id, in UTF-8. All messages of a product are therefore in one partition.
- `epoch`: which sale of the product; another one after it was opened anew.
- `version`: of the first change; each change after it has one more.
- `at`: the store's clock when all of them happened, in Unix ms.
- `terms`: beside the change that opened the sale, what the operator said (see flashsale.domain.sale.Terms).
- `changes`: an array for each: what it was (see flashsale.domain.sale.Kind), the units left after it, the user, the
  units, the item or 0, the request id, the version of the hold or order that it is about or 0, when the hold ends in
  Unix seconds or 0, and the order id of what was sold or confirmed. Later versions may add to an array and to the
  message; whoever reads ignores what he does not know.

A message may come again, also with changes cut differently. Every change is known by product, epoch and its own
version: whoever has seen one of that version or a later one of that sale passes over it.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from flashsale.domain.bounds import ID_SIZE_MAX, STOCK_MAX, TIME_MAX
from flashsale.domain.ids import OrderRef, make_order_id
from flashsale.domain.sale import Change, Kind, Portion, Terms

SIZE_MAX = 256 * 1024
"""Bytes in the changes of a message, unless it is a single one; brokers take 1 MiB unless told otherwise."""

_Count = Annotated[int, Meta(ge=0, le=STOCK_MAX)]


class _Entry(Struct, frozen=True, array_like=True):
    kind: Kind
    remaining: _Count
    user_id: str
    quantity: _Count
    item_id: _Count
    request_id: str
    ref: _Count
    expires_at: Annotated[int, Meta(ge=0, le=TIME_MAX)]
    order_id: str


class _Message(Struct, frozen=True):
    product_id: Annotated[str, Meta(min_length=1, max_length=ID_SIZE_MAX)]
    epoch: Annotated[str, Meta(min_length=1, max_length=8)]
    version: Annotated[int, Meta(ge=1, le=STOCK_MAX)]
    at: Annotated[int, Meta(ge=0, le=TIME_MAX * 1000)]
    changes: Annotated[list[_Entry], Meta(min_length=1)]
    terms: Terms | None = None


class _Written(Struct, frozen=True, omit_defaults=True):
    """A message whose changes are JSON already."""

    product_id: str
    epoch: str
    version: int
    at: int
    changes: list[msgspec.Raw]
    terms: Terms | None = None


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


def encode(product_id: str, epoch: str, changes: Iterable[Change]) -> Iterator[bytes]:
    """Yield messages that tell of these changes, which follow each other."""
    for at_ms, alike in groupby(changes, lambda change: change.at_ms):
        version, size, terms = 0, 0, None
        written: list[msgspec.Raw] = []
        for change in alike:
            entry = msgspec.Raw(_encode(_entry(product_id, epoch, change)))
            if written and size + len(entry) > SIZE_MAX:
                yield _encode(_Written(product_id, epoch, version, at_ms, written, terms))
                written, size, terms = [], 0, None
            terms = change.terms or terms
            version = version if written else change.version
            written.append(entry)
            size += len(entry)
        yield _encode(_Written(product_id, epoch, version, at_ms, written, terms))


def _entry(product_id: str, epoch: str, change: Change) -> _Entry:
    is_order = change.kind in {Kind.SOLD, Kind.CONFIRMED}
    return _Entry(
        kind=change.kind,
        remaining=change.remaining,
        user_id=change.user_id,
        quantity=change.quantity,
        item_id=change.item_id,
        request_id=change.request_id,
        ref=change.ref,
        expires_at=change.expires_at,
        order_id=make_order_id(OrderRef(product_id, epoch, change.version, change.at_ms)) if is_order else "",
    )


def decode(data: bytes) -> Portion:
    """Return what a message tells; raises ValueError when it is none."""
    message = _decode(data)
    changes = []
    for version, entry in enumerate(message.changes, message.version):
        fields = structs.asdict(entry)
        del fields["order_id"]  # it follows from the others
        terms = message.terms if entry.kind is Kind.OPENED else None
        changes.append(Change(version=version, at_ms=message.at, terms=terms, **fields))
    return Portion(message.product_id, message.epoch, changes)
