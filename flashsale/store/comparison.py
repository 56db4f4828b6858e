"""The keys of a product beside what its ledger says of them: each difference, and the command that mends it."""

import secrets

from msgspec import Struct, field, structs

from flashsale.store.keys import TYPES
from flashsale.store.records import HoldRecord, encode_hold, read_hold
from flashsale.store.replay import Replay
from flashsale.store.report import Command, Report, shown

STOCK, BUYERS, SALE, ORDERS, USERS, DEADLINES, ITEMS = 1, 2, 4, 5, 6, 7, 8
REQUESTS, REQUESTS_BEFORE, REFUNDS, PRODUCTS, PRODUCTS_DUE = 9, 10, 11, 12, 13
"""The keys by their numbers in the scripts (lua/frame.lua)."""

_PARTS = {
    STOCK: "stock",
    BUYERS: "buyers",
    USERS: "users",
    DEADLINES: "deadlines",
    ITEMS: "items",
    REQUESTS: "requests",
    REQUESTS_BEFORE: "requests_before",
    REFUNDS: "refunds",
}

_PUSH_COUNT = 1_000  # names in one LPUSH: unpack() in Lua takes no more than some thousands
_TOKEN_SIZE = 16


class Snapshot(Struct, frozen=True, kw_only=True):
    """What lua/snapshot.lua read at one instant."""

    now_s: int
    types: list[str]
    stock: bytes | None
    sale: dict[bytes, bytes]
    first_id: bytes | None
    last_id: bytes | None
    messages: list[tuple[bytes, dict[bytes, bytes]]]
    buyer_count: int
    newer_buyers: list[bytes]
    user_count: int
    users: dict[bytes, bytes | None]
    deadlines: dict[bytes, float]
    holds: dict[bytes, bytes]
    """What is recorded of those that have a deadline."""
    items: bytes
    refunds: dict[bytes, bytes]
    listed: bool
    due: float | None


class Pages(Struct):
    """What was found in pages before the snapshot, of that which has not moved since."""

    users: dict[bytes, bytes | None] = field(default_factory=dict)
    """Those whose units differ from the ledger's; None for one who is missing."""
    buyers_same: int = 0
    """Entries of the list, from the oldest, that are as the ledger says."""
    buyer_found: bytes | None = None
    """The entry behind them, if it differs."""


def compare(product_id: str, replay: Replay, snapshot: Snapshot, pages: Pages, lost: dict[bytes, HoldRecord]) -> Report:
    """Return how the keys of a product differ from what its ledger says.

    Args:
        product_id: the product.
        replay: its ledger.
        snapshot: its keys, at the instant at which the replay ends.
        pages: what was read before, and has not moved since.
        lost: records of holds that stand by the ledger but have no deadline.
    """
    report = Report(
        product_id=product_id,
        first_version=replay.first_version,
        version=replay.version,
        trimmed=replay.trimmed,
        fault=_fault(replay, snapshot),
    )
    sale = snapshot.sale
    if not replay.version and not sale and not report.fault:
        report.remaining, report.sold = _number(snapshot.stock), snapshot.buyer_count
        report.units = report.remaining + report.sold
        if not _is_number(snapshot.stock):
            report.differ("stock", snapshot.stock, "a number of units")
        return report
    _compare_sums(report, snapshot)
    if report.fault:
        return report
    counters = replay.counters
    report.units, report.held, report.sold = counters.units, counters.held, counters.sold
    report.remaining = max(counters.remaining, 0)
    for number, name in _PARTS.items():
        found = snapshot.types[number - 1]
        if found not in {TYPES[number - 1], "none"}:
            report.differ(f"type of {name}", found, TYPES[number - 1], ("DEL", number))
    _compare_counters(report, replay, snapshot)
    if replay.trimmed:
        return report
    _compare_buyers(report, replay, snapshot, pages)
    _compare_users(report, replay, snapshot, pages)
    _compare_items(report, replay, snapshot)
    _compare_holds(report, replay, snapshot, lost)
    _compare_refunds(report, replay, snapshot)
    if not snapshot.listed:
        report.differ("listed in products", "no", "yes", ("SADD", PRODUCTS, product_id))
    return report


def _fault(replay: Replay, snapshot: Snapshot) -> str:
    """Return what is wrong with the ledger itself; empty when it can be relied on."""
    if snapshot.types[ORDERS - 1] not in {"stream", "none"}:
        return f"is a {snapshot.types[ORDERS - 1]}"
    if snapshot.types[SALE - 1] not in {"hash", "none"} or (replay.version and b"epoch" not in snapshot.sale):
        return "is there, but the terms of the sale are gone"
    if replay.fault:
        return replay.fault
    if not replay.version and snapshot.sale:
        return "is gone"
    if snapshot.last_id and int(snapshot.last_id.partition(b"-")[0]) > replay.version:
        return f"has a gap: what followed version {replay.version} is gone"
    return ""


