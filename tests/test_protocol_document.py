"""protocol.md is true: its tables are the code's, its bytes are what goes over the wire, its client works."""

import asyncio
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from msgspec import structs, to_builtins
from redis.asyncio import Redis

from flashsale import server, sockets, wire
from flashsale.batching import Limits
from flashsale.client import Client
from flashsale.config import Config
from flashsale.connection import ServerConnection
from flashsale.domain import answers, bounds, checks, ids
from flashsale.domain.answers import Answer, Changed, Held, ProductStatus, Subscribed, Success, Swept
from flashsale.domain.batches import Batch
from flashsale.domain.events import FeedEvent, Mark, PurchaseEvent, SoldOutEvent
from flashsale.domain.ids import TOKEN_LENGTH, OrderRef, make_code, make_order_id
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    GetStatus,
    Pause,
    Purchase,
    Request,
    Reserve,
    Resume,
    Subscribe,
)
from flashsale.domain.sale import PLAIN, Kind, Terms
from flashsale.feed import FeedLimits
from flashsale.launch import ServerProcess
from flashsale.memory import MemoryEngine
from flashsale.server import ServerLimits
from flashsale.store import keys
from flashsale.store.admin import Admin
from flashsale.store.engine import RedisEngine
from flashsale.wire import (
    HEADER_SIZE,
    FrameReader,
    MessageType,
    decode_answer,
    decode_event,
    decode_feed_event,
    decode_request,
    encode_answer,
    encode_feed_event,
    encode_frame,
    encode_request,
)

TEXT = (Path(__file__).parent.parent / "protocol.md").read_text()
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OPERATOR_ANSWERS = {Changed, Swept}
OPERATOR_ERRORS = {answers.ORDER_NOT_FOUND, answers.SALE_IS_CLOSED, answers.STOCK_TOO_LARGE}
REQUESTS: dict[str, type[Any]] = {
    "0x01 ATTEMPT_PURCHASE": Purchase,
    "0x02 RESERVE": Reserve,
    "0x03 CONFIRM": Confirm,
    "0x04 CANCEL": Cancel,
    "0x05 STATUS": GetStatus,
    "0x07 EXTEND": Extend,
    "0x10 SUBSCRIBE": Subscribe,
}


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


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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
    payload = b'{"product_id":"p","user_id":"u","code":"0123456789012345678901.p"}'
    requests = connection.receive(encode_frame(message_type, payload))
    refused = encode_answer(message_type, answers.Failed(wire.UNKNOWN_MESSAGE_TYPE))
    assert (connection.data_to_send() != refused) == (row[2] == "yes")
    assert bool(requests) == (row[2] == "yes" and row[4] == "JSON")


def is_optional(kind: type[Answer], field: structs.FieldInfo) -> bool:
    """Whether an answer may come without this field."""
    always = kind is Success and field.name in ("order_id", "version")
    return bool(kind.__struct_config__.omit_defaults) and not field.required and not always


def test_statuses_and_their_fields_are_those_of_the_code() -> None:
    documented = {row[0]: [name for name in row[2].split(", ") if name] for row in table("Statuses")}
    answers = set(get_args(Answer)) - OPERATOR_ANSWERS
    assert documented == {
        kind.__struct_config__.tag: [
            f"{field.name}?" if is_optional(kind, field) else field.name for field in structs.fields(kind)
        ]
        for kind in answers
    }
    named = {row[0] for row in table("Statuses", 1)}
    assert named == {"status"} | {name for kind in answers for name in kind.__struct_fields__}


def test_statuses_name_the_messages_that_name_them() -> None:
    for row in table("Statuses"):
        for title in REQUESTS:
            answered = re.search(r"^Answered by (.*)\.$", section(title), re.MULTILINE)
            never_unknown = (row[0], title[5:]) == ("UNKNOWN", "SUBSCRIBE")  # it changes nothing
            named = title[5:] in row[1].split(", ") or ("any" in row[1] and not never_unknown)
            assert named == (answered is not None and row[0] in re.split(", | or ", answered[1])), (row[0], title)


