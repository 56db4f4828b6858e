"""What the keys of a sale hold, read back: its counters and terms, and its holds."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from flashsale.domain.sale import PLAIN, Terms


class HoldRecord(Struct, frozen=True, array_like=True, tag=16):
    """A hold that was neither confirmed nor cancelled, as lua/rules.lua packs it. It stands while it has a deadline."""

    user_id: str
    quantity: int
    item_id: int
    """0 when the product's units are not numbered."""
    request_id: str
    version: int
    """Of the change in the ledger with which it began."""
    created_at: int
    """In Unix seconds."""


_decode_hold = msgspec.msgpack.Decoder(HoldRecord).decode
encode_hold = msgspec.msgpack.Encoder().encode


def read_hold(packed: bytes | None) -> HoldRecord | None:
    """Return a hold from its record; None when there is none, or it is of something else."""
    try:
        return _decode_hold(packed or b"")
    except msgspec.DecodeError:
        return None


class Sale(Struct, frozen=True, kw_only=True):
    """A sale at one instant."""

    initial: int
    """Units that it was opened with."""
    remaining: int
    sold: int
    """Units."""
    held: int
    """Units."""
    buyer_count: int
    """Entries in the list of buyers: one for each order that stands."""
    terms: Terms
    state: str
    """open, paused, closed or not_open."""
    version: int
    """Of its last change; 0 while its stock was set by hand and nothing has changed since."""


def read_sale(stock: int, buyer_count: int, fields: Mapping[bytes, bytes], state: str) -> Sale:
    """Return the sale that these are the keys of.

    Args:
        stock: of its stock key.
        buyer_count: the length of its list.
        fields: of its hash `sale`; empty when its stock was set by hand.
        state: as the decision script has answered it, whose clock and rule they are.
    """

    def number(name: str, default: int = 0) -> int:
        return int(fields.get(name.encode(), default))

    terms = Terms(
        limit=number("limit"),
        opens_at=number("opens_at"),
        closes_at=number("closes_at"),
        hold_s=number("hold_s", PLAIN.hold_s),
        hold_total_s=number("hold_total_s", PLAIN.hold_total_s),
        numbered=b"items" in fields,
    )
    return Sale(
        initial=number("initial") if fields else max(stock, 0) + buyer_count,
        remaining=max(stock, 0),
        sold=number("sold") if fields else buyer_count,
        held=number("held"),
        buyer_count=buyer_count,
        terms=terms,
        state=state,
        version=number("version"),
    )
