"""tools/haproxy.cfg: a real HAProxy with it, in front of two real servers instead of those that Docker's DNS knows."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import yaml
from msgspec import Struct

from flashsale.client import Client
from flashsale.config import Config
from flashsale.domain.answers import SoldOut, Success
from flashsale.errors import AnswerTimeoutError, ConnectionLostError
from flashsale.grpc.orders_pb2 import PurchaseRequest
from flashsale.grpc.orders_pb2_grpc import OrderServiceStub
from flashsale.launch import ServerProcess
from flashsale.store.admin import Admin
from flashsale.store.embedded import EmbeddedStore

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "tools" / "haproxy.cfg"
PATIENCE_S = 30.0
TEMPLATE = re.compile(r"^  server-template server 1-16 server:(\d+) resolvers docker init-addr none$", re.MULTILINE)
RESOLVERS = re.compile(r"^resolvers docker\n(?:  .*\n)+", re.MULTILINE)


@pytest.fixture(scope="module")
def haproxy() -> str:
    """The program."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if found is None and os.environ.get("FLASHSALE_REQUIRE_BALANCER"):
        pytest.fail("haproxy is missing, and FLASHSALE_REQUIRE_BALANCER says that it must be there")
    if found is None:
        pytest.skip("needs haproxy, which is not installed here")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Balanced(Struct, frozen=True):
    """Two servers, and the balancer's port."""

    servers: list[ServerProcess]
    port: int
    grpc_port: int
    store_url: str
    start_server: Callable[[int], ServerProcess]
    """Starts one at that port."""

    def restart(self, number: int) -> None:
        """Start one again that is gone."""
        self.servers[number] = self.start_server(self.servers[number].port)


@pytest.fixture(scope="module")
def balanced(
    haproxy: str, embedded: EmbeddedStore, environment: dict[str, str], module_home: Path
) -> Iterator[Balanced]:
    """Run them all; a server that does not answer is found out ten times as fast."""
    with ExitStack() as stack:
        home = module_home
        log = stack.enter_context((home / "log").open("wb"))

        def start_server(port: int) -> ServerProcess:
            flags = ["--listen", f"127.0.0.1:{port}", "--grpc", "127.0.0.1:0", "--redis", embedded.url]
            return stack.enter_context(ServerProcess(flags, environment=environment, log=log.fileno()))

        servers = [start_server(0), start_server(0)]
        ports = {"8080": free_port(), "50051": free_port()}
        text = CONFIG.read_text()

        def server_lines(template: re.Match[str]) -> str:
            of_grpc = template[1] == "50051"
            where = [(server.grpc_port if of_grpc else server.port, server.port) for server in servers]
            return "\n".join(f"  server server{port} 127.0.0.1:{port} port {asked}" for port, asked in where)

        for pattern, there_are, instead in (
            (TEMPLATE, 2, server_lines),
            (RESOLVERS, 1, ""),
            (re.compile(r"bind :(\d+)"), 2, lambda found: f"bind 127.0.0.1:{ports[found[1]]}"),
            (re.compile(r"check inter 1s fall 3 rise 1 port 8080"), 1, "check inter 100ms fall 3 rise 1"),
            (re.compile(r"timeout check 2s"), 1, "timeout check 200ms"),
            (re.compile(r"maxconn \d+"), 1, "maxconn 1000"),  # it does not start without descriptors for all
        ):
            text, count = pattern.subn(instead, text)
            assert count == there_are, pattern
        (home / "haproxy.cfg").write_text(text)
        process = subprocess.Popen([haproxy, "-db", "-f", str(home / "haproxy.cfg")], stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: pings(ports["8080"]))
        yield Balanced(servers, ports["8080"], ports["50051"], embedded.url, start_server)


