"""`python -m bench` is the command line."""

import sys


def main() -> None:
    """Run the command line, or say what is missing."""
    try:
        from bench.cli import cli
    except ModuleNotFoundError as error:
        sys.stderr.write(f"the benchmark needs {error.name}: pip install -e '.[bench]'\n")
        sys.exit(1)
    cli(prog_name="python -m bench")


if __name__ == "__main__":
    main()
