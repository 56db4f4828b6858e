"""The ceiling of gRPC: grpc.aio with the same messages, and one method, which does nothing.

    python -m bench.peers.grpc_empty

Its handler is not registered by its path, as generated code does it: grpc.aio waits for each method so registered by
itself, which takes up to a third more CPU for a service of seven.
"""

import socket
from typing import Any

import grpc
import uvloop

from bench.peers.life import live
from flashsale.grpc.orders_pb2 import PurchaseRequest, PurchaseResponse


async def _purchase(request: PurchaseRequest, context: Any) -> PurchaseResponse:
    return PurchaseResponse()


_servers: list[Any] = []  # one that nobody refers to ends


async def _start(listening: socket.socket) -> None:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        _purchase,
        request_deserializer=PurchaseRequest.FromString,
        response_serializer=PurchaseResponse.SerializeToString,
    )
    methods = grpc.method_handlers_generic_handler("flashsale.v1.OrderService", {"Purchase": handler})
    server.add_generic_rpc_handlers((methods,))
    host, port = listening.getsockname()
    listening.close()  # gRPC makes one of its own
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    _servers.append(server)


if __name__ == "__main__":
    uvloop.run(live(_start, store="none"))
