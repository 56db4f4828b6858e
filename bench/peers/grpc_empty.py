"""The ceiling of gRPC: grpc.aio with the same messages, whose Purchase does nothing, as generated code serves it.

python -m bench.peers.grpc_empty
"""

import socket
from typing import Any

import grpc
import uvloop

from bench.peers.life import live
from flashsale.grpc.orders_pb2 import PurchaseRequest, PurchaseResponse
from flashsale.grpc.orders_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server


class Empty(OrderServiceServicer):
    """Answers at once."""

    async def Purchase(self, request: PurchaseRequest, context: Any) -> PurchaseResponse:  # noqa: N802 - its name there
        """Answer."""
        return PurchaseResponse()


_servers: list[Any] = []  # one that nobody refers to ends


async def _start(listening: socket.socket) -> None:
    server = grpc.aio.server()
    add_OrderServiceServicer_to_server(Empty(), server)  # type: ignore[no-untyped-call]
    host, port = listening.getsockname()
    listening.close()  # gRPC makes one of its own
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    _servers.append(server)


if __name__ == "__main__":
    uvloop.run(live(_start, store="none"))
