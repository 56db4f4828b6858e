"""protocol.md is true: its tables are the code's, its bytes are what goes over the wire, its client works."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from msgspec import structs
from redis.asyncio import Redis

from flashsale import domain, server, wire
from flashsale.batching import Limits
from flashsale.config import Config
from flashsale.connection import ServerConnection
from flashsale.domain import Answer, Batch, Event, GetStatus, Purchase, Success
from flashsale.engine import MemoryEngine
from flashsale.launch import ServerProcess
from flashsale.server import ServerLimits
from flashsale.store import keys
from flashsale.wire import (
    HEADER_SIZE,
    FrameReader,
    MessageType,
    decode_answer,
    decode_event,
    decode_request,
    encode_answer,
    encode_frame,
    encode_request,
)

TEXT = (Path(__file__).parent.parent / "protocol.md").read_text()
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return what stands under a heading, up to the next of its rank or higher."""
    [found] = re.findall(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    rank, body = found
    return re.split(rf"^#{{1,{len(rank)}}} ", body, flags=re.MULTILINE)[0]


def table(title: str, index: int = 0) -> list[list[str]]:
    """Return the rows of a table in a section, without its head."""
    tables = re.findall(r"((?:^\|.*\n)+)", re.sub(FENCED, "", section(title)), re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in tables[index].splitlines()]
    assert {len(row) for row in rows} == {len(rows[0])}
    return rows[2:]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def number(text: str) -> float:
    return float(text.replace(",", ""))


# Tables


def test_message_types_are_those_of_the_code() -> None:
    rows = table("Message types")
    names = {int(row[0], 16): row[1].removeprefix("ATTEMPT_") for row in rows}
    assert names == {int(kind): kind.name for kind in MessageType}


@pytest.mark.parametrize("row", table("Message types"), ids=lambda row: row[1])
def test_message_type_is_taken_from_the_client_as_the_table_says(row: list[str]) -> None:
    connection = ServerConnection(payload_size_max=1000)
    message_type = int(row[0], 16)
    requests = connection.receive(encode_frame(message_type, b'{"product_id":"p","user_id":"u"}'))
    refused = encode_answer(message_type, domain.Failed(wire.UNKNOWN_MESSAGE_TYPE))
    assert (connection.data_to_send() != refused) == (row[2] == "yes")
    assert bool(requests) == (row[2] == "yes" and row[4] == "JSON")


def test_statuses_and_their_fields_are_those_of_the_code() -> None:
    documented = {row[0]: tuple(name for name in row[2].split(", ") if name) for row in table("Statuses")}
    assert documented == {kind.__struct_config__.tag: kind.__struct_fields__ for kind in get_args(Answer)}


def test_errors_are_those_of_the_code() -> None:
    constants = {
        value
        for module in (wire, domain)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    rows = {row[0].strip("`"): row[1] for row in table("Errors")}
    assert set(rows) == constants
    for text, status in rows.items():
        assert status == ("UNKNOWN" if text == domain.OUTCOME_UNKNOWN else "ERROR")
    assert domain.UNKNOWN.error == domain.OUTCOME_UNKNOWN


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encode_frame(9, b""), wire.UNKNOWN_MESSAGE_TYPE),
        (encode_frame(1, b""), wire.INVALID_JSON),
        (encode_frame(1, b"{}"), wire.MISSING_FIELD),
        (b"\x01\xff\xff\xff\xff", wire.PAYLOAD_TOO_LARGE),
    ],
)
def test_connection_stays_open_after_an_error_as_the_table_says(data: bytes, error: str) -> None:
    stays = {row[0].strip("`"): row[3] for row in table("Errors")}
    connection = ServerConnection(payload_size_max=1000)
    connection.receive(data)
    assert connection.data_to_send() == encode_answer(data[0], domain.Failed(error))
    assert connection.closing == (stays[error] == "no")


def test_frame_table_adds_up() -> None:
    rows = {row[0]: row[1:3] for row in table("Frame")}
    assert rows == {"type": ["0", "1"], "length": ["1", "4"], "payload": [str(HEADER_SIZE), "length"]}


