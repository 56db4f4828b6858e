"""What a product's keys hold besides what an audit sets right, when they are rebuilt from the database.

Lost with a store are what it alone knew: the codes of holds, so that nobody can confirm one that stood (its units
return in time), and the sales that had not reached the database.
"""

import msgspec

from flashsale.domain.bounds import REQUESTS_KEPT_S
from flashsale.domain.sale import PLAIN
from flashsale.store.comparison import REQUESTS, SALE
from flashsale.store.encoding import encode_asked
from flashsale.store.replay import Base, PastOrder
from flashsale.store.report import Command

_PAIR_COUNT = 500  # in one HSET: unpack() in Lua takes no more than some thousands values
_SUCCESS = 1

_encode = msgspec.msgpack.Encoder().encode


def sale_fields(base: Base) -> list[str | int]:
    """Return names and values of a sale's terms, as lua/init.lua writes them."""
    counters, terms = base.counters, base.terms or PLAIN
    fields: dict[str, int] = {"initial": counters.initial, "restocked": counters.restocked}
    if base.terms is not None:
        fields |= {
            "limit": terms.limit,
            "opens_at": terms.opens_at,
            "closes_at": terms.closes_at,
            "hold_s": terms.hold_s,
            "hold_total_s": terms.hold_total_s,
        }
    if terms.numbered:
        fields |= {"items": counters.units, "cursor": 1}
    return [part for pair in fields.items() for part in pair]


def answers(base: Base, now_s: int) -> list[Command]:
    """Return what writes down again which requests were answered, for whoever repeats one of the last day."""
    since_ms = (now_s - REQUESTS_KEPT_S) * 1000
    values: list[str | bytes] = []
    for order in base.orders:
        if order.request_id and order.at_ms >= since_ms:
            values += (f"={order.request_id}", _encode_answer(order))
    size = 2 * _PAIR_COUNT
    commands: list[Command] = [("HSET", REQUESTS, *values[i : i + size]) for i in range(0, len(values), size)]
    return [*commands, ("HSET", SALE, "since", now_s)] if commands else []


def _encode_answer(order: PastOrder) -> bytes:
    """Return the row of an answer and what was asked for: whether an item was named is not known any more."""
    row = _encode((_SUCCESS, order.remaining or 0, order.version, order.at_ms, order.item_id))
    asked = {
        encode_asked(order.user_id, order.quantity, item, order.request_id) for item in {None, order.item_id or None}
    }
    return row + "".join(f"\n{text}" for text in sorted(asked)).encode() + b"\n"
