"""Frames and message bodies: bytes to values and back. The document is protocol.md.

A frame is `type (1 byte) | length (4 bytes, big-endian, of the payload) | payload`. `FrameReader` is total: whatever
the bytes and however they are cut, it yields the same frames and then at most one error.
"""

import re
import sys
from enum import IntEnum
from struct import Struct
from typing import TypeAlias

import msgspec

from flashsale.domain.answers import Answer
from flashsale.domain.bounds import ID_SIZE_MAX, REQUEST_ID_SIZE_MAX, USER_ID_SIZE_MAX
from flashsale.domain.checks import check, check_purchase
from flashsale.domain.events import ChangeEvent, Event, FeedEvent, PurchaseEvent, SoldOutEvent
from flashsale.domain.requests import BuyerRequest, Cancel, Confirm, Extend, GetStatus, Purchase, Reserve, Subscribe

PAYLOAD_SIZE_DEFAULT = 64 * 1024
PAYLOAD_SIZE_MAX = 1024 * 1024
"""The largest payload a server may be configured to take, in bytes."""

_HEADER = Struct(">BI")
HEADER_SIZE = _HEADER.size
_unpack_header = _HEADER.unpack_from
_pack_header = _HEADER.pack


class MessageType(IntEnum):
    """The first byte of a frame. Values below 0x20, so that no HTTP method can be mistaken for one."""

    NOTICE = 0x00
    PURCHASE = 0x01
    RESERVE = 0x02
    CONFIRM = 0x03
    CANCEL = 0x04
    STATUS = 0x05
    PING = 0x06
    EXTEND = 0x07
    SUBSCRIBE = 0x10
    EVENT = 0x11


UNKNOWN_MESSAGE_TYPE = "unknown message type"
INVALID_JSON = "invalid json"
PAYLOAD_TOO_LARGE = "payload too large"
SUBSCRIBER_TOO_SLOW = "subscriber too slow"


Frame: TypeAlias = tuple[int, bytes]
"""One message without its header: its type and its payload."""