def _compare_sums(report: Report, snapshot: Snapshot) -> None:
    """Compare the counters with each other: what is left, held and sold must be what there was."""
    sale = snapshot.sale
    parts = [_number(sale.get(name)) for name in (b"held", b"sold")]
    report.held, report.sold = parts
    report.remaining = _number(snapshot.stock)
    report.units = _number(sale.get(b"initial")) + _number(sale.get(b"restocked"))
    report.compare("left + held + sold", report.remaining + report.held + report.sold, report.units)


def _compare_counters(report: Report, replay: Replay, snapshot: Snapshot) -> None:
    counters = replay.counters
    report.compare("stock", snapshot.stock, report.remaining, ("SET", STOCK, report.remaining))
    if counters.remaining < 0:
        report.differ("units sold and held", counters.sold + counters.held, f"at most {counters.units}")
    expected: dict[str, tuple[object, object]] = {
        "version": (None, counters.version),
        "initial": (None, counters.initial),
        "restocked": (0, counters.restocked),
        "sold": (None, counters.sold),
        "held": (0, counters.held),
        "state": ("open", counters.state),
    }
    if not replay.trimmed:
        expected["refunded"] = 0, len(replay.refunds)
    for name, (default, value) in expected.items():
        found = snapshot.sale.get(name.encode(), default)
        report.compare(name, found, value, ("HSET", SALE, name, str(value)))


def _compare_buyers(report: Report, replay: Replay, snapshot: Snapshot, pages: Pages) -> None:
    expected, same, early = replay.buyers(), pages.buyers_same, replay.early_count
    found = pages.buyer_found
    if found is None:
        for found in reversed(snapshot.newer_buyers):
            index = same - early
            if index >= len(expected) or (index >= 0 and shown(found) != expected[index]):
                break
            same += 1
        else:
            found = None
    count = early + len(expected)
    if same == snapshot.buyer_count == count:
        return
    commands: list[Command] = [("LTRIM", BUYERS, -same, -1) if same else ("DEL", BUYERS)]
    missing = expected[max(same - early, 0) :]
    commands += [("LPUSH", BUYERS, *missing[i : i + _PUSH_COUNT]) for i in range(0, len(missing), _PUSH_COUNT)]
    if snapshot.buyer_count != count:
        report.differ("entries in buyers", snapshot.buyer_count, count, *commands)
    else:
        report.differ(f"buyer {same + 1}", found, expected[same - early], *commands)


def _compare_users(report: Report, replay: Replay, snapshot: Snapshot, pages: Pages) -> None:
    limit = _number(snapshot.sale.get(b"limit"))
    if not limit:
        report.compare("users counted, without a limit", snapshot.user_count, 0, ("DEL", USERS))
        return
    counted: list[str | bytes | int] = []
    gone: list[str | bytes | int] = []
    unmoved = {name: units for name, units in pages.users.items() if shown(name) not in replay.moved}
    for name, units in (unmoved | snapshot.users).items():
        user = shown(name)
        expected = replay.users.get(user)
        if shown(units) != shown(expected):
            report.differ(f"units of user {user}", units, expected)
            if expected:
                counted += (name, expected)
            else:
                gone.append(name)
    for verb, values in (("HSET", counted), ("HDEL", gone)):
        report.commands += [(verb, USERS, *values[i : i + _PUSH_COUNT]) for i in range(0, len(values), _PUSH_COUNT)]
    for user, held in replay.users.items():
        if held > limit:
            report.differ(f"limit of user {user}", held, f"at most {limit}")


