"""What `flashsale top` shows: a picture of a server, as large as there is room for. Needs the extra `top`."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct, field
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashsale.cli.options import printable
from flashsale.live import ProductView, Snapshot, WorkerView
from flashsale.terms import local_time

WIDTH_MIN: Final = 80
HEIGHT_MIN: Final = 24
_SECONDS_KEPT = 300
_LEVELS = "▁▂▃▄▅▆▇█"
_CURVE_MARGIN = 19  # what stands beside a curve
_PEAK_WIDTH = 18
_OUTCOME_WIDTH = 40
_OUTCOME_LINES_MAX = 4
_LINES_AROUND = 12  # all but the rows of outcomes, products and workers
_SOLD, _HELD, _LEFT, _SOFT, _TROUBLE = "green", "yellow", "bright_black", "bright_black", "red"
_STYLES = {"SUCCESS": _SOLD, "HELD": _HELD} | dict.fromkeys(("BUSY", "UNAVAILABLE", "UNKNOWN", "ERROR"), _TROUBLE)


class Seen(Struct):
    """What is known of a server: the last picture, and the rates before it."""

    address: str
    live: Snapshot | None = None
    products: list[ProductView] = field(default_factory=list)
    """Of the last picture that had any: without a store there are none."""
    trouble: str = "connecting"
    """Why there is no newer picture; empty while they come."""
    answers: deque[float] = field(default_factory=lambda: deque(maxlen=_SECONDS_KEPT))
    """A second, the latest last."""
    sales: deque[float] = field(default_factory=lambda: deque(maxlen=_SECONDS_KEPT))

    def add(self, live: Snapshot) -> None:
        """Take the next picture."""
        self.live, self.trouble = live, ""
        if live.store_up:
            self.products = live.products
        self.answers.append(live.rate)
        self.sales.append(live.outcomes.get("SUCCESS", 0.0))


def draw(seen: Seen, width: int, height: int | None) -> RenderableType:
    """Return the picture.

    Args:
        seen: what is known.
        width: in cells; at least WIDTH_MIN shows all there is.
        height: in lines, at least HEIGHT_MIN; None for as many as it takes.
    """
    live = seen.live
    if live is None:
        return Group(*_title(seen))
    outcomes = _outcomes(live, width, None if height is None else _OUTCOME_LINES_MAX)
    product_count, worker_count = len(seen.products), len(live.workers)
    if height is not None:
        room = height - _LINES_AROUND - outcomes.row_count
        worker_count = min(worker_count, max(2, room // 3, room - product_count))
        product_count = min(product_count, max(1, room - worker_count))
    return Group(
        *_title(seen),
        _curve("Answers", seen.answers, width, ""),
        _curve("Sales", seen.sales, width, _SOLD),
        "",
        _measures(live),
        "",
        _bar([(_STYLES.get(name, _LEFT), "█", rate) for name, rate in _by_total(live)], width),
        outcomes,
        "",
        _stock(seen.products, width, product_count),
        "",
        _workers(live.workers, worker_count),
    )


def _title(seen: Seen) -> tuple[RenderableType, Text]:
    """Return what is seen and how it is, and a line for what is wrong."""
    wrong, state, style = seen.trouble, "live", _SOLD
    if seen.trouble:
        state, style = "no connection", _HELD
    elif seen.live and not seen.live.store_up:
        state, style, wrong = "no store", _TROUBLE, "the store is away: nothing is sold until it is back"
    at = local_time(int(seen.live.at)) if seen.live else None
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(
        Text.assemble(("flashsale", "bold"), (f"  {printable(seen.address)}", _SOFT)),
        Text.assemble(("● ", style), state, (at.strftime("  %H:%M:%S") if at else "", _SOFT)),
    )
    return line, Text(printable(wrong), style, no_wrap=True, overflow="ellipsis")


def _curve(name: str, rates: Sequence[float], width: int, style: str) -> Text:
    """Return the last rate and, as a curve, those before it."""
    wide = width >= WIDTH_MIN + _PEAK_WIDTH
    count = max(1, min(_SECONDS_KEPT, width - _CURVE_MARGIN - (_PEAK_WIDTH if wide else 0)))
    shown = list(rates)[-count:]
    highest = max(shown, default=0.0)
    steps = (math.ceil(rate / highest * len(_LEVELS)) if highest else 0 for rate in shown)
    curve = "".join(_LEVELS[max(0, step - 1)] for step in steps).rjust(count)
    peak = f"  highest {_number(highest)}" if wide else ""
    return Text.assemble(f"{name:<8}", (f"{_number(shown[-1]):>8}/s ", "bold"), (curve, style), (peak, _SOFT))


def _measures(live: Snapshot) -> Text:
    told = [
        ("p50", _milliseconds(live.p50_ms)),
        ("p99", _milliseconds(live.p99_ms)),
        ("store", _milliseconds(live.store_round_trip_ms)),
        ("queue", _number(live.queue)),
        ("batch", _number(live.batch)),
        *((name, _number(count)) for name, count in live.connections.items() if count),
    ]
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value in told:
        line.append(f"{printable(name)} ", _SOFT).append(value + "  ", "bold")
    return line


def _by_total(live: Snapshot) -> list[tuple[str, float]]:
    """Return the outcomes that there were with their rates, the most frequent first."""
    names = [name for name in live.totals | live.outcomes if live.totals.get(name) or live.outcomes.get(name)]
    names.sort(key=lambda name: (-live.totals.get(name, 0), name))
    return [(name, live.outcomes.get(name, 0.0)) for name in names]


def _outcomes(live: Snapshot, width: int, lines_max: int | None) -> Table:
    """Return what buyers are told, in as many columns as there is room for."""
    columns = max(1, width // _OUTCOME_WIDTH)
    found = _by_total(live)
    lines = -(-len(found) // columns)
    lines = lines if lines_max is None else min(lines, lines_max)
    total = sum(rate for _, rate in found)
    table = Table.grid(padding=(0, 1))
    for _ in range(columns):
        table.add_column(no_wrap=True, width=16)
        for size in (9, 4):
            table.add_column(no_wrap=True, justify="right", width=size)
        table.add_column(no_wrap=True, justify="right", width=7, style=_SOFT)
    if not found:
        table.add_row(Text("No answers yet", _SOFT))
    for first in range(0, lines * columns, columns):
        cells: list[Text] = []
        for name, rate in found[first : first + columns]:
            words = printable(name.capitalize().replace("_", " "))
            share = f"{rate / total:.0%}" if total else "–"
            counted = _number(live.totals.get(name, 0))
            cells += [Text.assemble(("■ ", _STYLES.get(name, _LEFT)), words)]
            cells += [Text(text) for text in (f"{_number(rate)}/s", share, counted)]
        table.add_row(*cells)
    return table


def _bar(parts: Sequence[tuple[str, str, float]], width: int) -> Text:
    """Return parts of a whole, each with its style and sign, as a bar; what there is takes a cell at least."""
    total = sum(size for *_, size in parts)
    bar = Text(no_wrap=True)
    if not total:
        return bar.append("░" * width, _LEFT)
    cells = [max(1, round(size / total * width)) if size else 0 for *_, size in parts]
    while sum(cells) != width:
        largest = cells.index(max(cells))
        cells[largest] += 1 if sum(cells) < width else -1
    for (style, sign, _), count in zip(parts, cells, strict=True):
        bar.append(sign * count, style)
    return bar


def _stock(products: Iterable[ProductView], width: int, count: int) -> RenderableType:
    # what can be bought is above what cannot
    found = sorted(products, key=lambda one: (not _is_for_sale(one), one.product_id))
    if not found:
        return Text("Nothing is on sale: flashsale init iphone15 100", _SOFT)
    name_width = max(18, width // 5)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", width=name_width)
    bar_width = max(8, width - name_width - 38)
    table.add_column(no_wrap=True, width=bar_width)
    for size in (8, 8, 8):
        table.add_column(no_wrap=True, justify="right", width=size)
    table.add_column(no_wrap=True, overflow="ellipsis", width=9)
    _add_head(table, "Stock", "", "left", "sold", "held", "")
    for product in found[: count if count >= len(found) else max(0, count - 1)]:
        parts = [(_SOLD, "█", product.sold), (_HELD, "▓", product.held), (_LEFT, "░", product.remaining)]
        table.add_row(
            Text(_shortened(printable(product.product_id), name_width)),
            _bar([(style, sign, max(0, size)) for style, sign, size in parts], bar_width),
            Text(_number(product.remaining), "bold"),
            _number(product.sold),
            _number(product.held),
            Text(_told_state(product), _SOFT),
        )
    if count < len(found):
        table.add_row(Text(f"… and {len(found) - max(0, count - 1)} more", _SOFT))
    return table


def _shortened(name: str, width: int) -> str:
    """Return its beginning and its end: sales that come again differ at both."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _is_for_sale(product: ProductView) -> bool:
    return product.state == "open" and product.remaining > 0


