"""Pictures of results, as PNG files, drawn without a screen."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot looks for a screen

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.compare import PEER_NAMES, Comparison, throughput
from bench.load import TICK_S
from bench.result import Result

_COLOURS = {"success": "#2a9d6f", "sold out": "#3d6fb6", "other": "#c8553d"}
_PEER_COLOURS = {"a": "#2a9d6f", "b": "#c8553d", "c": "#b8bcc4", "d": "#e0a458"}
_INK = "#2b2f36"
_STYLE: Any = {
    "figure.dpi": 130,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa0aa",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_BAR_WIDTH = 0.21
_MARKED = (50.0, 90.0, 99.0, 99.9, 99.99)


def plot_result(result: Result, path: Path) -> None:
    """Draw the latency by percentile and the answers over time."""
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        _draw_percentiles(left, result)
        _draw_samples(right, result)
        figure.suptitle(
            f"{result.request_count:,} requests on {result.connection_count:,} connections: "
            f"{result.throughput_per_s:,.0f} answers/s",
            x=0.008,
            ha="left",
            fontweight="bold",
        )
        figure.savefig(path, format="png")  # whatever it is called
        plt.close(figure)


def _draw_percentiles(axes: Any, result: Result) -> None:
    """Draw latency against percentile; the axis is stretched so that every nine takes as much room."""
    shares, latencies_ms = [1.0], [result.latency_ms(0.0)]
    total_count = result.answer_count
    seen_count = 0
    for latency_us, count in sorted(result.latencies_us.items()):
        seen_count += count
        shares.append(1 / max(1 - seen_count / total_count, 1 / total_count))
        latencies_ms.append(max(latency_us, 1) / 1e3)
    axes.plot(shares, latencies_ms, color=_COLOURS["sold out"], linewidth=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    marked = [percentile for percentile in _MARKED if 1 / (1 - percentile / 100) <= max(total_count, 10)]
    axes.set_xticks([1 / (1 - percentile / 100) for percentile in marked], [f"{p:g} %" for p in marked])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(y=0.08)
    for percentile in marked:
        value_ms = result.latency_ms(percentile)
        axes.plot(1 / (1 - percentile / 100), value_ms, "o", color=_COLOURS["sold out"], markersize=4)
        axes.annotate(
            f"{value_ms:.2f}",
            (1 / (1 - percentile / 100), value_ms),
            xytext=(-4, 6),
            textcoords="offset points",
            ha="right",
        )
    axes.set(title="Latency by percentile", xlabel="of all answers are faster", ylabel="milliseconds")


def _draw_samples(axes: Any, result: Result) -> None:
    """Draw answers a second by kind, one step for each whole sample."""
    samples = result.samples[:-1] or result.samples
    edges_s = [index * TICK_S for index in range(len(samples) + 1)]
    layers = {
        "success": [sample.success_count / TICK_S for sample in samples],
        "sold out": [sample.sold_out_count / TICK_S for sample in samples],
        "other": [sample.other_count / TICK_S for sample in samples],
    }
    base = [0.0] * len(samples)
    for name, values in layers.items():
        if not any(values):
            continue
        top = [low + value for low, value in zip(base, values, strict=True)]
        axes.stairs(top, edges_s, baseline=base, fill=True, color=_COLOURS[name], label=name, alpha=0.9)
        base = top
    axes.set(title="Answers over time", xlabel="seconds", ylabel="answers per second", xlim=(0, edges_s[-1]))
    axes.set_ylim(0, max(base, default=1.0) * 1.2 or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.legend(loc="upper right", ncols=3)


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the median throughput by shape and peer as bars, with the lowest and highest round as whiskers."""
    shapes = list(comparison.cells)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(13, 4.6), layout="constrained")
        for peer, name in PEER_NAMES.items():
            present = [shape for shape in shapes if peer in comparison.cells[shape]]
            places = [_place(comparison, shape, peer) for shape in present]
            medians = [comparison.median_of(shape, peer, throughput) for shape in present]
            rounds = [[cell.throughput_per_s for cell in comparison.cells[shape][peer]] for shape in present]
            below = [middle - min(values) for middle, values in zip(medians, rounds, strict=True)]
            above = [max(values) - middle for middle, values in zip(medians, rounds, strict=True)]
            axes.bar(
                places,
                medians,
                _BAR_WIDTH * 0.94,
                yerr=[below, above],
                error_kw={"ecolor": "#6b7280", "elinewidth": 1, "capsize": 2},
                color=_PEER_COLOURS[peer],
                label=f"({peer}) {name}",
            )
            for place, middle, high in zip(places, medians, above, strict=True):
                axes.annotate(
                    _thousands(middle), (place, middle + high), xytext=(0, 3), textcoords="offset points", ha="center"
                )
        axes.set_xticks(
            range(len(shapes)), [shape.replace(" x ", " connections x ").replace(", ", "\n") for shape in shapes]
        )
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.margins(y=0.12)
        axes.set(title="Answers per second: median of the rounds, lowest and highest", ylabel="answers per second")
        axes.legend(loc="upper left")
        figure.savefig(path, format="png")  # whatever it is called
        plt.close(figure)


def _place(comparison: Comparison, shape: str, peer: str) -> float:
    """Return where the bar of a peer stands: those of a shape side by side around its place on the axis."""
    peers = list(comparison.cells[shape])
    return list(comparison.cells).index(shape) + (peers.index(peer) - (len(peers) - 1) / 2) * _BAR_WIDTH


def _thousands(value: float, _: object = None) -> str:
    if value < 1_000:
        return f"{value:.0f}"
    return f"{value / 1e3:,.0f} k" if value >= 10_000 else f"{round(value / 1e3, 1):g} k"
