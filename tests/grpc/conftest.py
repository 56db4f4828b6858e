"""A server with a gRPC door for the tests of a module, and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from flashsale.grpc.orders_pb2_grpc import OrderServiceStub
from flashsale.launch import ServerProcess
from tests.http.conftest import log_path, open_sale, operate

__all__ = ["log_path", "open_sale", "operate"]

PATIENCE_S = 30.0  # for what is right to come on a busy machine; no promise is measured with it


@pytest.fixture(scope="module")
def server(module_home: Path, log_path: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """A server for all the tests of a module that do not hurt it; it has nothing to complain of."""
    flags = ["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--http", "off", "--home", str(module_home)]
    with log_path.open("ab") as log, ServerProcess(flags, environment=environment, log=log.fileno()) as server:
        yield server
    said = log_path.read_text()
    assert "Traceback" not in said, said
    assert "ERROR" not in said, said


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def orders(channel: grpc.Channel) -> OrderServiceStub:
    """Its OrderService."""
    return OrderServiceStub(channel)
