"""The contract can fail: each known-bad variant of the script is told from the good one by a short story."""

from collections.abc import Callable
from typing import Any

import pytest

from flashsale.domain.answers import Held
from flashsale.domain.batches import Ambiguous, Batch
from flashsale.domain.ids import make_code
from flashsale.domain.requests import (
    Cancel,
    Close,
    Confirm,
    Extend,
    GetStatus,
    Pause,
    Purchase,
    Refund,
    Request,
    Reserve,
    Restock,
    Resume,
    Sweep,
)
from flashsale.domain.sale import PLAIN, Terms
from flashsale.store import scripts

SCRIPT = scripts.DECIDE.source.decode()
KEPT_S = 86_400 + PLAIN.hold_total_s
OVERTAKEN = Ambiguous("overtaken by a later batch of its session", alone=True)

# What is told with -> what a bad script tells instead; each is found once in the script.
VARIANTS = {
    # units
    "stock is not taken": ("redis.call('DECRBY', KEYS[1], granted)", ""),
    "stock is taken twice": ("redis.call('DECRBY', KEYS[1], granted)", "redis.call('DECRBY', KEYS[1], 2 * granted)"),
    "unit N+1 is sold": ("math.min(stock, count)", "math.min(stock + 1, count)"),
    "the last unit is not sold": ("math.min(stock, count)", "math.min(math.max(stock - 1, 1), count)"),
    "the last buyer is not counted": ("tonumber(ARGV[5])", "math.max(tonumber(ARGV[5]) - 1, 1)"),
    "many units are one": ("stock = stock - quantity\n", "stock = stock - 1\n"),
    "more units than are left": ("  if stock < quantity then\n", "  if stock == 0 then\n"),
    "a large order ends the sale": ("stock == 0 and SOLD_OUT_ROW or row(SOLD_OUT, stock)", "SOLD_OUT_ROW"),
    "a sale of many is counted once": ("sold = sold + quantity", "sold = sold + 1"),
    "no stock key is sold out": ("redis.call('GET', KEYS[1])", "redis.call('GET', KEYS[1]) or '0'"),
    "the stock is not written": ("if stock ~= stock_before then", "if false then"),
    "nobody is written down after the first thousand": (
        "for from = 1, #values, CHUNK do",
        "for from = 1, math.min(1, #values), CHUNK do",
    ),
    # batches
    "a batch sent again sells again": ("elseif sequence == last then", "elseif false then"),
    "an overtaken batch sells": ("elseif sequence < last then", "elseif false then"),
    "the outcome is not remembered": ("\nremember(reply)\n", "\n"),
    "the outcome of the short way is not remembered": ("local reply = remember({", "local reply = ({"),
    "the fence is not built": ("ARGV[3] == '1'", "false"),
    # the ledger
    "a version is skipped": ("expires_at)\n  version = version + 1", "expires_at)\n  version = version + 2"),
    "a crowd has one version": ("counters[#counters + 1] = version + granted", "counters[#counters + 1] = version + 1"),
    "a ledger without its beginning": ("table.insert(changes, 1, opened)", "version = version - 1"),
    "the buyers before are forgotten": ("stock_before + sold_before, sold_before)", "stock_before, 0)"),
    # the window and the state
    "a sale opens a second late": ("now_s < opens_at and 'not_open'", "now_s <= opens_at and 'not_open'"),
    "a sale closes a second late": ("now_s >= closes_at)", "now_s > closes_at)"),
    "a closed sale is resumed": ("if state == 'closed' and wanted ~= 'closed' then", "if false then"),
    "the state is not kept": ("\nif switched then", "\nif false then"),
    "a sale paused in a batch goes on in it": ("  where = standing()\n    change", "  change"),
    # limits
    "the limit is one too many": ("units_of(user) + quantity > limit", "units_of(user) + quantity > limit + 1"),
    "the limit counts requests": ("units_of(user) + quantity > limit", "units_of(user) + 1 > limit"),
    "the limit ignores what is held": (
        "count_units(user, quantity)",
        "count_units(user, kind == PURCHASE and quantity or 0)",
    ),
    "the limit ignores what is sold": (
        "count_units(user, quantity)",
        "count_units(user, kind == RESERVE and quantity or 0)",
    ),
    "the limit is not given back by a hold": ("  count_units(hold[2], -hold[3])\n", ""),
    "the limit is not given back by a refund": ("  count_units(order[1], -order[2])\n", ""),
    # holds
    "a hold takes no units off the sale": ("    held = held + quantity\n", ""),
    "a hold is confirmed after it expired": ("  if at > now_s then\n", "  if true then\n"),
    "a hold expires a second late": ("  if at > now_s then\n", "  if at >= now_s then\n"),
    "a confirmed hold stands": (
        "hold[4])\n  set_deadline(token, false)\n",
        "hold[4])\n",
    ),
    "a confirmed hold is confirmed again": ("set_deadline(token, false)\n  keep(token, answer)\n  if", "if"),
    "a confirmed hold is still held": ("  held = held - hold[3]\n  change(", "  change("),
    "a cancelled hold is cancelled again": (
        "'cancelled', hold)\n  set_deadline(token, false)\n",
        "'cancelled', hold)\n",
    ),
    "an expired hold expires again": ("'expired', hold)\n  set_deadline(token, false)\n", "'expired', hold)\n"),
    "units come back twice": ("stock, held = stock + hold[3]", "stock, held = stock + 2 * hold[3]"),
    "units of a hold never come back": ("stock, held = stock + hold[3]", "stock, held = stock"),
    "a cancelled hold does not tell": (
        "row(CANCELLED, stock, version)\n  keep(token, answer)",
        "row(CANCELLED, stock, version)",
    ),
    "an expired hold does not tell": (
        "== HOLD and bare(EXPIRED) or record",
        "== HOLD and row(FAILED, REASON.hold_not_found) or record",
    ),
    "a long hold does not tell for a day": ("REQUESTS_KEPT_S + math.max(hold_s, hold_total_s)", "REQUESTS_KEPT_S"),
    "a hold lasts as long as the buyer says": ("math.min(request[7], hold_s)", "request[7]"),
    "a hold is shorter than was asked for": ("math.ceil(now_ms / 1000)", "now_s"),
    "deadlines that have passed stay": ("  redis.call('ZREMRANGEBYRANK', KEYS[7], 0, passed - 1)", ""),
    "deadlines yet to come go too": (
        "  redis.call('ZREMRANGEBYRANK', KEYS[7], 0, passed - 1)",
        "redis.call('DEL', KEYS[7])",
    ),
    "a hold is extended without end": ("hold[7] + math.max(hold_total_s, hold_s)", "math.huge"),
    "a hold is cut short": ("  if expires_at > at then\n", "  if expires_at ~= at then\n"),
    "an expired hold waits for the sweeper": ("more_due = due > 0 and", "more_due = false and"),
    "the crowd does not look for expired holds": (
        "if raw and plain and (due == 0 or due > now_s) then",
        "if raw and plain then",
    ),
    "a sweep without bound": ("sweep(SWEEP_COUNT_MAX, math.huge)", "sweep(math.huge, math.huge)"),
    "a purchase does not take back what has expired": ("lazy_count - sweep(lazy_count, quantity)", "lazy_count"),
    "nobody is told when the next hold is due": ("due = due == 0 and at or math.min(due, at)", ""),
    # numbered items
    "an item is sold twice": ("elseif is_taken(item) then", "elseif false then"),
    "an item is not marked": ("    set_taken(item, true)\n", ""),
    "an item of a hold is not freed": ("  set_taken(hold[4], false)\n", ""),
    "an item of an order is not freed": ("  set_taken(order[3], false)\n", ""),
    "the search for items goes by": ("      cursor = math.min(cursor, item)\n", ""),
    "items that were added are not there": ("items = items and items + quantity", ""),
    "two items at a time": ("elseif items and quantity > 1 then", "elseif false then"),
    # request ids
    "a record is not written": ("  call_many(kept_values, 'HSET', KEYS[9])\n", ""),
    "a refusal is recorded": (
        "    return bare(LIMIT_EXCEEDED)",
        "    keep(id, bare(LIMIT_EXCEEDED) .. content)\n    return bare(LIMIT_EXCEEDED)",
    ),
    "a record does not say of whom": (
        "keep(id, answer .. content)",
        "keep(id, answer .. string.gsub(content, '\"b\"', '\"a\"'))",
    ),
    "a record does not say of what": ("answer .. content", "answer"),
    "a hold is asked for without its time": ("asked or asked .. '/' .. request[7]", "asked or asked"),
    "the ledger says which item was asked for": ("    if item == request[5] then", "    if true then"),
    "another's request id is good for anyone": ("same and again(answer)", "again(answer)"),
    "a repeated request does not say so": (
        "== EXPIRED and packed or '\\146\\000' .. packed",
        "== EXPIRED and packed or packed",
    ),
    "records are forgotten after a day": ("  if since_before > 0 then", "  if false then"),
    "records are never forgotten": ("'since_before', since}", "'since_before', 0}"),
    "records are forgotten while holds wait for them": (" and not more_due then", " then"),
    "records are thrown away with the day": ("redis.call('RENAME', KEYS[9], KEYS[10])", "redis.call('DEL', KEYS[9])"),
    # the operator
    "a refund is made twice": (
        "refund_values[#refund_values + 1], refund_values[#refund_values + 2] = order_version, version",
        "",
    ),
    "a refund is made twice in a batch": ("refunds[order_version], refunded = version,", "refunded ="),
    "refunds are not counted": ("= version, refunded + 1", "= version, refunded"),
    "a refund of another's order": ("  if not order or order[4] ~= request[3] then\n", "  if not order then\n"),
    "a refund of a hold": (
        "(kind == 'sold' or kind == 'confirmed') and {user, quantity, item or 0, tonumber",
        "{user, quantity, item or 0, tonumber",
    ),
    "a refund takes nobody off the list": ("    redis.call('LREM', KEYS[2], 1, buyers[i][1])\n", ""),
    "a refund takes the oldest off the list": ("'LREM', KEYS[2], 1,", "'LREM', KEYS[2], -1,"),
    "units that were added are not counted": ("\nif stock_restocked then", "\nif false then"),
    "stock without bound": ("(items and ITEMS_MAX or STOCK_MAX)", "math.huge"),
}