def pings(port: int) -> bool:
    """Whether somebody answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.sendall(bytes.fromhex("0600000000"))
            return link.recv(5) == bytes.fromhex("0600000000")
    except OSError:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_the_file_is_valid_as_it_is(haproxy: str) -> None:
    checked = subprocess.run([haproxy, "-c", "-f", str(CONFIG)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_it_fits_the_file_that_uses_it() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    text = CONFIG.read_text()
    assert TEMPLATE.findall(text) == ["8080", "50051"]
    assert [port.rpartition(":")[2] for port in services["balancer"]["ports"]] == re.findall(r"bind :(\d+)", text)
    maxconn = int(re.search(r"maxconn (\d+)", text)[1])  # type: ignore[index]
    assert services["balancer"]["ulimits"]["nofile"] > 2 * maxconn
    idle_s = int(re.search(r"timeout client (\d+)s", text)[1])  # type: ignore[index]
    assert idle_s > Config().idle_timeout_s, "the servers part from silent clients first"


async def test_buyers_go_on_when_a_server_is_killed(balanced: Balanced, product_id: str) -> None:
    async with Admin(balanced.store_url) as admin:
        await admin.init(product_id, 300)
    clients = [Client("127.0.0.1", balanced.port) for _ in range(8)]
    connected, killed = asyncio.Barrier(9), asyncio.Event()
    lost = 0

    async def buy(number: int) -> list[object]:
        """Buy until it is sold out, each unit with one request id however often it takes."""
        nonlocal lost
        answers: list[object] = []
        async with clients[number] as client:
            await client.status(product_id)
            await connected.wait()
            while not isinstance(answers[-1] if answers else None, SoldOut):
                try:
                    while len(answers) == 5 and not killed.is_set():
                        await client.status(product_id)  # everybody waits for an answer when it happens
                    request_id = f"{number}-{len(answers)}"
                    answers.append(await client.purchase(product_id, f"user_{number}", request_id=request_id))
                except (ConnectionLostError, AnswerTimeoutError):
                    lost += 1
                    await asyncio.sleep(0.02)
        return answers

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        buying = [group.create_task(buy(number)) for number in range(8)]
        await connected.wait()
        await asyncio.to_thread(balanced.servers[0].kill)
        killed.set()
    sold = [answer for task in buying for answer in task.result() if isinstance(answer, Success)]
    assert len(sold) == len({answer.order_id for answer in sold}) == 300
    assert lost >= 3, "half of them were at the server that is gone"
    balanced.restart(0)


async def test_a_server_that_answers_nothing_is_passed_over_and_its_clients_are_cut(
    balanced: Balanced, product_id: str
) -> None:
    async with Admin(balanced.store_url) as admin:
        await admin.init(product_id, 300)
    os.kill(balanced.servers[1].pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            losses = await asyncio.gather(*(buy_once(balanced.port, product_id, f"u{number}") for number in range(6)))
    finally:
        os.kill(balanced.servers[1].pid, signal.SIGCONT)
    assert sum(losses) >= 2


async def buy_once(port: int, product_id: str, user_id: str) -> int:
    """Buy one unit; return how many attempts were cut."""
    lost_count = 0
    async with Client("127.0.0.1", port) as client:
        while True:
            try:
                assert isinstance(await client.purchase(product_id, user_id, request_id=user_id), Success)
            except ConnectionLostError:
                lost_count += 1
                await asyncio.sleep(0.02)
            else:
                return lost_count


async def test_http_goes_the_same_way(balanced: Balanced, product_id: str) -> None:
    async with Admin(balanced.store_url) as admin:
        await admin.init(product_id, 4)
    for number in range(4):
        body = json.dumps({"request_id": f"r{number}", "user_id": "ann", "item_id": product_id, "quantity": 1})
        link = http.client.HTTPConnection("127.0.0.1", balanced.port, timeout=PATIENCE_S)
        link.request("POST", "/api/purchase", body, {"Content-Type": "application/json"})
        answer = link.getresponse()
        assert (answer.status, json.loads(answer.read())["success"]) == (200, True)
        link.close()


async def test_grpc_goes_through_it_to_a_port_of_its_own(balanced: Balanced, product_id: str) -> None:
    async with Admin(balanced.store_url) as admin:
        await admin.init(product_id, 4)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{balanced.grpc_port}") as channel:
        request = PurchaseRequest(request_id="r", user_id="ann", item_id=product_id, quantity=1)
        answer = await OrderServiceStub(channel).Purchase(request, timeout=PATIENCE_S)
    assert (answer.success, answer.remaining) == (True, 3)