def _told_state(product: ProductView) -> str:
    if product.state == "open":
        return "" if product.remaining > 0 else "sold out"
    return printable(product.state.replace("_", " "))


def _workers(workers: Sequence[WorkerView], count: int) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, width=12)
    for size in (9, 11, 11, 12, 12):
        table.add_column(no_wrap=True, justify="right", width=size)
    _add_head(table, "Workers", "process", "answers", "p99", "clients", "up for")
    for worker in workers[: count if count >= len(workers) else max(0, count - 1)]:
        told = (f"{_number(worker.rate)}/s", _milliseconds(worker.p99_ms), _number(worker.connections))
        table.add_row(str(worker.number), str(worker.pid), *told, _lasting(worker.up_s))
    if count < len(workers):
        table.add_row(Text(f"… {len(workers) - max(0, count - 1)} more", _SOFT))
    return table


def _add_head(table: Table, *words: str) -> None:
    table.add_row(*(Text(word, "bold" if place == 0 else _SOFT) for place, word in enumerate(words)))


def _number(value: float) -> str:
    """Return a number in eight characters at most."""
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    for size, sign in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {sign}"
    return f"{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{_number(value)} ms"


def _lasting(seconds: float) -> str:
    for size, sign, smaller, smaller_sign in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {sign} {seconds % size // smaller:.0f} {smaller_sign}"
    return f"{seconds // 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
