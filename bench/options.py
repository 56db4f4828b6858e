"""Options that several commands have."""

from pathlib import Path

import click

from bench.load import DURATION_S_MAX, TIMEOUT_S_DEFAULT

json_option = click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file."
)
plot_option = click.option(
    "--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Draw them into this PNG file."
)

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(1, 2 * DURATION_S_MAX),
    default=TIMEOUT_S_DEFAULT,
    show_default=True,
    help="Seconds until the run is given up.",
)
