"""Options that several commands have."""

from collections.abc import Iterable
from pathlib import Path

import click
from click.core import ParameterSource

from bench.load import DURATION_S_MAX, TIMEOUT_S_DEFAULT


def _check_writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Find out before the run, not after it, whether its figures can be written; leave no file behind."""
    if path is None:
        return None
    try:
        is_new = not path.exists()
        if is_new or path.is_file():  # a pipe would take the attempt for the end
            path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise click.BadParameter(f"cannot write '{path}': {error.strerror}", context, parameter) from error
    return path


_FILE = click.Path(dir_okay=False, path_type=Path)
json_option = click.option(
    "--json", "json_path", type=_FILE, callback=_check_writable, help="Write the figures to this file."
)
plot_option = click.option(
    "--plot", "plot_path", type=_FILE, callback=_check_writable, help="Draw them into this PNG file."
)

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(1, 2 * DURATION_S_MAX),
    default=TIMEOUT_S_DEFAULT,
    show_default=True,
    help="Seconds until the run is given up.",
)


def refuse_options(ctx: click.Context, names: Iterable[str]) -> None:
    """Raise UsageError if an option of a group is given in front of one of its commands."""
    for name in names:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"options of '{ctx.invoked_subcommand}' go behind its name")