def test_errors_are_those_of_the_code() -> None:
    constants = {
        value
        for module in (wire, checks, answers)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str) and " " in value
    }
    bounded = {f"invalid {name}" for name in re.search(r"\(([\w|]+)\)", wire._BOUNDED.pattern)[1].split("|")}
    rows = {row[0].strip("`"): row[1] for row in table("Errors")}
    assert set(rows) == constants - OPERATOR_ERRORS | bounded | {answers.UNAVAILABLE}
    others = {
        answers.OTHER_REQUEST: answers.Mismatch(),
        answers.UNAVAILABLE: answers.Unavailable(),
        answers.OUTCOME_UNKNOWN: answers.Unknown(),
    }
    for text, status in rows.items():
        answer = others.get(text, answers.Failed(text))
        assert (answer.error, answer.__struct_config__.tag) == (text, status)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encode_frame(9, b""), wire.UNKNOWN_MESSAGE_TYPE),
        (encode_frame(1, b""), wire.INVALID_JSON),
        (encode_frame(1, b"{}"), checks.MISSING_FIELD),
        (encode_frame(3, b"{}"), checks.MISSING_CODE),
        (encode_frame(1, b'{"quantity":0}'), "invalid quantity"),
        (b"\x01\xff\xff\xff\xff", wire.PAYLOAD_TOO_LARGE),
    ],
)
def test_connection_stays_open_after_an_error_as_the_table_says(data: bytes, error: str) -> None:
    stays = {row[0].strip("`"): row[3] for row in table("Errors")}
    connection = ServerConnection(payload_size_max=1000)
    connection.receive(data)
    assert connection.data_to_send() == encode_answer(data[0], answers.Failed(error))
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
        name: getattr(next(module for module in (wire, bounds, ids, server, sockets) if hasattr(module, name)), name)
        for name in documented
    }
    assert documented == code
    feed = structs.asdict(FeedLimits())
    assert {row[0]: number(row[1]) for row in table("Limits", 2)}.items() <= feed.items()
    largest = {name for name in vars(bounds) if name.endswith("_MAX")} - {"TIME_MAX"}  # this is the operator's
    assert largest <= set(documented)


def test_numbers_in_the_text_are_the_defaults() -> None:
    defaults = structs.asdict(ServerLimits()) | structs.asdict(Limits()) | structs.asdict(Config())
    found = re.findall(r"`(\w+_(?:max|s))` \(([\d,.]+)\)", TEXT)
    assert len(found) >= 10
    for name, value in found:
        assert number(value) == defaults[name], name
    assert f"up to {wire.PAYLOAD_SIZE_MAX:,}" in section("Frame")
    assert f"at most {ServerLimits().in_flight_count_max:,} at a time" in section("Writing a client")
    holds = section("Holds")
    assert f"hold time is {PLAIN.hold_s:,} seconds" in holds
    assert f"from the RESERVE and is {PLAIN.hold_total_s:,} seconds" in holds
    assert f"returns {bounds.SWEEP_COUNT_MAX:,} of them, and as many as {bounds.LAZY_COUNT_MAX:,} more" in holds
    assert f"A code is {TOKEN_LENGTH} characters" in holds


def test_package_version_is_the_last_of_the_history() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    [version] = re.findall(r'^version = "(.*)"$', pyproject, re.MULTILINE)
    assert version == table("Version history")[-1][1]


def test_one_sentence_stands_on_a_line() -> None:
    prose = re.sub(FENCED, "", TEXT)
    for line in prose.splitlines():
        if not line.startswith(("|", "#", "-")) and not re.match(r"\d+\. ", line):
            assert len(re.findall(r"[.!?](?= [A-Z])", line)) == 0, line


def test_links_inside_the_document_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#(.*?)\)", TEXT)
    assert links
    assert set(links) <= anchors


# Fields of requests


def read(kind: type[Any], fields: dict[str, Any]) -> Any:
    """Return what the server makes of a request with these fields: the request, or an error text."""
    return decode_request((int(wire._REQUEST_TYPES[kind]), json.dumps(fields).encode()))


WHOLE = {"product_id": "iphone15", "user_id": "user_0_0", "code": make_code("0123456789-_abcdefghij", "iphone15")}
FIELDS = [(kind, *row[:3]) for title, kind in REQUESTS.items() for row in table(title)]


@pytest.mark.parametrize("title", REQUESTS)
def test_fields_of_a_request_are_those_of_the_code(title: str) -> None:
    assert [row[0] for row in table(title)] == list(REQUESTS[title].__struct_fields__)


