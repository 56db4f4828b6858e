"""`/openapi.json`: every operation of the HTTP door, as OpenAPI 3.1 has it, from one table."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from flashsale.domain.answers import Cancelled, Held, ProductStatus, Success
from flashsale.domain.bounds import (
    ID_SIZE_MAX,
    ITEMS_MAX,
    REQUEST_ID_SIZE_MAX,
    STOCK_MAX,
    USER_ID_SIZE_MAX,
    Quantity,
    RequestId,
)
from flashsale.domain.ids import TOKEN_LENGTH
from flashsale.http.current import Item, Stats
from flashsale.http.current import Told as CurrentTold
from flashsale.http.health import Healthy
from flashsale.http.operator import ResetDone
from flashsale.http.orders import Told as OrderTold
from flashsale.http.products import ExtendBody, HoldBody, PurchaseBody

_TEXT = {"type": "string"}
_PROBLEM = "Problem"


class Order(Struct):
    """The body of `/api/purchase`; `item_id` is the product."""

    request_id: RequestId
    user_id: Annotated[str, Meta(min_length=1, max_length=USER_ID_SIZE_MAX)]
    item_id: Annotated[str, Meta(min_length=1)]
    quantity: Quantity


class Operation(Struct, frozen=True, kw_only=True):
    """What can be done at a URL."""

    method: str
    path: str
    """As OpenAPI writes it."""
    summary: str
    body: type | None = None
    required: bool = True
    """Whether there must be a body."""
    parameters: Sequence[Mapping[str, Any]] = ()
    answers: Mapping[int, type | str] = {}
    """By status: JSON of this type, or text of this content type."""
    problems: Sequence[int] = ()
    """Statuses that come with a problem."""
    refusals: Sequence[int] = ()
    """Statuses that come with the shape of the answer."""
    secured: bool = False


def _path(name: str, schema: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": what}


def _query(name: str, schema: Mapping[str, Any], what: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": what}


_PRODUCT = _path("product_id", {**_TEXT, "minLength": 1, "maxLength": ID_SIZE_MAX}, "The product, percent-encoded.")
_HOLD_CODE = {**_TEXT, "pattern": rf"^[A-Za-z0-9_-]{{{TOKEN_LENGTH}}}\..+$"}
_CODE = _path("code", _HOLD_CODE, "The code of the hold, percent-encoded.")
_NUMBER = _path("number", {"type": "integer", "minimum": 1, "maximum": ITEMS_MAX}, "Of the item.")
_SCHEDULE = _query("schedule", _TEXT, "Which schedule's sale; any when absent.")
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {**_TEXT, "minLength": 1, "maxLength": REQUEST_ID_SIZE_MAX},
    "description": "The request id: repeated with it, the request has no second effect and gets its first answer.",
}
_USER = {**_TEXT, "minLength": 1, "maxLength": USER_ID_SIZE_MAX}
_CURSOR = (
    _query("after_version", {"type": "integer", "minimum": 0, "maximum": STOCK_MAX}, "Begin behind this version."),
    _query("epoch", {**_TEXT, "maxLength": 64}, "The epoch that it belongs to."),
)

_STORE = (503, 504)
"""What may come of whatever asks the store."""
_V1 = (400, 404, 409, 410, 413, 415, 429, *_STORE)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/v1/products/{product_id}/purchases",
        summary="Buy at once",
        parameters=(_PRODUCT, _KEY),
        body=PurchaseBody,
        answers={201: Success},
        problems=_V1,
    ),
    Operation(
        method="POST",
        path="/v1/products/{product_id}/holds",
        summary="Take units out of stock for a while",
        parameters=(_PRODUCT, _KEY),
        body=HoldBody,
        answers={201: Held},
        problems=_V1,
    ),
    Operation(
        method="GET",
        path="/v1/products/{product_id}",
        summary="What is left, sold and held",
        parameters=(_PRODUCT,),
        answers={200: ProductStatus},
        problems=(400, 404, 429, *_STORE),
    ),
    Operation(
        method="GET",
        path="/v1/products/{product_id}/events",
        summary="Follow a sale: server-sent events",
        parameters=(_PRODUCT, *_CURSOR),
        answers={200: "text/event-stream"},
        problems=(400, 404, 429, *_STORE),
    ),
    Operation(
        method="POST",
        path="/v1/holds/{code}/confirm",
        summary="Buy what is held",
        parameters=(_CODE, _KEY),
        answers={200: Success},
        problems=_V1,
    ),
    Operation(
        method="PATCH",
        path="/v1/holds/{code}",
        summary="Hold on for longer",
        parameters=(_CODE,),
        body=ExtendBody,
        required=False,
        answers={200: Held},
        problems=_V1,
    ),
    Operation(
        method="DELETE",
        path="/v1/holds/{code}",
        summary="Give back what is held",
        parameters=(_CODE,),
        answers={200: Cancelled},
        problems=_V1,
    ),
    Operation(
        method="POST",
        path="/api/purchase",
        summary="Buy at once, in one body",
        body=Order,
        answers={200: OrderTold},
        refusals=(400, 404, 409, 410, 429, 500, 503),
        problems=(413, 415),
    ),
    Operation(
        method="POST",
        path="/checkout",
        summary="Hold an item of the current recurring sale",
        parameters=(
            _query("user_id", _USER, "For whom.", required=True),
            _query("id", {"type": "integer", "minimum": 1, "maximum": ITEMS_MAX}, "The item.", required=True),
            _SCHEDULE,
            _KEY,
        ),
        answers={200: CurrentTold},
        refusals=(400, 404, 409, 410, 429, *_STORE),
        problems=(400, 429),
    ),
    Operation(
        method="POST",
        path="/purchase",
        summary="Buy what is held there",
        parameters=(_query("code", _HOLD_CODE, "From the checkout.", required=True),),
        answers={200: CurrentTold},
        refusals=(400, 409, 429, *_STORE),
        problems=(400, 429),
    ),
    Operation(
        method="GET",
        path="/stats",
        summary="How far the current recurring sale is",
        parameters=(_SCHEDULE,),
        answers={200: Stats},
        refusals=(404, 429, *_STORE),
        problems=(400,),
    ),
    Operation(
        method="GET",
        path="/items/{number}",
        summary="An item of the current recurring sale",
        parameters=(_NUMBER, _SCHEDULE),
        answers={200: Item},
        refusals=(404,),
        problems=(400, 404),
    ),
    Operation(
        method="GET",
        path="/items/{number}.svg",
        summary="Its picture",
        parameters=(_NUMBER, _SCHEDULE),
        answers={200: "image/svg+xml"},
        refusals=(404,),
        problems=(400, 404),
    ),
    Operation(
        method="GET",
        path="/stream",
        summary="Follow all sales, or one: server-sent events",
        parameters=(_query("product_id", {**_TEXT, "minLength": 1}, "Of this product alone."),),
        answers={200: "text/event-stream"},
        problems=(400, 404, 429, *_STORE),
    ),
    Operation(
        method="POST",
        path="/reset",
        summary="Open a sale anew: for the operator",
        parameters=(_query("product_id", {**_TEXT, "minLength": 1}, "Which; the only one when absent."),),
        answers={200: ResetDone},
        problems=(400, 401, 403, 404, 409, *_STORE),
        secured=True,
    ),
    Operation(method="GET", path="/health", summary="Whether it can sell", answers={200: Healthy}, refusals=(503,)),
    Operation(method="GET", path="/livez", summary="Whether it lives", answers={200: dict[str, str]}),
    Operation(
        method="GET",
        path="/readyz",
        summary="Whether to send buyers here",
        answers={200: dict[str, str]},
        problems=(503,),
    ),
)


def make_document(version: str) -> bytes:
    """Return the document as JSON.

    Args:
        version: of the package.
    """
    kinds = {kind for it in OPERATIONS for kind in (*it.answers.values(), it.body) if isinstance(kind, type)}
    structs = sorted((kind for kind in kinds if issubclass(kind, Struct)), key=lambda kind: kind.__name__)
    references, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    schema_of: dict[Any, Any] = dict(zip(structs, references, strict=True))
    schemas[_PROBLEM] = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT},
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "flashsale", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"operator": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _describe(operation: Operation, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        responses[str(status)] = {"description": "Done", "content": _content(kind, schema_of)}
    shape = next(iter(operation.answers.values()))
    shape = CurrentTold if shape in {Stats, Item} or isinstance(shape, str) else shape
    for status in sorted({*operation.refusals, *operation.problems}):
        content: dict[str, Any] = {}
        if status in operation.refusals:
            content |= _content(shape, schema_of)
        if status in operation.problems:
            content["application/problem+json"] = {"schema": {"$ref": f"#/components/schemas/{_PROBLEM}"}}
        responses[str(status)] = {"description": "Refused", "content": content}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        described["requestBody"] = {"required": operation.required, "content": _content(operation.body, schema_of)}
    if operation.secured:
        described["security"] = [{"operator": []}, {}]
    return described


def _content(kind: type | str, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": _TEXT}}
    return {"application/json": {"schema": schema_of.get(kind) or msgspec.json.schema(kind)}}