def test_limits_are_those_of_the_code() -> None:
    documented = {row[0]: number(row[1]) for row in table("Limits")}
    code = structs.asdict(ServerLimits()) | structs.asdict(Limits()) | {"drain_timeout_s": Config().drain_timeout_s}
    assert documented == code
    settings = {field.name for field in structs.fields(Config)}
    assert set(documented) - settings == {"linger_timeout_s", "round_count_max"}


def test_constants_are_those_of_the_code() -> None:
    documented = {row[0]: number(row[1]) for row in table("Limits", 1)}
    code = {
        name: getattr(next(module for module in (wire, domain, server) if hasattr(module, name)), name)
        for name in documented
    }
    assert documented == code


def test_numbers_in_the_text_are_the_defaults() -> None:
    defaults = structs.asdict(ServerLimits()) | structs.asdict(Limits()) | structs.asdict(Config())
    found = re.findall(r"`(\w+_(?:max|s))` \(([\d,.]+)\)", TEXT)
    assert len(found) >= 10
    for name, value in found:
        assert number(value) == defaults[name], name
    assert f"up to {wire.PAYLOAD_SIZE_MAX:,}" in section("Frame")
    assert f"at most {ServerLimits().in_flight_count_max:,} at a time" in section("Writing a client")


def test_package_version_is_in_the_history() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    [version] = re.findall(r'^version = "(.*)"$', pyproject, re.MULTILINE)
    assert version in [row[1] for row in table("Version history")]


def test_one_sentence_stands_on_a_line() -> None:
    prose = re.sub(FENCED, "", TEXT)
    for line in prose.splitlines():
        if not line.startswith(("|", "#", "-")) and not re.match(r"\d+\. \*\*", line):
            assert len(re.findall(r"[.!?](?= [A-Z])", line)) == 0, line


def test_links_inside_the_document_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#(.*?)\)", TEXT)
    assert links
    assert set(links) <= anchors


# Bytes


def hex_lines(mark: str) -> bytes:
    [block] = blocks("hex")
    lines = re.findall(rf"^{mark} ((?:[0-9a-f]{{2}} )*[0-9a-f]{{2}}) +(.*)$", block, re.MULTILINE)
    for hexes, shown in lines:
        raw = bytes.fromhex(hexes)
        assert "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw) == shown
    return b"".join(bytes.fromhex(hexes) for hexes, _ in lines)


def test_hex_exchange_is_the_first_vector() -> None:
    assert hex_lines(">") == encode_request(Purchase("iphone15", "user_0_0"))
    assert hex_lines("<") == encode_answer(1, Success(99))
    _, _, asked, answered = VECTORS[0]
    assert (asked, answered) == (hex_lines(">"), hex_lines("<"))


Vector = tuple[str, int | None, bytes, bytes]


def read_vectors() -> list[Vector]:
    """Return (title, stock, bytes to the server, bytes from it) of each group."""
    [block] = blocks("vectors")
    vectors: list[Vector] = []
    for group in block.strip().split("\n\n"):
        head, *lines = group.splitlines()
        title, _, condition = head.removeprefix("# ").partition("; ")
        data = {">": b"", "<": b""}
        for line in lines:
            mark, kind, length, *payload = line.split(" ", 3)
            raw = "".join(payload).encode()
            # an escape stands for a byte that is no text; JSON's own are \u, \" and so on
            raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), raw)
            announced = int(length, 16)
            assert len(raw) == announced or (mark == ">" and not raw), line
            data[mark] += bytes.fromhex(kind + length) + raw
        stock = int(condition.removeprefix("stock ")) if condition.startswith("stock ") else None
        assert (stock is None) == (not data[">"])
        vectors.append((title, stock, data[">"], data["<"]))
    return vectors


VECTORS = read_vectors()


def answered(stock: int, segments: list[bytes]) -> tuple[bytes, ServerConnection]:
    engine = MemoryEngine()
    engine.create("iphone15", stock)
    connection = ServerConnection(payload_size_max=wire.PAYLOAD_SIZE_DEFAULT)
    sent = b""
    sequence = 0
    for segment in segments:
        for ticket, request in connection.receive(segment):
            sequence += 1
            outcome = engine.decide(Batch(request.product_id, [request], sequence))
            assert isinstance(outcome, list)
            connection.answer(ticket, outcome[0])
        sent += connection.data_to_send()
    return sent, connection