class FrameReader:
    """Cuts a stream of bytes into frames, holding back an incomplete one.

    `payload_size_max` is in bytes. A frame that announces more sets `oversized` to its type, after the good frames
    before it; nothing is kept for it, and the reader takes no more bytes.
    """

    __slots__ = ("_kept", "_needed", "_payload_size_max", "holds_back", "oversized")

    def __init__(self, payload_size_max: int = PAYLOAD_SIZE_DEFAULT) -> None:
        self._payload_size_max = payload_size_max
        self._kept: bytearray | None = None
        self._needed = 0
        self.oversized: int | None = None
        self.holds_back = False
        """A whole frame waits for the next call, because the last one was to give out no more."""

    @property
    def incomplete(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return self._kept is not None and not self.holds_back

    def feed(self, data: bytes = b"", *, count_max: int = sys.maxsize, size_max: int = sys.maxsize) -> list[Frame]:
        """Take the next bytes and return the frames that they complete, in their order.

        Args:
            data: the bytes; none ask for what was held back.
            count_max: so many frames at most.
            size_max: after so many bytes no further frame.
        """
        if self.oversized is not None:
            return []
        if self._kept is not None:
            self._kept += data
            if len(self._kept) < self._needed:
                return []  # asked once per segment, so that a frame sent byte by byte costs no copying
            data = bytes(self._kept)
            self._kept = None
            self.holds_back = False
        frames: list[Frame] = []
        position, size = 0, len(data)
        needed = HEADER_SIZE
        while size - position >= HEADER_SIZE:
            message_type, length = _unpack_header(data, position)
            if length > self._payload_size_max:
                self.oversized = message_type
                return frames
            end = position + HEADER_SIZE + length
            if end > size:
                needed = HEADER_SIZE + length
                break
            if len(frames) >= count_max or position >= size_max:
                self.holds_back = True
                break
            frames.append((message_type, data[position + HEADER_SIZE : end]))
            position = end
        if position < size:
            self._needed = needed
            self._kept = bytearray(data[position:])
        return frames


def encode_frame(message_type: int, payload: bytes) -> bytes:
    """Return the payload behind its header."""
    return _pack_header(message_type, len(payload)) + payload


ClientRequest: TypeAlias = BuyerRequest | Subscribe

# The one table of requests: what a type carries. PING carries bytes and is answered by the connection itself.
_REQUESTS: dict[MessageType, type[ClientRequest]] = {
    MessageType.PURCHASE: Purchase,
    MessageType.RESERVE: Reserve,
    MessageType.CONFIRM: Confirm,
    MessageType.CANCEL: Cancel,
    MessageType.STATUS: GetStatus,
    MessageType.EXTEND: Extend,
    MessageType.SUBSCRIBE: Subscribe,
}
_REQUEST_DECODERS: dict[int, msgspec.json.Decoder[ClientRequest]] = {
    number: msgspec.json.Decoder(kind) for number, kind in _REQUESTS.items()
}
_REQUEST_TYPES = {kind: number for number, kind in _REQUESTS.items()}
_ANSWER_DECODER: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_EVENT_DECODER: msgspec.json.Decoder[PurchaseEvent | SoldOutEvent] = msgspec.json.Decoder(PurchaseEvent | SoldOutEvent)
_CHANGE_DECODER: msgspec.json.Decoder[ChangeEvent] = msgspec.json.Decoder(ChangeEvent)
_FEED_EVENT_DECODER: msgspec.json.Decoder[FeedEvent] = msgspec.json.Decoder(FeedEvent)
_encode_json = msgspec.json.Encoder().encode
_BOUNDED = re.compile(r"`\$\.(user_id|quantity|request_id|item_id|hold_seconds|after_version|epoch)`$")
_SIZE_FITTING = min(ID_SIZE_MAX, USER_ID_SIZE_MAX, REQUEST_ID_SIZE_MAX)
"""In a payload of so many bytes no id is too long: JSON never says a character in fewer bytes than UTF-8.
Nor is there a NUL in an id when nothing is escaped by its number."""


def decode_request(frame: Frame) -> ClientRequest | str:
    """Return the request that a frame carries, or the error text that answers it."""
    message_type, payload = frame
    decoder = _REQUEST_DECODERS.get(message_type)
    if decoder is None:
        return UNKNOWN_MESSAGE_TYPE
    try:
        if not payload.isascii():
            payload.decode()  # msgspec skips unknown fields without looking whether they are UTF-8
        request = decoder.decode(payload)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors; deep nesting is the other
        bounded = _BOUNDED.search(str(error))
        return f"invalid {bounded[1]}" if bounded else INVALID_JSON
    if type(request) is Purchase or type(request) is Reserve:
        if request.product_id and request.user_id and len(payload) <= _SIZE_FITTING and b"\\u" not in payload:
            return request
        return check_purchase(request) or request
    return check(request) or request


def encode_request(request: ClientRequest) -> bytes:
    """Return the frame that asks for this."""
    return encode_frame(_REQUEST_TYPES[type(request)], _encode_json(request))


def encode_answer(message_type: int, answer: Answer) -> bytes:
    """Return the frame that answers a request of that type."""
    payload = _encode_json(answer)
    return _pack_header(message_type, len(payload)) + payload


def decode_answer(payload: bytes) -> Answer:
    """Return the answer that a payload carries; raises msgspec.DecodeError (a ValueError) when it is none."""
    return _ANSWER_DECODER.decode(payload)


def decode_event(payload: bytes) -> Event:
    """Return the sale event that a published message carries; raises msgspec.DecodeError when it is none."""
    try:
        return _EVENT_DECODER.decode(payload)
    except msgspec.ValidationError:
        return _CHANGE_DECODER.decode(payload)


def encode_feed_event(event: FeedEvent) -> bytes:
    """Return the frame of type EVENT that tells a subscriber of this."""
    return encode_frame(MessageType.EVENT, _encode_json(event))


def decode_feed_event(payload: bytes) -> FeedEvent:
    """Return the event that a frame of type EVENT carries; raises msgspec.DecodeError when it is none."""
    return _FEED_EVENT_DECODER.decode(payload)
