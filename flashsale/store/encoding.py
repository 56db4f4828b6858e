"""What goes to the decision script and what comes back, and how the ledger is kept in its stream.

The other side of every number and position here is in lua/frame.lua and lua/rules.lua.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import structs

from flashsale.domain.answers import (
    ALREADY_CONFIRMED,
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    ONE_ITEM_AT_A_TIME,
    ORDER_NOT_FOUND,
    SALE_IS_CLOSED,
    SOLD_OUT,
    STOCK_TOO_LARGE,
    Answer,
    Cancelled,
    Changed,
    Closed,
    Expired,
    Failed,
    Held,
    ItemTaken,
    LimitExceeded,
    Mismatch,
    NotOpen,
    Paused,
    ProductStatus,
    SoldOut,
    Success,
    Swept,
)
from flashsale.domain.batches import Ambiguous, Batch, Defective, Outcome, not_found
from flashsale.domain.bounds import STOCK_MAX
from flashsale.domain.ids import OrderRef, make_code, make_order_id, parse_order_id, token_of
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    GetStatus,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
    Sweep,
)
from flashsale.domain.sale import Change, Kind, Terms

_DECIDED, _NOT_FOUND, _OVERTAKEN, _DEFECTIVE, _REFUSED, _ROWS = range(6)

Reply: TypeAlias = list[Any]

_encode_json = msgspec.json.Encoder().encode
_encode_requests = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[list[Any]]).decode


# Requests


def encode_batch(batch: Batch, mint: Callable[[], str]) -> tuple[int | bytes, bytes, bytes]:
    """Return a batch as the script's arguments count, users and requests.

    Args:
        batch: the batch.
        mint: gives the secret of each hold; called once for each Reserve.
    """
    requests = batch.requests
    plain_users = [
        request.user_id
        for request in requests
        if type(request) is Purchase
        and request.quantity == 1
        and request.request_id is None
        and request.item_id is None
    ]
    if len(plain_users) == len(requests):
        return len(requests), _encode_json(plain_users), b""
    return len(requests), b"", _encode_requests([_encode_request(request, mint) for request in requests])


def encode_asked(user_id: str, quantity: int, item_id: int | None, request_id: str | None) -> str:
    """Return the JSON of what is asked for, without its brackets: a part of the change that the sale will be."""
    if item_id is None and request_id is None:
        return _encode_json((user_id, quantity))[1:-1].decode()
    return _encode_json((user_id, quantity, item_id or 0, request_id or ""))[1:-1].decode()


def _encode_request(request: Request, mint: Callable[[], str]) -> tuple[int | str, ...]:  # noqa: C901 - one table
    match request:
        case Purchase(_, user_id, quantity, request_id, item_id):
            asked = encode_asked(user_id, quantity, item_id, request_id)
            return 1, user_id, quantity, f"={request_id}" if request_id else "", item_id or 0, asked
        case Reserve(_, user_id, quantity, request_id, item_id, hold_seconds):
            asked = encode_asked(user_id, quantity, item_id, request_id)
            name = f"={request_id}" if request_id else ""
            return 2, user_id, quantity, name, item_id or 0, asked, hold_seconds or 0, mint()
        case Confirm(code, request_id):
            return 3, token_of(code), f"={request_id}" if request_id else ""
        case Cancel(code):
            return 4, token_of(code)
        case Extend(code, hold_seconds):
            return 5, token_of(code), hold_seconds or 0
        case GetStatus():
            return (6,)
        case Sweep():
            return (7,)
        case Restock(_, quantity):
            return 8, min(quantity, STOCK_MAX + 1)  # too large is too large, and fits 64 bits
        case Refund(order_id, known):
            order = parse_order_id(order_id)
            return (9, order.version, order.at_ms, order.epoch, *(known or ())) if order else (9, 0, 0, "")
        case Pause():
            return (10,)
        case Resume():
            return (11,)
        case Close():
            return (12,)


# Replies


def decode_reply(batch: Batch, reply: Reply) -> Outcome:
    """Return what the script's reply to a batch says."""
    match reply[1]:
        case 0:
            return _decode_granted(batch, *reply[2:])
        case 5:
            rows, epoch = _decode_rows(reply[2]), reply[3].decode()
            return [_decode_row(row, batch.product_id, epoch) for row in rows]
        case 1:
            return [not_found(request) for request in batch.requests]
        case 2:
            return Ambiguous("overtaken by a later batch of its session", alone=True)
        case 4:
            return [_REFUSALS[reply[2]](reply[3])] * len(batch.requests)
        case _:
            return Defective(reply[2].decode())


