"""The commands `http` and what belongs to it."""

from pathlib import Path

import click

from bench import compare as over_tcp
from bench.http import compare
from bench.options import json_option
from bench.report import print_table, print_targets, tell_step, write_json


@click.command(name="http")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--duration", type=click.FloatRange(0.1, 600), default=2.0, show_default=True, help="Seconds of each of six runs."
)
@json_option
def http_command(*, rounds: int, duration: float, json_path: Path | None) -> None:
    """Compare POST /api/purchase with a constant and with one EVALSHA per request, in one go and in turns."""
    comparison = compare.compare(round_count=rounds, duration_s=duration, progress=tell_step)
    tell_step("")
    targets = compare.targets_of(comparison)
    click.echo(f"Medians of {rounds} rounds of {duration:g} s; ratios within a round: median (lowest..highest).\n")
    print_table(over_tcp.ROWS_HEAD, over_tcp.rows_of(comparison, compare.PEER_NAMES))
    click.echo()
    print_targets(targets)
    if json_path is not None:
        write_json(json_path, compare.as_json(comparison, targets))