def _compare_items(report: Report, replay: Replay, snapshot: Snapshot) -> None:
    for item, more in replay.shared.items():
        if more:
            report.differ(f"owners of item {item}", 1 + more, 1)
    found_total = snapshot.sale.get(b"items")
    if found_total is None and not replay.owned:
        report.compare("items, without numbers", len(snapshot.items.rstrip(b"\0")), 0, ("DEL", ITEMS))
        return
    total = replay.counters.units
    report.compare("items", found_total, total, ("HSET", SALE, "items", total))
    owned = replay.owned
    bits = bytearray((len(owned) + 7) // 8)
    position = owned.find(1)
    while position >= 0:
        bits[position // 8] |= 128 >> position % 8
        position = owned.find(1, position + 1)
    found = snapshot.items.ljust(len(bits), b"\0")
    bits = bits.ljust(len(found), b"\0")
    if found != bits:
        for i in (i for i in range(len(bits)) if found[i] != bits[i]):
            for bit in range(8):
                is_set, must_be = (bool(byte & 128 >> bit) for byte in (found[i], bits[i]))
                if is_set != must_be:
                    report.differ(f"item {i * 8 + bit + 1}", _ownership(is_set), _ownership(must_be))
        report.commands.append(("SET", ITEMS, bytes(bits.rstrip(b"\0"))))
    lowest_free = owned.find(0) + 1 or len(owned) + 1
    cursor = snapshot.sale.get(b"cursor", b"1")
    if not 1 <= _number(cursor) <= lowest_free:
        report.differ("lowest free item", cursor, f"at most {lowest_free}", ("HSET", SALE, "cursor", lowest_free))


def _ownership(taken: bool) -> str:  # noqa: FBT001 - a bit
    return "taken" if taken else "free"


def _compare_holds(report: Report, replay: Replay, snapshot: Snapshot, lost: dict[bytes, HoldRecord]) -> None:
    """Compare the holds that stand: each has a deadline, and its record.

    The ledger knows a hold by its version, not by the secret in its code. One whose deadline is gone is known again by
    its record, one of `lost`; if that is gone as well it is given the secret of a deadline that has no record, or else
    a new one: nobody can confirm it then, and its units return in time.
    """
    tokens: dict[int, bytes] = {}
    loose: dict[float, bytes] = {}
    for token, at in snapshot.deadlines.items():
        packed = snapshot.holds.get(token)
        record = read_hold(packed)
        expected = replay.holds.get(record.version) if record else None
        if record is not None and expected is not None and record.version not in tokens:
            tokens[record.version] = token
            if not _is_same(record, expected):
                command: Command = ("HSET", REQUESTS, token, encode_hold(expected))
                report.differ(f"hold of version {record.version}", _told(record), _told(expected), command)
            continue
        if packed is not None and record is None:
            report.differ(
                f"hold {shown(token)}", "unreadable", None, ("HDEL", REQUESTS, token), ("HDEL", REQUESTS_BEFORE, token)
            )
        if record is None:
            loose[at] = token
    for token, record in lost.items():
        expected = replay.holds.get(record.version)
        if expected is not None and _is_same(record, expected):
            tokens.setdefault(record.version, token)
    for version, expected in replay.holds.items():
        if version not in tokens:
            at = float(replay.deadlines[version])
            token = loose.pop(at) if at in loose else secrets.token_urlsafe(_TOKEN_SIZE).encode()
            tokens[version] = token
            command = ("HSET", REQUESTS, token, encode_hold(expected))
            report.differ(f"hold of version {version}", None, _told(expected), command)
    _compare_deadlines(report, replay.deadlines, tokens, snapshot)
    _compare_records(report, snapshot)


def _compare_deadlines(report: Report, deadlines: dict[int, int], tokens: dict[int, bytes], snapshot: Snapshot) -> None:
    """Compare when each hold ends, and when the first of them does, with what the sweeper goes by."""
    for version, at in deadlines.items():
        token = tokens[version]
        command: Command = ("ZADD", DEADLINES, at, token)
        report.compare(f"deadline of version {version}", snapshot.deadlines.get(token), at, command)
    known = set(tokens.values())
    for token, found in snapshot.deadlines.items():
        if token not in known:
            report.differ(f"deadline {shown(token)}", found, None, ("ZREM", DEADLINES, token))
    if not deadlines:
        return
    first = min(deadlines.values())
    due = snapshot.sale.get(b"due")
    if not 0 < _number(due) <= first:
        report.differ("due", due, f"at most {first}", ("HSET", SALE, "due", first))
    if snapshot.due is None or snapshot.due > first:
        command = ("ZADD", PRODUCTS_DUE, first, report.product_id)
        report.differ("due in products_due", snapshot.due, f"at most {first}", command)


def _compare_records(report: Report, snapshot: Snapshot) -> None:
    """Compare since when answers and holds are recorded with whether there are any: the script goes by the first."""
    for number, name in ((REQUESTS, "since"), (REQUESTS_BEFORE, "since_before")):
        since = _number(snapshot.sale.get(name.encode()))
        is_there = snapshot.types[number - 1] == TYPES[number - 1]
        if since > 0 and not is_there:
            report.differ(f"records since {since}", "gone", "there", ("HSET", SALE, name, 0))
        elif since <= 0 and is_there:
            report.differ(name, since, snapshot.now_s, ("HSET", SALE, name, snapshot.now_s))
    if snapshot.types[REQUESTS - 1] != TYPES[REQUESTS - 1] and any(
        command[:2] == ("HSET", REQUESTS) for command in report.commands
    ):
        report.commands.append(("HSET", SALE, "since", snapshot.now_s))


def _is_same(record: HoldRecord, expected: HoldRecord) -> bool:
    """Whether it is the hold that the ledger tells of, which counts from a whole second at or beside that moment."""
    near = abs(record.created_at - expected.created_at) <= 1
    return near and structs.replace(record, created_at=expected.created_at) == expected


def _told(hold: HoldRecord) -> str:
    item = f", item {hold.item_id}" if hold.item_id else ""
    return f"{hold.quantity} for {hold.user_id}{item}, from {hold.created_at}"


def _compare_refunds(report: Report, replay: Replay, snapshot: Snapshot) -> None:
    found = {shown(order): version for order, version in snapshot.refunds.items()}
    expected = {str(order): version for order, version in replay.refunds.items()}
    for order in found | expected:
        version = expected.get(order)
        command: Command = ("HSET", REFUNDS, order, version) if version else ("HDEL", REFUNDS, order)
        report.compare(f"refund of order {order}", found.get(order), version, command)


def _is_number(value: bytes | None) -> bool:
    return value is not None and value.removeprefix(b"-").isdigit()


def _number(value: bytes | None) -> int:
    return int(value or 0) if _is_number(value) else 0