def epoch_of(reply: Reply) -> str:
    """Return the epoch of the product in the reply to a batch that was decided."""
    epoch: bytes = reply[6] if reply[1] == _DECIDED else reply[3]
    return epoch.decode()


_REFUSALS: dict[bytes, Callable[[int], Answer]] = {
    b"paused": lambda _: Paused(),
    b"closed": lambda _: Closed(),
    b"not_open": NotOpen,
}


def _decode_granted(batch: Batch, stock: int, granted: int, version: int, at_ms: int, epoch: bytes) -> list[Answer]:
    """Return the answers of purchases of one unit: the first `granted` succeed, the others are sold out."""
    if not granted:
        return [SOLD_OUT] * len(batch.requests)
    # make_order_id, with what is the same for all of them made once
    head, tail = f"{at_ms:011x}-", f"-{epoch.decode()}-{batch.product_id}"
    answers: list[Answer] = [
        Success(stock - i, f"{head}{version + i:010x}{tail}", version + i) for i in range(1, granted + 1)
    ]
    return answers + [SOLD_OUT] * (len(batch.requests) - granted)


_FAILURES = (
    "",
    HOLD_NOT_FOUND,
    ITEM_NOT_FOUND,
    ORDER_NOT_FOUND,
    ALREADY_CONFIRMED,
    ONE_ITEM_AT_A_TIME,
    SALE_IS_CLOSED,
    STOCK_TOO_LARGE,
)


def _decode_row(row: list[Any], product_id: str, epoch: str) -> Answer:  # noqa: C901 - one table
    match row:
        case [0, first]:
            return structs.replace(_decode_row(first, product_id, epoch), duplicate=True)
        case [1, remaining, version, at_ms, item]:
            order_id = make_order_id(OrderRef(product_id, epoch, version, at_ms))
            return Success(remaining, order_id, version, item or None)
        case [2, token, expires_at, remaining, version, item]:
            return Held(make_code(token, product_id), expires_at, remaining, version, item or None)
        case [3, remaining, version]:
            return Cancelled(remaining, version)
        case [4]:
            return Expired()
        case [5, remaining]:
            return SoldOut(remaining) if remaining else SOLD_OUT
        case [6]:
            return LimitExceeded()
        case [7, opens_at]:
            return NotOpen(opens_at)
        case [8]:
            return Closed()
        case [9]:
            return Paused()
        case [10]:
            return ItemTaken()
        case [11]:
            return Mismatch()
        case [12, remaining, sold, held, state, version]:
            return ProductStatus(remaining, sold, held, state, version)
        case [13, remaining, version, duplicate]:
            return Changed(remaining, version, duplicate)
        case [14, more]:
            return Swept(more)
        case [15, reason]:
            return Failed(_FAILURES[reason])
        case _:
            raise ValueError(f"the script answered {row}")


# The ledger


class _Entry(msgspec.Struct, array_like=True):
    kind: Kind
    remaining: int
    user_id: str = ""
    quantity: int = 0
    item_id: int = 0
    request_id: str = ""
    ref: int = 0
    expires_at: int = 0


_decode_changes = msgspec.json.Decoder(list[_Entry]).decode
_decode_sales = msgspec.json.Decoder(tuple[int, list[str]]).decode
_decode_terms = msgspec.json.Decoder(Terms).decode


def decode_message(message_id: bytes, fields: Mapping[bytes, bytes]) -> Iterator[Change]:
    """Yield the changes that a message of a product's stream holds: those of one batch.

    Args:
        message_id: "<version of the first change>-0".
        fields: `at` is the time in Unix ms; `epoch` that of the sale; `terms`, of the change that opens it, is the JSON
            of what the operator said; `changes` is JSON, an array of _Entry; `sales` is JSON too, a run of sales of one
            unit each after them: the units left before it, and an array of the users.

    Raises:
        ValueError: somebody else has written there.
    """
    try:
        version, at_ms = int(message_id.partition(b"-")[0]), int(fields[b"at"])
    except KeyError:
        raise ValueError("a message without a time") from None
    terms = _decode_terms(fields[b"terms"]) if b"terms" in fields else None
    for entry in _decode_changes(fields.get(b"changes", b"[]")):
        yield Change(version=version, at_ms=at_ms, terms=terms, **structs.asdict(entry))
        version += 1
    stock, users = _decode_sales(fields.get(b"sales", b"[0,[]]"))
    for user_id in users:
        stock -= 1
        yield Change(kind=Kind.SOLD, version=version, at_ms=at_ms, remaining=stock, user_id=user_id, quantity=1)
        version += 1
