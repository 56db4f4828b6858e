"""A server's life: how it starts or says why not, its bounds on clients, its end, and its workers."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from flashsale import config, launch
from flashsale.errors import ConfigError, FlashsaleError
from flashsale.launch import ServerProcess
from flashsale.store import embedded

PURCHASE, PING = 1, 6
BUSY_NOTICE = b'\x00\x00\x00\x00\x11{"status":"BUSY"}'
PATIENCE_S = 30.0
END_S = 10.0  # a server told to end has done so by then
Connect = Callable[..., Any]
StartServer = Callable[..., ServerProcess]
RunServe = Callable[..., "subprocess.CompletedProcess[str]"]
Until = Callable[..., None]


def one_line(result: "subprocess.CompletedProcess[str]", code: int) -> str:
    """Return the one line on stderr of a command that failed with that code and printed nothing else."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


# Start


def test_listening_on_all_interfaces_takes_clients_of_both_families(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server("--listen", ":0")
    with connect(server.port) as client:
        client.ping()
    with suppress(OSError), connect(server.port, "::1") as client:  # a machine without IPv6 has no ::1
        client.ping()


def test_the_line_on_stdout_and_the_log_say_where_it_listens(
    start_server: StartServer, until: Until, home: Path
) -> None:
    server = start_server()
    line = f"Server initialized - Listening on 127.0.0.1:{server.port}, Redis: unix://{home / 'valkey.sock'} (embedded)"
    assert server.store == f"unix://{home / 'valkey.sock'} (embedded)"
    until(lambda: line in (home / "server.log").read_text())


@pytest.mark.parametrize("begun", [b"", b"\x01\x00"])
def test_a_client_that_is_dropped_is_reset(start_server: StartServer, begun: bytes) -> None:
    """So that the kernel keeps nothing for it."""
    server = start_server(FLASHSALE_FRAME_TIMEOUT_S="1")
    with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as client:
        client.sendall(begun)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_port_in_use_is_one_clear_line(start_server: StartServer, run_serve: RunServe, home: Path) -> None:
    for workers_before in ("1", "2"):
        port = start_server("--workers", workers_before).port
        for workers in ("1", "2"):
            result = run_serve("--listen", f"127.0.0.1:{port}", "--workers", workers, "--home", str(home))
            assert one_line(result, 1) == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_two_doors_at_one_address_are_one_clear_line(run_serve: RunServe, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for listen, flag in ("127.0.0.1", "--http"), ("", "--grpc"):
        other = f"127.0.0.1:{port}"
        result = run_serve("--listen", f"{listen}:{port}", flag, other, "--home", str(home))
        assert one_line(result, 1) == f"cannot listen on {other} for {flag}: --listen is there\n"


def test_what_cannot_be_is_refused_in_one_line_before_anything_starts(home: Path, run_serve: RunServe) -> None:
    wrong: list[tuple[int, list[str], dict[str, str]]] = [
        (2, ["--listen", "nonsense"], {}),
        (2, ["--workers", "0"], {}),
        (2, ["--workers", "many"], {}),
        (2, ["--durability", "eternal"], {}),
        (2, ["--no-such-flag"], {}),
        (2, [], {"LISTEN_ADDR": "x:y"}),
        (2, [], {"FLASHSALE_IDLE_TIMEOUT_S": "soon"}),
        (2, [], {"FLASHSALE_PAYLOAD_SIZE_MAX": str(2 * 1024 * 1024)}),
        (1, ["--listen", "192.0.2.1:0"], {}),  # an address of nobody's
        (1, ["--redis", "127.0.0.1:1"], {}),
        (1, ["--redis", "redis://127.0.0.1:1", "--workers", "2"], {}),
        (1, ["--redis", "redis://:secret@127.0.0.1:1/0"], {}),
        (1, ["--home", "/proc/nowhere"], {}),
    ]
    outcomes: list[Any] = [None] * len(wrong)

    def run(number: int) -> None:
        _, arguments, settings = wrong[number]
        listen = [] if "--listen" in arguments or "LISTEN_ADDR" in settings else ["--listen", "127.0.0.1:0"]
        place = [] if "--home" in arguments or "--redis" in arguments else ["--home", str(home / "unused")]
        outcomes[number] = run_serve(*listen, *place, *arguments, **settings)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(wrong))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (code, arguments, settings), result in zip(wrong, outcomes, strict=True):
        line = one_line(result, code)
        assert "Traceback" not in line
        assert "secret" not in line
        assert len(line) > 20, (arguments, settings, line)
    assert not (home / "unused").exists() or not (home / "unused" / "valkey.sock").exists()


@pytest.mark.parametrize("said", ["", "Server initialized"])
def test_a_server_that_hangs_at_its_start_is_given_up_and_ended(said: str) -> None:
    program = f"import os, time; print({said!r}, end='', flush=True); print(os.getpid(), file=sys.stderr, flush=True)"
    ours, theirs = os.pipe()
    try:
        with pytest.raises(FlashsaleError, match=r"the server did not start within 0\.5 s"):
            ServerProcess(
                command=(sys.executable, "-c", f"import sys; {program}; time.sleep(60)"),
                log=theirs,
                start_timeout_s=0.5,
            )
        with pytest.raises(ProcessLookupError):
            os.kill(int(os.read(ours, 100)), 0)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_server_is_given_the_time_that_it_may_need_to_start_and_to_end() -> None:
    config.load_config(environment={"FLASHSALE_DRAIN_TIMEOUT_S": "60"})
    with pytest.raises(ConfigError):
        config.load_config(environment={"FLASHSALE_DRAIN_TIMEOUT_S": "60.1"})
    assert launch.STOP_TIMEOUT_S > 60 + embedded.GATE_TIMEOUT_S + embedded.STOP_TIMEOUT_S
    assert launch.START_TIMEOUT_S > embedded.START_TIMEOUT_S + embedded.GATE_TIMEOUT_S


# A store that keeps less than was promised


def test_a_store_with_weak_persistence_is_refused_and_the_way_out_is_named(
    start_store: Callable[..., int], run_serve: RunServe, start_server: StartServer, connect: Connect
) -> None:
    strong = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    stores = {
        "appendonly no": ["--appendonly", "no", "--save", ""],
        "appendfsync everysec": [*strong[:3], "everysec", "--save", ""],
        "maxmemory-policy allkeys-lru": [*strong, "--maxmemory-policy", "allkeys-lru"],
        "CONFIG GET": [*strong, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config"],
        "(CONFIG GET)": [*strong, "--rename-command", "CONFIG", "SOMETHING"],
    }
    accepted = [(["--durability", "relaxed"], {}), ([], {"FLASHSALE_DURABILITY": "relaxed"})]
    for number, (named, settings) in enumerate(stores.items()):
        port = start_store(*settings)
        url = f"redis://127.0.0.1:{port}"
        line = one_line(run_serve("--listen", "127.0.0.1:0", "--redis", url), 1)
        assert named in line
        assert "--durability relaxed" in line
        flags, variables = accepted[(number + 1) % 2]
        server = start_server("--redis", url, *flags, **variables)
        with redis.Redis(port=port, socket_timeout=10) as store, connect(server.port) as client:
            store.set("product:p:stock", 1)
            assert client.buy("p", "u") == {"status": "SUCCESS", "remaining_stock": 0}
        assert server.stop() == 0


def test_a_store_of_ones_own_with_a_password_sells_and_the_password_is_never_shown(
    start_store: Callable[..., int], run_serve: RunServe, start_server: StartServer, connect: Connect, home: Path
) -> None:
    port = start_store("--appendonly", "yes", "--appendfsync", "always", "--requirepass", "s3cret")
    server = start_server("--redis", f"redis://:s3cret@127.0.0.1:{port}/0")
    with redis.Redis(port=port, password="s3cret", socket_timeout=10) as store, connect(server.port) as client:
        store.set("product:p:stock", 1)
        assert client.buy("p", "u") == {"status": "SUCCESS", "remaining_stock": 0}
    assert "s3cret" not in server.store
    assert server.stop() == 0
    assert "s3cret" not in (home / "server.log").read_text()
    for url in (f"127.0.0.1:{port}", f"redis://:wr0ng@127.0.0.1:{port}"):
        line = one_line(run_serve("--listen", "127.0.0.1:0", "--redis", url), 1)
        assert "wr0ng" not in line


# Bounds


async def test_three_thousand_clients_at_once_are_all_answered(start_server: StartServer, store: "redis.Redis") -> None:
    server = start_server()
    store.set("product:p:stock", 1_000)

    async def buy(number: int) -> dict[str, Any]:
        body = json.dumps({"product_id": "p", "user_id": f"u{number}"}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(struct.pack(">BI", PURCHASE, len(body)) + body)
        _, size = struct.unpack(">BI", await reader.readexactly(5))
        answer: dict[str, Any] = json.loads(await reader.readexactly(size))
        writer.close()
        await writer.wait_closed()
        return answer

    async with asyncio.timeout(40):
        answers = await asyncio.gather(*(buy(number) for number in range(3_000)))
    left = sorted(answer["remaining_stock"] for answer in answers if answer["status"] == "SUCCESS")
    assert left == list(range(1_000))
    assert sum(answer == {"status": "SOLD_OUT"} for answer in answers) == 2_000


def test_beyond_the_connection_cap_a_client_is_told_busy_and_closed(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server(FLASHSALE_CONNECTION_COUNT_MAX="5")
    inside = [connect(server.port) for _ in range(5)]
    try:
        for client in inside:
            client.ping()
        for _ in range(20):
            with connect(server.port) as surplus:
                assert surplus.read(len(BUSY_NOTICE)) == BUSY_NOTICE
                assert surplus.ended()
        for client in inside:
            client.ping()
        inside.pop().close()
        time.sleep(0.2)
        with connect(server.port) as client:
            client.ping()
    finally:
        for client in inside:
            client.close()


def test_beyond_the_connection_cap_also_who_asks_at_once_hears_busy(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server(FLASHSALE_CONNECTION_COUNT_MAX="1")
    with connect(server.port) as client:
        client.ping()
        for _ in range(50):
            with connect(server.port) as surplus:
                surplus.send(surplus.frame(PURCHASE, {"product_id": "p", "user_id": "u"}) * 20)
                assert surplus.read(len(BUSY_NOTICE)) == BUSY_NOTICE
                assert surplus.ended()


def test_a_larger_payload_may_be_allowed(start_server: StartServer, connect: Connect) -> None:
    server = start_server(FLASHSALE_PAYLOAD_SIZE_MAX=str(1024 * 1024))
    with connect(server.port) as client:
        payload = os.urandom(1024 * 1024)
        client.send_meanwhile(client.frame(PING, payload))
        assert client.receive_raw() == (PING, payload)
        client.send(struct.pack(">BI", PING, 1024 * 1024 + 1))
        assert client.receive() == (PING, {"status": "ERROR", "error": "payload too large"})
        assert client.ended()


def test_clients_past_a_deadline_are_dropped_and_honest_ones_are_not(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server(FLASHSALE_FRAME_TIMEOUT_S="1", FLASHSALE_WRITE_TIMEOUT_S="1")  # tests/test_server.py has more
    with connect(server.port) as silent, connect(server.port) as slow, connect(server.port) as honest:
        honest.ping()
        assert silent.ended()
        pings = slow.frame(PING, b"x" * 60_000) * 1_000  # more than both ways hold, and it takes no answer
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            slow.send(pings)
        honest.ping()


# End


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", "1"), ("SIGINT", "1"), ("SIGTERM", "2")])
def test_an_idle_server_ends_at_once_with_exit_code_0(
    start_server: StartServer, connect: Connect, home: Path, name: str, workers: str
) -> None:
    server = start_server("--workers", workers)
    with connect(server.port) as client:
        client.ping()
        begun = time.monotonic()
        os.kill(server.pid, getattr(signal, name))
        assert client.ended()
    assert server.wait() == 0
    assert time.monotonic() - begun < END_S
    assert not (home / "valkey.sock").exists(), "the store outlives its last user"
    with pytest.raises(ConnectionRefusedError):
        connect(server.port)


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", "1"), ("SIGINT", "2")])
async def test_a_server_told_to_end_under_load_answers_every_sale_first(
    start_server: StartServer, store: "redis.Redis", name: str, workers: str
) -> None:
    server = start_server("--workers", workers)
    store.set("product:p:stock", 1_000_000)
    told: list[str] = []
    refused: list[str] = []
    wrong: list[Any] = []

    async def buy(number: int, depth: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        asked: list[str] = []
        turn = 0
        try:
            while True:
                while len(asked) < depth:
                    asked.append(f"u{number}-{turn}")
                    turn += 1
                    body = json.dumps({"product_id": "p", "user_id": asked[-1]}).encode()
                    writer.write(struct.pack(">BI", PURCHASE, len(body)) + body)
                header = await reader.read(1)
                if not header:
                    break  # an end between two answers
                header += await reader.readexactly(4)
                answer = json.loads(await reader.readexactly(struct.unpack(">BI", header)[1]))
                user = asked.pop(0)
                if answer["status"] == "SUCCESS":
                    told.append(user)
                elif answer == {"status": "UNAVAILABLE", "error": "unavailable"}:
                    refused.append(user)
                else:
                    wrong.append(answer)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            wrong.append(error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    clients = [asyncio.create_task(buy(number, 1 if number % 2 else 16)) for number in range(40)]
    while len(told) < 2_000:  # noqa: ASYNC110 - it looks, nobody tells
        await asyncio.sleep(0.01)
    begun = time.monotonic()
    os.kill(server.pid, getattr(signal, name))
    await asyncio.gather(*clients)
    assert await asyncio.to_thread(server.wait) == 0
    assert time.monotonic() - begun < END_S
    assert not wrong, wrong[:5]

    again = start_server()  # starts the store again, from its file
    buyers = store.lrange("product:p:buyers", 0, -1)
    assert int(store.get("product:p:stock")) + len(buyers) == 1_000_000
    assert sorted(buyers) == sorted(told), "a sale that nobody was told of, or the reverse"
    assert not set(refused) & set(buyers)
    assert again.stop() == 0


# Workers


def socket_counts(pids: list[int]) -> dict[int, int]:
    return {
        pid: sum(os.readlink(entry).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())
        for pid in pids
    }


def test_workers_share_the_clients_and_a_dead_one_is_replaced(
    start_server: StartServer,
    connect: Connect,
    children: Callable[[int], list[int]],
    until: Until,
    store: "redis.Redis",
) -> None:
    server = start_server("--workers", "3")
    workers = children(server.pid)
    assert len(workers) == 3
    store.set("product:p:stock", 1_000)
    before = socket_counts(workers)
    clients = [connect(server.port) for _ in range(90)]
    try:
        answers = [client.buy("p", f"u{number}")["remaining_stock"] for number, client in enumerate(clients)]
        assert answers == list(range(999, 909, -1))
        after = socket_counts(workers)
        assert all(after[pid] - before[pid] > 5 for pid in workers), "a worker has no clients"

        victim = workers[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(children(server.pid)) == 3 and victim not in children(server.pid))
        cut = 0
        for client in clients:
            try:
                client.ping()
            except (OSError, EOFError):
                cut += 1
        assert cut == after[victim] - before[victim], "more clients were lost than the dead worker had"
        time.sleep(1)
        for _ in range(30):
            with connect(server.port) as client:
                assert client.buy("p", "later")["status"] == "SUCCESS"
    finally:
        for client in clients:
            client.close()
    assert server.stop() == 0
    assert not any(children(server.pid))


def test_workers_end_when_their_supervisor_is_killed(
    start_server: StartServer,
    connect: Connect,
    children: Callable[[int], list[int]],
    lives: Callable[[int], bool],
    until: Until,
) -> None:
    server = start_server("--workers", "2")
    workers = children(server.pid)
    server.kill()
    until(lambda: not any(map(lives, workers)), END_S)
    with pytest.raises(ConnectionRefusedError):
        connect(server.port)


def test_two_servers_on_one_store_sell_one_stock(
    start_server: StartServer, connect: Connect, store: "redis.Redis"
) -> None:
    first, second = start_server(), start_server()
    store.set("product:p:stock", 4)
    with connect(second.port) as other:
        with connect(first.port) as one:
            turns = (one, other, one, other, one)
            assert [client.buy("p", "u").get("remaining_stock") for client in turns] == [3, 2, 1, 0, None]
        assert first.stop() == 0  # whoever started the store may leave first
        assert other.buy("p", "u") == {"status": "SOLD_OUT"}


def test_a_client_that_breaks_off_hurts_nobody(
    start_server: StartServer, connect: Connect, store: "redis.Redis"
) -> None:
    server = start_server()
    store.set("product:p:stock", 10_000)
    for _ in range(30):
        with connect(server.port) as client:
            client.send(client.frame(PURCHASE, {"product_id": "p", "user_id": "gone"}) * 50)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with connect(server.port) as client:
        assert client.buy("p", "u")["status"] == "SUCCESS"
        client.ping()
    assert int(store.get("product:p:stock")) + store.llen("product:p:buyers") == 10_000
