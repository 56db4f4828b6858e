"""A server for the tests of a module, and clients of its HTTP door."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashsale.domain.sale import PLAIN, Terms
from flashsale.launch import ServerProcess
from tests.http.client import Http, operate_in

TOKEN = "open-sesame"


@pytest.fixture(scope="module")
def log_path(module_home: Path) -> Path:
    """What the server of a module writes to its stderr."""
    return module_home / "server.log"


@pytest.fixture(scope="module")
def server(module_home: Path, log_path: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    """A server for all the tests of a module that do not hurt it; it has nothing to complain of."""
    flags = ["--listen", "127.0.0.1:0", "--home", str(module_home)]
    settings = environment | {"FLASHSALE_OPERATOR_TOKEN": TOKEN}
    with log_path.open("ab") as log, ServerProcess(flags, environment=settings, log=log.fileno()) as server:
        yield server
    said = log_path.read_text()
    assert "Traceback" not in said
    assert "ERROR" not in said
    assert TOKEN not in said


@pytest.fixture
def http_client(server: ServerProcess) -> Iterator[Http]:
    """A client of that server."""
    client = Http(server.http_port)
    yield client
    client.close()


@pytest.fixture
def operate(module_home: Path) -> Callable[..., Any]:
    """Have the operator do something: operate(lambda admin: admin.status("p"))."""
    return partial(operate_in, module_home)


@pytest.fixture
def open_sale(operate: Callable[..., Any], server: ServerProcess, product_id: str) -> Callable[..., str]:
    """Open a sale and return its id: open_sale(units, terms)."""

    def open_it(stock: int, terms: Terms = PLAIN, *, name: str = product_id) -> str:
        operate(lambda admin: admin.init(name, stock, terms, force=True))
        return name

    return open_it
