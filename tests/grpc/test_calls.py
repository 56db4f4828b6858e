"""Every call of OrderService and every outcome that a running server has, over a real connection."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from flashsale.domain.requests import Close, Pause
from flashsale.domain.sale import Terms
from flashsale.grpc.orders_pb2 import (
    CancelRequest,
    CancelResponse,
    ConfirmRequest,
    ExtendRequest,
    PurchaseRequest,
    PurchaseResponse,
    ReserveRequest,
    StatusRequest,
    StatusResponse,
    WatchRequest,
)
from tests.grpc.client import PATIENCE_S, refused

LATER = 4_000_000_000


def purchase(product_id, request_id="r", user_id="ann", **more):
    return PurchaseRequest(item_id=product_id, request_id=request_id, user_id=user_id, **{"quantity": 1} | more)


def reserve(product_id, user_id="ann", **more):
    return ReserveRequest(product_id=product_id, user_id=user_id, **{"quantity": 1} | more)


# Fulfilled


def test_a_purchase_is_an_order(orders, open_sale, operate):
    product_id = open_sale(10)
    order = orders.Purchase(purchase(product_id, quantity=3), timeout=PATIENCE_S)
    assert order.order_id.endswith(f"-{product_id}")
    order.order_id = ""
    assert order == PurchaseResponse(success=True, message="order placed successfully", remaining=7, version=2)
    assert operate(lambda admin: admin.status(product_id)).sold == 3


def test_a_client_of_another_package_buys_too(channel, open_sale):
    """The older service's proto file has one of its own."""
    product_id = open_sale(10)
    for number, path in enumerate(["/order.OrderService/Purchase", "/OrderService/Purchase"]):
        call = channel.unary_unary(path, PurchaseRequest.SerializeToString, PurchaseResponse.FromString)
        order = call(purchase(product_id, f"r{number}"), timeout=PATIENCE_S)
        assert (order.success, order.remaining) == (True, 9 - number)


def test_a_request_id_that_comes_again_tells_the_first_outcome(orders, open_sale, operate):
    product_id = open_sale(10)
    first = orders.Purchase(purchase(product_id), timeout=PATIENCE_S)
    code, words, metadata = refused(orders.Purchase, purchase(product_id))
    assert (code, words, metadata["reason"]) == ("ALREADY_EXISTS", "duplicate request", "duplicate")
    assert PurchaseResponse.FromString(metadata["first-response-bin"]) == first
    assert operate(lambda admin: admin.status(product_id)).sold == 1


def test_a_hold_is_extended_and_confirmed(orders, open_sale):
    product_id = open_sale(10, Terms(hold_s=600))
    hold = orders.Reserve(reserve(product_id, quantity=2, hold_seconds=60, request_id="h"), timeout=PATIENCE_S)
    assert (hold.remaining, hold.version, hold.duplicate) == (8, 2, False)
    again = orders.Reserve(reserve(product_id, quantity=2, hold_seconds=60, request_id="h"), timeout=PATIENCE_S)
    assert (again.code, again.duplicate) == (hold.code, True)
    extended = orders.Extend(ExtendRequest(code=hold.code, hold_seconds=500), timeout=PATIENCE_S)
    assert extended.expires_at > hold.expires_at + 300
    order = orders.Confirm(ConfirmRequest(code=hold.code, request_id="c"), timeout=PATIENCE_S)
    assert (order.success, order.remaining, order.duplicate) == (True, 8, False)
    again = orders.Confirm(ConfirmRequest(code=hold.code, request_id="c"), timeout=PATIENCE_S)
    assert (again.order_id, again.duplicate) == (order.order_id, True)
    code, _, metadata = refused(orders.Cancel, CancelRequest(code=hold.code))
    assert (code, metadata["reason"]) == ("FAILED_PRECONDITION", "already-confirmed")
    status = orders.Status(StatusRequest(product_id=product_id), timeout=PATIENCE_S)
    assert status == StatusResponse(remaining=8, sold=2, held=0, state="open", version=4)


def test_a_hold_is_cancelled(orders, open_sale):
    product_id = open_sale(10)
    code = orders.Reserve(reserve(product_id), timeout=PATIENCE_S).code
    assert orders.Cancel(CancelRequest(code=code), timeout=PATIENCE_S) == CancelResponse(remaining=10, version=3)
    again = orders.Cancel(CancelRequest(code=code), timeout=PATIENCE_S)
    assert again == CancelResponse(remaining=10, version=3, duplicate=True)
    told = refused(orders.Confirm, ConfirmRequest(code=code))
    assert told == ("FAILED_PRECONDITION", "the hold was cancelled", {"reason": "cancelled"})


