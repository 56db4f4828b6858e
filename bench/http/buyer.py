"""One connection of the crowd over HTTP: as lean as over TCP, and by the same loop.

Requests are made a hundred at a time, as over TCP; they carry the headers that most clients send, and a request id of
their own each. The head of an answer is read once for each second in which it is the same, to the byte, for everybody.
"""

from typing import NamedTuple

import msgspec

from bench.buyer import Blocks, Buyer, make_purchase
from bench.load import SOLD_OUT, SUCCESS

HEAD_END = b"\r\n\r\n"
_HEAD_COUNT_MAX = 1_000
_KEY_SIZE = 38
HTTP_KINDS = {
    b'200{"success":true,"message":"order place': SUCCESS,
    b'410{"success":false,"message":"sold out"}': SOLD_OUT,
}
"""The usual answers by their status and the first bytes of their body; the others are decoded."""


class Head(NamedTuple):
    """What the head of an answer says; a tuple, as it is read once for each answer."""

    status: bytes
    body_size: int
    key_size: int
    """Bytes of the body that tell of the usual kinds."""


class HttpPurchases(Blocks):
    """Purchases of one product over HTTP, each with a request id."""

    def __init__(self, product_id: str, host: str) -> None:
        def make(name: str) -> bytes:
            purchase = make_purchase(product_id, name, request_ids=True)
            body = msgspec.json.encode(
                {
                    "request_id": purchase.request_id,
                    "user_id": purchase.user_id,
                    "item_id": purchase.product_id,
                    "quantity": purchase.quantity,
                }
            )
            return post("/api/purchase", host, body)

        super().__init__(make)


def post(target: str, host: str, body: bytes = b"") -> bytes:
    """Return a POST request; a body is JSON."""
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nContent-Length: {len(body)}\r\n{kind}"
    return f"{head}Accept-Encoding: gzip\r\n\r\n".encode() + body


class Heads:
    """Reads heads of answers, and knows again those that it has read."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, raw: bytes) -> Head:
        """Return what a head says, which is without its empty line; raises ValueError if it does not tell a length."""
        return self._known.get(raw) or self._read(raw)

    def _read(self, raw: bytes) -> Head:
        lines = raw.lower().split(b"\r\n")
        status = lines[0].split(b" ", 2)[1]
        sizes = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        if len(status) != 3 or len(sizes) != 1:
            raise ValueError(f"not an answer that can be counted: {raw!r}")
        if len(self._known) >= _HEAD_COUNT_MAX:  # each second has a date of its own
            self._known.clear()
        head = self._known[raw] = Head(status, sizes[0], min(sizes[0], _KEY_SIZE))
        return head


_heads = Heads()


class HttpBuyer(Buyer):
    """One client."""

    __slots__ = ()

    def _parse(self, data: bytes) -> int:
        """Count the answers in a segment by kind, keep an incomplete one, return how many there were."""
        usual, find = self._tally.usual, _heads.find
        position, size, count = 0, len(data), 0
        while position < size:
            head_end = data.find(HEAD_END, position)
            if head_end < 0:
                break
            status, body_size, key_size = find(data[position:head_end])
            body_at = head_end + len(HEAD_END)
            end = body_at + body_size
            if end > size:
                break
            try:
                usual[status + data[body_at : body_at + key_size]] += 1
            except KeyError:
                self._tally.add(kind_of(status, data[body_at:end]))
            count += 1
            position = end
        self._kept = data[position:]
        return count


class _Told(msgspec.Struct, frozen=True, gc=False):
    message: str = ""
    detail: str = ""


_decode = msgspec.json.Decoder(_Told).decode


def kind_of(status: bytes, body: bytes) -> str:
    """Return what an unusual answer is counted as: its status, and what it says."""
    try:
        told = _decode(body)
    except ValueError:
        return f"{status.decode()}: UNREADABLE"
    return f"{status.decode()}: {told.message or told.detail}"
