from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PurchaseRequest(_message.Message):
    __slots__ = ("request_id", "user_id", "item_id", "quantity", "item_number")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ITEM_NUMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    item_id: str
    quantity: int
    item_number: int
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., quantity: _Optional[int] = ..., item_number: _Optional[int] = ...) -> None: ...

class PurchaseResponse(_message.Message):
    __slots__ = ("success", "message", "order_id", "remaining", "version", "item_number", "duplicate")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEM_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    order_id: str
    remaining: int
    version: int
    item_number: int
    duplicate: bool
    def __init__(self, success: _Optional[bool] = ..., message: _Optional[str] = ..., order_id: _Optional[str] = ..., remaining: _Optional[int] = ..., version: _Optional[int] = ..., item_number: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("request_id", "user_id", "product_id", "quantity", "item_number", "hold_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ITEM_NUMBER_FIELD_NUMBER: _ClassVar[int]
    HOLD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    product_id: str
    quantity: int
    item_number: int
    hold_seconds: int
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., product_id: _Optional[str] = ..., quantity: _Optional[int] = ..., item_number: _Optional[int] = ..., hold_seconds: _Optional[int] = ...) -> None: ...

class HoldResponse(_message.Message):
    __slots__ = ("code", "expires_at", "remaining", "version", "item_number", "duplicate")
    CODE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEM_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    code: str
    expires_at: int
    remaining: int
    version: int
    item_number: int
    duplicate: bool
    def __init__(self, code: _Optional[str] = ..., expires_at: _Optional[int] = ..., remaining: _Optional[int] = ..., version: _Optional[int] = ..., item_number: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class ConfirmRequest(_message.Message):
    __slots__ = ("code", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    request_id: str
    def __init__(self, code: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    def __init__(self, code: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("remaining", "version", "duplicate")
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    version: int
    duplicate: bool
    def __init__(self, remaining: _Optional[int] = ..., version: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class ExtendRequest(_message.Message):
    __slots__ = ("code", "hold_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    HOLD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: str
    hold_seconds: int
    def __init__(self, code: _Optional[str] = ..., hold_seconds: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("product_id",)
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    def __init__(self, product_id: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("remaining", "sold", "held", "state", "version")
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    SOLD_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    sold: int
    held: int
    state: str
    version: int
    def __init__(self, remaining: _Optional[int] = ..., sold: _Optional[int] = ..., held: _Optional[int] = ..., state: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("product_id", "after_version", "epoch")
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    product_id: str
    after_version: int
    epoch: str
    def __init__(self, product_id: _Optional[str] = ..., after_version: _Optional[int] = ..., epoch: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[SaleEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[SaleEvent, _Mapping]]] = ...) -> None: ...

class SaleEvent(_message.Message):
    __slots__ = ("event", "product_id", "version", "timestamp", "remaining", "buyer", "quantity", "item_number", "order_id", "after_version", "epoch")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    BUYER_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ITEM_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    event: str
    product_id: str
    version: int
    timestamp: int
    remaining: int
    buyer: str
    quantity: int
    item_number: int
    order_id: str
    after_version: int
    epoch: str
    def __init__(self, event: _Optional[str] = ..., product_id: _Optional[str] = ..., version: _Optional[int] = ..., timestamp: _Optional[int] = ..., remaining: _Optional[int] = ..., buyer: _Optional[str] = ..., quantity: _Optional[int] = ..., item_number: _Optional[int] = ..., order_id: _Optional[str] = ..., after_version: _Optional[int] = ..., epoch: _Optional[str] = ...) -> None: ...