@pytest.mark.parametrize(
    ("title", "stock", "asked", "expected"),
    [row for row in VECTORS if row[1] is not None],
    ids=lambda value: str(value)[:20],
)
def test_vector_is_answered_whole_and_cut_at_every_offset(
    title: str, stock: int, asked: bytes, expected: bytes
) -> None:
    for cut in range(len(asked)):
        sent, connection = answered(stock, [asked[:cut], asked[cut:]])
        assert sent == expected, title
        assert connection.unanswered_count == 0
        assert connection.closing == (b"payload too large" in expected)
    sent, _ = answered(stock, [asked[position : position + 1] for position in range(len(asked))])
    assert sent == expected


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector[0])
def test_answers_of_a_vector_are_read_both_ways(vector: Vector) -> None:
    reader = FrameReader()
    frames = reader.feed(vector[3])
    assert not reader.incomplete
    for kind, payload in frames:
        if kind == MessageType.PING:
            assert encode_frame(kind, payload) in vector[3]
        else:
            assert encode_answer(kind, decode_answer(payload)) == encode_frame(kind, payload)


def test_vectors_show_every_status_and_every_error() -> None:
    everything = b"".join(expected for *_, expected in VECTORS).decode(errors="replace")
    for row in table("Statuses"):
        assert f'"status":"{row[0]}"' in everything
    for row in table("Errors"):
        assert f'"error":"{row[0].strip("`")}"' in everything


@pytest.mark.parametrize(("title", "message_type"), [("0x01 ATTEMPT_PURCHASE", 1), ("0x05 STATUS", 5)])
def test_example_of_a_message_is_a_request_and_an_answer(title: str, message_type: int) -> None:
    [(asked, told)] = re.findall(r"^```\n(.*)\n(.*)\n```$", section(title), re.MULTILINE)
    request = decode_request((message_type, asked.encode()))
    assert isinstance(request, Purchase | GetStatus)
    assert encode_request(request) == encode_frame(message_type, asked.encode())
    assert encode_answer(message_type, decode_answer(told.encode())) == encode_frame(message_type, told.encode())
    assert [row[0] for row in table(title)] == list(request.__struct_fields__)


# Events


def test_events_are_read_both_ways() -> None:
    [block] = blocks("json")
    events = [decode_event(line.encode()) for line in block.splitlines()]
    assert [type(event) for event in events] == list(get_args(Event))
    assert [json.loads(line) for line in block.splitlines()] == [
        {"event": event.__struct_config__.tag} | structs.asdict(event) for event in events
    ]
    fields = {row[0] for row in table("Push events")}
    assert fields == {"event"} | {name for event in events for name in event.__struct_fields__}
    assert f"`{keys.EVENTS_CHANNEL}`" in section("Push events")
    assert f"`{keys.stock_key('<id>')}`" in section("Push events")
    assert f"`{keys.buyers_key('<id>')}`" in section("Push events")


# The client


async def test_client_of_the_document_works(
    store_url: str, short_dir: Path, tmp_path: Path, redis_client: Redis, product_id: str
) -> None:
    [listing] = blocks("python")
    assert len(listing.splitlines()) <= 40  # short enough to be read at once
    script = tmp_path / "client.py"
    script.write_text(listing)
    await redis_client.set(f"product:{product_id}:stock", "2")

    def run() -> "subprocess.CompletedProcess[str]":
        with ServerProcess(["--listen", "127.0.0.1:0", "--home", str(short_dir / "store")], environment={}) as running:
            command = [sys.executable, str(script), running.host, str(running.port), product_id, "ann", "bob", "cy"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)

    done = await asyncio.to_thread(run)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "ann 1 {'status': 'SUCCESS', 'remaining_stock': 1}",
        "bob 1 {'status': 'SUCCESS', 'remaining_stock': 0}",
        "cy 1 {'status': 'SOLD_OUT'}",
        "status 5 {'status': 'OK', 'remaining_stock': 0, 'sold': 2}",
        "ping 6 None",
    ]