def tell(twins: Any) -> None:
    """Live through a few days of a few sales; both engines are compared whole after every batch."""

    def decide(*requests: Request, product: str = "p", session: str = "one") -> list[Any]:
        answers: list[Any] = twins.decide(product, *requests, session=session)
        return answers

    def buy(*users: str, product: str = "p") -> list[Any]:
        return decide(*(Purchase(product, user) for user in users), product=product)

    def reserve(*users: str, **details: Any) -> list[str]:
        answers = decide(*(Reserve("p", user, **details) for user in users))
        return [answer.code for answer in answers if isinstance(answer, Held)]

    # a crowd, and batches that come again
    twins.sequence = 3
    twins.send(Batch("p", [Purchase("p", "early")], 2, fenced=True))
    twins.create("p", 4)
    twins.send(Batch("p", [Purchase("p", "late")], 1))
    first = Batch("p", [Purchase("p", "a"), Purchase("p", "b")], 3)
    second = Batch("p", [Purchase("p", "c", 1, "r"), GetStatus("p")], 4)
    for batch in (first, first, second, second, first):
        twins.send(batch)
    twins.sequence = 10
    buy("d", "e", "f")
    twins.create("p", 2_000)
    buy(*(f"u{number}" for number in range(1_500)))
    buy("f")

    # a sale whose stock was set by hand
    for number, requests in enumerate(([Purchase("", "a")], [Reserve("", "a", 2)])):
        product = f"p-{number}"
        twins.set_stock(product, 5, ("x", "y"))
        request = type(requests[0])(product, "a", requests[0].quantity)
        decide(request, product=product)
        buy("b", "c", product=product)

    # quantities
    twins.create("p", 9)
    decide(Purchase("p", "a", 3), Purchase("p", "b", 7), Purchase("p", "c", 2), GetStatus("p"), Purchase("p", "d", 5))
    buy("a", "b", "c", "d", "e")

    # the window and the states
    opens_at = twins.now_s + 5
    twins.create("p", 9, Terms(opens_at=opens_at, closes_at=opens_at + 5))
    for moment in (opens_at * 1_000 - 1, opens_at * 1_000, opens_at * 1_000 + 4_999, opens_at * 1_000 + 5_000):
        twins.set_now(moment)
        buy("a")
    twins.create("p", 9)
    decide(Pause("p"), Purchase("p", "a"))
    buy("a")
    decide(Resume("p"), Purchase("p", "a"), Close("p"), Resume("p"), Purchase("p", "a"))

    # limits
    twins.create("p", 99, Terms(limit=3, hold_s=10))
    buy("a", "a")
    decide(Purchase("p", "b", 3), Purchase("p", "a", 2, "r"), Purchase("p", "c", 4))
    [hold] = reserve("a")
    buy("a")
    decide(Cancel(hold), Purchase("p", "a", 3, "r"), Reserve("p", "a"))
    twins.create("p", 99, Terms(limit=3, hold_s=10))
    reserve("a", quantity=2)
    twins.wait(10)
    [sold, *_] = buy("a", "a", "a")
    decide(Refund(sold.order_id), Purchase("p", "a"), Purchase("p", "a"))

    # holds
    twins.create("p", 9, Terms(hold_s=10, hold_total_s=15))
    twins.wait(0.5)
    decide(Reserve("p", "a", hold_seconds=5), Reserve("p", "b", hold_seconds=10))
    twins.wait(6.5)
    buy("z")
    twins.create("p", 9, Terms(hold_s=10, hold_total_s=15))
    confirmed, cancelled, extended, expired = reserve("a", "b", "c", "d", quantity=2)
    decide(
        GetStatus("p"),
        Extend(extended, 1),
        Extend(extended, 12),
        Extend(extended, 99),
        Reserve("p", "e", 1, hold_seconds=99),
    )
    decide(Confirm(confirmed, "c"), Cancel(cancelled))
    for hold in (confirmed, cancelled, extended, expired):
        decide(Confirm(hold, "c"), Cancel(hold), Extend(hold, 1))
        decide(Confirm(hold))
        twins.wait(5)
    buy("z")
    twins.create("p", 2, Terms(hold_s=10))
    [early, late] = reserve("a", "b")
    twins.wait(9.999)
    decide(Confirm(early))
    buy("c", "c")
    twins.wait(0.001)
    decide(Confirm(late))
    twins.create("p", 1, Terms(hold_s=10))
    reserve("a")
    twins.wait(10)
    buy("b", "c")
    twins.create("p", 600, Terms(hold_s=10))
    reserve(*["a"] * 600)
    reserve("b")
    twins.wait(10)
    last = make_code(max(hold.token for hold in twins.holds("p")), "p")
    decide(Confirm(last), GetStatus("p"))
    twins.create("p", 600, Terms(hold_s=10))
    reserve(*["a"] * 600)
    twins.wait(10)
    decide(Purchase("p", "a", 550), Sweep("p"))
    decide(Sweep("p"))

    # holds that last longer than answers are kept, and holds that nobody was there to return
    twins.create("p", 9, Terms(hold_s=2 * KEPT_S, hold_total_s=2 * KEPT_S))
    [hold] = reserve("a")
    for number in range(4):
        decide(Purchase("p", "b", 1, f"{number}"), Extend(hold, KEPT_S))
        twins.wait(KEPT_S / 2)
    decide(Confirm(hold))
    twins.create("p", 2_000, Terms(hold_s=10))
    decide(Purchase("p", "b", 1, "first"))
    reserve(*["a"] * 700)
    twins.wait(5)
    twins.wait(KEPT_S)
    decide(Sweep("p"))
    decide(Sweep("p"))
    reserve(*["a"] * 700)
    for number in range(4):
        twins.wait(KEPT_S)
        decide(Purchase("p", "b", 1, f"{number}"))

    # numbered items
    twins.create("p", 4, Terms(numbered=True, hold_s=10))
    decide(
        Purchase("p", "a", item_id=2),
        Purchase("p", "b", item_id=2),
        Purchase("p", "c", 2),
        Purchase("p", "c", 1, "any"),
    )
    decide(Purchase("p", "c", 1, "any"), Purchase("p", "d", item_id=5), Reserve("p", "d"))
    twins.wait(10)
    [sold] = buy("e")
    decide(Refund(sold.order_id), Restock("p", 1), Purchase("p", "f", item_id=5), Purchase("p", "f", item_id=3))
    decide(Purchase("p", "f"), Restock("p", 10_000_000))

    twins.create("p", 4, Terms(numbered=True))
    [sold, *_] = buy("a", "b", "c")
    decide(Refund(sold.order_id))
    buy("d", "e", "f")

    # request ids
    twins.create("p", 20, Terms(limit=12))
    asked = [Purchase("p", "a", 2, "r1"), Reserve("p", "b", 1, "r2", hold_seconds=5)]
    decide(*asked, *asked, Purchase("p", "b", 2, "r1"), Purchase("p", "a", 3, "r1"))
    decide(*asked, Purchase("p", "b", 2, "r1"), Reserve("p", "b", 1, "r2"), session="two")
    twins.wait(KEPT_S)
    decide(asked[0], Purchase("p", "c", 1, "r3"))
    decide(*asked)
    twins.wait(KEPT_S)
    decide(asked[0], Purchase("p", "c", 1, "r3"))
    twins.wait(2 * KEPT_S)
    decide(asked[0], Purchase("p", "c", 1, "r3"))

    # the operator
    twins.create("p", 9)
    [one, two] = buy("a", "b")
    [three, _] = decide(Purchase("p", "a", 2), Purchase("p", "b"))
    [held] = decide(Reserve("p", "a"))
    buy("a", "b")
    version = f"-{held.version:010x}-"
    no_order = three.order_id.replace(f"-{three.version:010x}-", version)
    decide(Refund(one.order_id), Refund(one.order_id), Refund(no_order), Refund("0" + one.order_id[1:]))
    decide(Refund(one.order_id), Refund(three.order_id), Restock("p", 5), GetStatus("p"))
    decide(Refund(two.order_id), Restock("p", 10**14))


def test_the_script_tells_the_story_as_the_rules_do(make_twins: Callable[..., Any]) -> None:
    tell(make_twins())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bad_script_tells_another_story(variant: str, make_twins: Callable[..., Any]) -> None:
    good, bad = VARIANTS[variant]
    assert SCRIPT.count(good) == 1
    twins = make_twins(scripts.make_script(SCRIPT.replace(good, bad).encode()))
    with pytest.raises(AssertionError):
        tell(twins)
    assert twins.outcome == OVERTAKEN or "user_script" not in repr(twins.outcome), "it does not even run"