def test_a_hold_whose_time_is_over_is_expired(orders, open_sale):
    product_id = open_sale(10, Terms(hold_s=1))
    stream = orders.Watch(WatchRequest(product_id=product_id), timeout=PATIENCE_S)
    next(stream)
    code = orders.Reserve(reserve(product_id), timeout=PATIENCE_S).code
    while next(stream).events[-1].event != "expired":
        pass
    stream.cancel()
    for call, request in (orders.Confirm, ConfirmRequest), (orders.Extend, ExtendRequest):
        told = refused(call, request(code=code))
        assert told == ("FAILED_PRECONDITION", "the hold has expired", {"reason": "expired"})


def test_numbered_items(orders, open_sale):
    product_id = open_sale(3, Terms(numbered=True))
    order = orders.Purchase(purchase(product_id, item_number=2), timeout=PATIENCE_S)
    assert order.item_number == 2
    hold = orders.Reserve(reserve(product_id, item_number=3), timeout=PATIENCE_S)
    assert hold.item_number == 3
    told = refused(orders.Reserve, reserve(product_id, item_number=2))
    assert told == ("FAILED_PRECONDITION", "the item is sold or held", {"reason": "item-taken"})
    told = refused(orders.Purchase, purchase(product_id, "s", item_number=4))
    assert told == ("NOT_FOUND", "item not found", {"reason": "item-not-found"})
    told = refused(orders.Purchase, purchase(product_id, "t", quantity=2))
    assert told == ("INVALID_ARGUMENT", "one numbered item at a time", {"reason": "bad-request"})


# Not fulfilled


def test_sold_out(orders, open_sale):
    product_id = open_sale(2)
    told = refused(orders.Purchase, purchase(product_id, quantity=3))
    assert told == ("RESOURCE_EXHAUSTED", "sold out", {"reason": "sold-out", "remaining": "2"})
    orders.Purchase(purchase(product_id, quantity=2), timeout=PATIENCE_S)
    told = refused(orders.Reserve, reserve(product_id))
    assert told == ("RESOURCE_EXHAUSTED", "sold out", {"reason": "sold-out"})


def test_the_limit_of_a_user(orders, open_sale):
    product_id = open_sale(9, Terms(limit=1))
    orders.Purchase(purchase(product_id), timeout=PATIENCE_S)
    told = refused(orders.Purchase, purchase(product_id, "another"))
    assert told == ("RESOURCE_EXHAUSTED", "user purchase limit exceeded", {"reason": "limit-exceeded"})


def test_a_sale_that_does_not_sell(orders, open_sale, operate, product_id):
    open_sale(9, Terms(opens_at=LATER))
    told = refused(orders.Purchase, purchase(product_id))
    metadata = {"reason": "not-open", "opens-at": str(LATER)}
    assert told == ("FAILED_PRECONDITION", "the sale is not open yet", metadata)
    open_sale(9)
    for change, words in (Pause, "the sale is paused"), (Close, "the sale is closed"):
        operate(lambda admin, change=change: admin.change(change(product_id)))
        told = refused(orders.Purchase, purchase(product_id))
        assert told == ("FAILED_PRECONDITION", words, {"reason": words.split()[-1]})


def test_a_request_id_of_another_request(orders, open_sale):
    product_id = open_sale(9)
    orders.Purchase(purchase(product_id), timeout=PATIENCE_S)
    told = refused(orders.Purchase, purchase(product_id, quantity=2))
    assert told == ("FAILED_PRECONDITION", "request_id belongs to another request", {"reason": "mismatch"})


def test_what_there_is_not(orders):
    for call, request in [
        (orders.Purchase, purchase("nothing")),
        (orders.Reserve, reserve("nothing")),
        (orders.Status, StatusRequest(product_id="nothing")),
    ]:
        assert refused(call, request) == ("NOT_FOUND", "product not found", {"reason": "product-not-found"})
    stream = orders.Watch(WatchRequest(product_id="nothing"), timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError) as error:
        next(stream)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    for call, request in (
        (orders.Confirm, ConfirmRequest),
        (orders.Cancel, CancelRequest),
        (orders.Extend, ExtendRequest),
    ):
        for code in "x", "x" * 22 + ".nothing":
            assert refused(call, request(code=code)) == ("NOT_FOUND", "hold not found", {"reason": "hold-not-found"})


# Health and reflection


def test_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in "", "flashsale.v1.OrderService":
        told = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
    assert refused(health.Check, health_pb2.HealthCheckRequest(service="other"))[0] == "NOT_FOUND"


def test_reflection(channel):
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="flashsale.v1.OrderService"),
    ]
    services, file = reflection.ServerReflectionInfo(iter(asked), timeout=PATIENCE_S)
    assert {service.name for service in services.list_services_response.service} == {
        "flashsale.v1.OrderService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert b"PurchaseRequest" in file.file_descriptor_response.file_descriptor_proto[0]