@pytest.mark.parametrize(
    ("kind", "name", "shape", "given"), FIELDS, ids=[f"{row[0].__name__} {row[1]}" for row in FIELDS]
)
def test_field_of_a_request_is_taken_as_its_table_says(kind: type[Any], name: str, shape: str, given: str) -> None:
    whole = {field: value for field, value in WHOLE.items() if field in kind.__struct_fields__}
    absent = read(kind, {field: value for field, value in whole.items() if field != name})
    null = read(kind, whole | {name: None})
    if given == "required":
        missing = checks.MISSING_CODE if name == "code" else checks.MISSING_FIELD
        wrong_type = f"invalid {name}" if " to " in shape else wire.INVALID_JSON
        assert (absent, read(kind, whole | {name: ""}), null) == (missing, missing, wrong_type)
    elif given == "optional":
        assert isinstance(absent, kind)
        assert (getattr(absent, name), null) == (None, absent)
    else:
        default = int(given.removeprefix("default "))
        assert (read(kind, whole | {name: default}), null) == (absent, f"invalid {name}")
    if bounds := re.fullmatch(r"(integer|string), ([\d,]+) to ([\d,]+)( bytes)?", shape):
        low, high = int(number(bounds[2])), int(number(bounds[3]))
        values = [int, lambda size: "x" * size][bounds[1] == "string"]
        assert [isinstance(read(kind, whole | {name: values(size)}), kind) for size in (low, high)] == [True, True]
        beyond = (low - 1, high + 1) if given != "required" else (high + 1,)
        assert {read(kind, whole | {name: values(size)}) for size in beyond} == {f"invalid {name}"}
        assert read(kind, whole | {name: ["1"]}) == f"invalid {name}"
        if bounds[1] == "string":
            assert isinstance(read(kind, whole | {name: "ë" * (high // 2)}), kind)
            assert read(kind, whole | {name: "ë" * (high // 2 + 1)}) == f"invalid {name}"


# Rules


_sequences = count(1)


def decide(engine: MemoryEngine, *requests: Request) -> list[Answer]:
    """Decide requests one after the other."""
    answers: list[Answer] = []
    for request in requests:
        outcome = engine.decide(Batch(request.product_id, [request], next(_sequences)))
        assert isinstance(outcome, list)
        answers += outcome
    return answers


@pytest.mark.parametrize("row", table("Holds"), ids=lambda row: row[0])
def test_an_ended_hold_tells_what_the_table_says(row: list[str]) -> None:
    code = make_code(f"{1:022d}", "iphone15")
    asked = {"CONFIRM": Confirm(code), "CANCEL": Cancel(code), "EXTEND": Extend(code, hold_seconds=60)}[row[0]]
    for before, told in zip([GetStatus("iphone15"), Confirm(code), Cancel(code), None], row[1:], strict=True):
        engine = MemoryEngine()
        engine.create("iphone15", 10)
        decide(engine, Reserve("iphone15", "user_0_0"))
        if before is None:
            engine.now_ms = PLAIN.hold_s * 1000
        else:
            decide(engine, before)
        [answer] = decide(engine, asked)
        status, _, rest = told.partition(" ") if told.startswith("ERROR") else told.partition(", ")
        assert answer.__struct_config__.tag == status
        assert getattr(answer, "duplicate", False) == (rest == "duplicate")
        assert getattr(answer, "error", "") == (rest.strip("`") if status == "ERROR" else "")


def test_refusals_come_in_the_order_of_the_list() -> None:
    listed = re.findall(r"^\d\. (.*)[.;]$", section("The rules of a sale").split("### ")[0], re.MULTILINE)
    assert len(listed) == 7
    engine = MemoryEngine()
    engine.create("iphone15", 2, Terms(limit=1, numbered=True, closes_at=1))
    mine = Purchase("iphone15", "user_0_0", request_id="a", item_id=1)
    decide(engine, mine)
    engine.now_ms = 1000
    all_wrong = Purchase("iphone15", "user_0_0", quantity=5, item_id=9)
    told = decide(engine, structs.replace(all_wrong, request_id="a"), mine, all_wrong)
    engine.create("iphone15", 2, Terms(limit=1, numbered=True))
    decide(engine, Purchase("iphone15", "user_0_0", item_id=1))
    told += decide(engine, all_wrong, structs.replace(all_wrong, item_id=1))
    decide(engine, Purchase("iphone15", "user_1_0", item_id=2))
    told += decide(engine, Purchase("iphone15", "user_0_0", item_id=1))
    engine.create("iphone15", 3, Terms(limit=1, numbered=True))
    decide(engine, Purchase("iphone15", "user_0_0", item_id=1))
    told += decide(engine, *(Purchase("iphone15", f"user_{i}_0", item_id=item) for i, item in ((0, 1), (1, 1), (2, 2))))
    expected = [
        (1, "MISMATCH"),
        (1, "SUCCESS"),
        (2, "CLOSED"),
        (3, answers.ITEM_NOT_FOUND),
        (3, answers.ONE_ITEM_AT_A_TIME),
        (4, "SOLD_OUT"),
        (5, "LIMIT_EXCEEDED"),
        (6, "ITEM_TAKEN"),
        (7, "SUCCESS"),
    ]
    names = [getattr(answer, "error", "") if type(answer) is answers.Failed else tag(answer) for answer in told]
    assert names == [name for _, name in expected]
    for position, name in expected:
        assert name in listed[position - 1] or (position, name) == (1, "SUCCESS")


def tag(answer: Answer) -> str:
    return str(answer.__struct_config__.tag)


def test_an_order_id_is_made_as_described() -> None:
    described = re.search(r"An `order_id` is .*", section("Orders and versions"))[0]
    parts = make_order_id(OrderRef("a-b", "c0ffee00", 7, 1767225600000)).split("-", 3)
    assert [len(part) for part in parts[:3]] == [int(digits) for digits in re.findall(r" (\d+) ", described)]
    assert (parts[3], int(parts[0], 16), int(parts[1], 16), parts[2]) == ("a-b", 1767225600000, 7, "c0ffee00")


def test_answers_and_events_are_as_small_as_is_said() -> None:
    longest = "\x01" * bounds.ID_SIZE_MAX  # each takes six bytes in JSON
    order = OrderRef(longest, "c0ffee00", bounds.STOCK_MAX, bounds.TIME_MAX * 1000)
    largest: list[Answer] = [
        Success(bounds.STOCK_MAX, make_order_id(order), bounds.STOCK_MAX, bounds.ITEMS_MAX, duplicate=True),
        Held(make_code("x" * 22, longest), bounds.TIME_MAX, bounds.STOCK_MAX, bounds.STOCK_MAX, bounds.ITEMS_MAX),
        Subscribed(product_id=longest, version=bounds.STOCK_MAX, epoch="c0ffee00"),
    ]
    assert "all other answers are smaller than 2,048 bytes" in section("Frame")
    assert max(len(encode_answer(1, answer)) for answer in largest) < 2048
    event = FeedEvent(
        event="confirmed",
        product_id=longest,
        version=bounds.STOCK_MAX,
        timestamp=bounds.TIME_MAX,
        remaining=bounds.STOCK_MAX,
        buyer="\x01" * bounds.USER_ID_SIZE_MAX,
        quantity=bounds.QUANTITY_MAX,
        item_id=bounds.ITEMS_MAX,
        order_id=make_order_id(order),
    )
    assert "a subscriber must be ready for payloads of 8,192 bytes" in section("0x11 EVENT")
    assert len(encode_feed_event(event)) < 8192


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
    first = VECTORS[0]
    assert (first.asked, first.told) == (hex_lines(">"), hex_lines("<"))
    assert tag(decode_answer(first.told[HEADER_SIZE:])) == "SUCCESS"


Happening = int | Request
"""The store's clock is set to a second, or the operator does something."""


class Vector(NamedTuple):
    title: str
    stock: int | None
    """None: answers alone."""
    terms: Terms
    parts: list[tuple[Happening | None, bytes]]
    """What happens, and what is sent to the server then."""
    told: bytes

    @property
    def asked(self) -> bytes:
        return b"".join(data for _, data in self.parts)


OPERATIONS = {"pause": Pause("iphone15"), "resume": Resume("iphone15"), "close": Close("iphone15")}


def read_vectors() -> Iterator[Vector]:
    [block] = blocks("vectors")
    for group in block.strip().split("\n\n"):
        head, *lines = group.splitlines()
        title, _, condition = head.removeprefix("# ").partition("; ")
        parts: list[tuple[Happening | None, bytes]] = [(None, b"")]
        told = b""
        for line in lines:
            mark, kind, *rest = line.split(" ", 3)
            if mark == "@":
                parts.append((OPERATIONS.get(kind) or int(kind), b""))
                continue
            length, *payload = rest
            raw = "".join(payload).encode()
            # an escape stands for a byte that is no text; JSON's own are \u, \" and so on
            raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), raw)
            assert len(raw) == int(length, 16) or (mark == ">" and not raw), line
            frame = bytes.fromhex(kind + length) + raw
            if mark == ">":
                parts[-1] = (parts[-1][0], parts[-1][1] + frame)
            else:
                told += frame
        terms = dict(re.findall(r"(\w+)(?: (\d+))?", condition)) if condition.startswith("stock ") else {}
        stock = int(terms.pop("stock")) if terms else None
        asks = any(data for _, data in parts)
        assert (stock is None) == (not asks)
        values = {name: int(value) if value else True for name, value in terms.items()}
        yield Vector(title, stock, Terms(**values), parts, told)


VECTORS = list(read_vectors())
PLAYED = [vector for vector in VECTORS if vector.stock is not None]


def play(vector: Vector, cuts: set[int]) -> tuple[bytes, ServerConnection]:
    """Send what a vector asks, in segments that end at these offsets too, and return what the server says."""
    engine = MemoryEngine()
    engine.now_ms = 1_767_225_600_000
    engine.create("iphone15", vector.stock or 0, vector.terms, epoch="c0ffee00")
    connection = ServerConnection(payload_size_max=wire.PAYLOAD_SIZE_DEFAULT)
    sent = b""
    offset = 0
    for happening, data in vector.parts:
        if isinstance(happening, int):
            engine.now_ms = happening * 1000
        elif happening is not None:
            decide(engine, happening)
        inside = sorted(cut - offset for cut in cuts if offset < cut < offset + len(data))
        for start, stop in zip([0, *inside], [*inside, len(data)], strict=True):
            for ticket, request in connection.receive(data[start:stop]):
                [answer] = decide(engine, request)
                connection.answer(ticket, answer)
            sent += connection.data_to_send()
        offset += len(data)
    return sent, connection


@pytest.mark.parametrize("vector", PLAYED, ids=lambda vector: vector.title)
def test_vector_is_answered_whole_and_cut_at_every_offset(vector: Vector) -> None:
    size = len(vector.asked)
    for cuts in [set[int](), *({cut} for cut in range(1, size)), set(range(size))]:
        sent, connection = play(vector, cuts)
        assert sent == vector.told
        assert connection.unanswered_count == 0
        assert connection.closing == (b"payload too large" in vector.told)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.title)
def test_answers_of_a_vector_are_read_both_ways(vector: Vector) -> None:
    reader = FrameReader()
    frames = reader.feed(vector.told)
    assert not reader.incomplete
    for kind, payload in frames:
        if kind == MessageType.PING:
            assert encode_frame(kind, payload) in vector.told
        elif kind == MessageType.EVENT and b'"event"' in payload:
            assert encode_feed_event(decode_feed_event(payload)) == encode_frame(kind, payload)
        else:
            assert encode_answer(kind, decode_answer(payload)) == encode_frame(kind, payload)


def test_vectors_show_every_status_and_every_error() -> None:
    everything = b"".join(vector.told for vector in VECTORS).decode(errors="replace")
    for row in table("Statuses"):
        assert f'"status":"{row[0]}"' in everything
    for row in table("Errors"):
        assert f'"error":"{row[0].strip("`")}"' in everything


def test_clock_of_the_vectors_is_what_is_said() -> None:
    said = section("Appendix: test vectors")
    for value in ("1767225600", "`c0ffee00`"):
        assert value in said


# Examples: what a server of its own says, in a fresh sale of 100 units

PLACEHOLDERS = {
    "order_id": r"(?P<order_id>[0-9a-f]{11}-[0-9a-f]{10}-[0-9a-f]{8}-iphone15)",
    "code": r"(?P<code>[0-9A-Za-z_-]{22}\.iphone15)",
    "epoch": r"(?P<epoch>[0-9a-f]{8})",
}
EXAMPLES = [
    pytest.param(block, id=f"{title} {index}")
    for title in re.findall(r"^### (0x.*)$", TEXT, re.MULTILINE)
    for index, block in enumerate(blocks("example", section(title)))
]


def match_answer(documented: str, told: str, known: dict[str, str], now: float) -> None:
    """Hold an answer to what an example shows; put what its angle brackets stand for into `known`."""
    pattern = re.escape(documented)
    for name, shape in PLACEHOLDERS.items():
        pattern = pattern.replace(f"<{name}>", re.escape(known[name]) if name in known else shape, 1)
    moments = [int(seconds) for seconds in re.findall(r"<now \+ (\d+)>", documented)]
    pattern = re.sub(r"<now\\ \\\+\\ \d+>", r"(\\d{10})", pattern)
    assert "<" not in pattern.replace("(?P<", ""), documented
    match = re.fullmatch(pattern, told)
    assert match, (documented, told)
    known |= match.groupdict()
    for moment, seconds in zip(
        [group for group in match.groups() if re.fullmatch(r"\d{10}", group)], moments, strict=True
    ):
        # a hold counts from the next whole second of the store's clock, which is this machine's
        assert now - 1 <= int(moment) - seconds <= time.time() + 1  # noqa: TID251


async def play_example(example: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    now = time.time()  # noqa: TID251 - as above
    known: dict[str, str] = {}
    waiting: dict[bool, list[tuple[int, str]]] = {False: [], True: []}  # answers; events, which come between them
    for line in example.splitlines():
        mark, kind, payload = line.split(" ", 2)
        message_type = int(kind, 16)
        if mark == ">":
            for name, value in known.items():
                payload = payload.replace(f"<{name}>", value)
            assert "<" not in payload
            frame = encode_frame(message_type, payload.encode())
            if message_type != MessageType.PING:
                request = decode_request((message_type, payload.encode()))
                assert not isinstance(request, str)
                assert encode_request(request) == frame
            writer.write(frame)
        else:
            is_event = message_type == MessageType.EVENT
            while not waiting[is_event]:
                header = await reader.readexactly(HEADER_SIZE)
                body = await reader.readexactly(int.from_bytes(header[1:]))
                waiting[header[0] == MessageType.EVENT].append((header[0], body.decode()))
            told_type, told = waiting[is_event].pop(0)
            assert told_type == message_type
            match_answer(payload, told, known, now)
    assert waiting == {False: [], True: []}
    writer.write_eof()
    assert await reader.read() == b""


@pytest.mark.parametrize("example", EXAMPLES)
async def test_example_is_what_a_server_says(example: str, server: ServerProcess, module_home: Path) -> None:
    async with Admin(f"unix://{module_home / 'valkey.sock'}") as admin, asyncio.timeout(30):
        await admin.init("iphone15", 100)
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            await play_example(example, reader, writer)
        finally:
            writer.close()
            await admin.reset("iphone15")


def test_every_request_has_an_example() -> None:
    everything = "\n".join(blocks("example"))
    assert {int(row[0], 16) for row in table("Message types") if row[2] == "yes"} == {
        int(kind, 16) for kind in re.findall(r"^> (\w\w)", everything, re.MULTILINE)
    }


# Events of the store's channel


def test_events_are_those_of_the_code() -> None:
    kinds = {row[0].strip("`") for row in table("Push events")}
    tags = {str(kind.__struct_config__.tag) for kind in (PurchaseEvent, SoldOutEvent)}
    assert kinds == {str(kind) for kind in Kind} - {Kind.SOLD, Kind.CONFIRMED} | tags
    assert f"`{keys.EVENTS_CHANNEL}`" in section("Push events")
    for part in ("stock", "buyers", "orders"):
        assert f"`{keys.key('<id>', part)}`" in section("Push events")


def test_events_of_a_subscription_are_those_of_the_code() -> None:
    assert [row[0].strip("`") for row in table("0x11 EVENT")] == [*map(str, Kind), *map(str, Mark)]
    assert [row[0] for row in table("0x11 EVENT", 1)] == [
        field.name if field.required else f"{field.name}?" for field in structs.fields(FeedEvent)
    ]


def test_events_are_read_both_ways() -> None:
    [block] = blocks("json")
    events = [json.loads(line) for line in block.splitlines()]
    assert events == [to_builtins(decode_event(line.encode())) for line in block.splitlines()]
    always = set.intersection(*map(set, events))
    documented = {row[0] for row in table("Push events", 1)}
    assert documented == {name if name in always else f"{name}?" for name in set.union(*map(set, events))}


async def test_events_are_published_as_shown(store_url: str, redis_client: Redis, product_id: str) -> None:
    [block] = blocks("json")
    shown = block.replace("iphone15", product_id).splitlines()
    heard: list[str] = []
    engine = RedisEngine(store_url)
    async with Admin(store_url) as admin, redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(keys.EVENTS_CHANNEL)
        await admin.init(product_id, 3)
        both = [Purchase(product_id, "user_0_0"), Reserve(product_id, "user_1_0", quantity=2)]
        [[_, held]] = await engine.commit([Batch(product_id, both, 1)], timeout_s=10)
        await engine.commit([Batch(product_id, [Cancel(held.code)], 2)], timeout_s=10)
        await admin.change(Pause(product_id))
        while len(heard) < len(shown):
            message = await pubsub.get_message(timeout=30)
            if message and f'"product_id":"{product_id}"' in message["data"]:
                heard.append(re.sub(r'"timestamp":\d{10}', '"timestamp":1767225600', message["data"]))
    await engine.close()
    assert heard == shown


# The client


def run_client(tmp_path: Path, *arguments: str) -> list[str]:
    [listing] = blocks("python")
    assert len(listing.splitlines()) <= 70  # short enough to be read at once
    script = tmp_path / "client.py"
    script.write_text(listing)
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    return [re.sub(r"'order_id': '[0-9a-f-]{32}", "'order_id': '", line) for line in done.stdout.splitlines()]


async def test_client_of_the_document_works(
    server: ServerProcess, module_home: Path, tmp_path: Path, product_id: str
) -> None:
    async with Admin(f"unix://{module_home / 'valkey.sock'}") as admin:
        await admin.init(product_id, 2)
    shown = await asyncio.to_thread(run_client, tmp_path, server.host, str(server.port), product_id, "ann", "bob", "cy")
    assert shown == [
        f"ann {{'status': 'SUCCESS', 'remaining_stock': 1, 'order_id': '{product_id}', 'version': 2}}",
        f"bob 1 {{'status': 'SUCCESS', 'remaining_stock': 0, 'order_id': '{product_id}', 'version': 3}}",
        "cy 1 {'status': 'SOLD_OUT'}",
        "status 5 {'status': 'OK', 'remaining_stock': 0, 'sold': 2, 'held': 0, 'state': 'open', 'version': 3}",
        "ping 6 None",
    ]


@contextmanager
def losing_the_first_answer(host: str, port: int) -> Iterator[int]:
    """Stand between a client and the server; let the first connection break when its answer is about to pass."""

    def run() -> None:
        for connection_count in range(3):
            client, _ = listening.accept()
            with client, socket.create_connection((host, port)) as upstream:
                others = {client: upstream, upstream: client}
                while True:
                    [ready, *_], _, _ = select.select([client, upstream], [], [])
                    data = ready.recv(65536)
                    if not data or (ready is upstream and connection_count == 0):
                        break
                    others[ready].sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(timeout=30)
    assert not thread.is_alive()


async def test_client_of_the_document_buys_once_when_an_answer_is_lost(
    server: ServerProcess, module_home: Path, tmp_path: Path, product_id: str
) -> None:
    async with Admin(f"unix://{module_home / 'valkey.sock'}") as admin:
        await admin.init(product_id, 10)
    with losing_the_first_answer(server.host, server.port) as port:
        shown = await asyncio.to_thread(run_client, tmp_path, "127.0.0.1", str(port), product_id, "ann")
    told = f"'remaining_stock': 9, 'order_id': '{product_id}', 'version': 2, 'duplicate': True"
    assert shown[0] == f"ann {{'status': 'SUCCESS', {told}}}"
    async with Client(server.host, server.port) as client:
        assert await client.status(product_id) == ProductStatus(9, 1, 0, "open", 2)
