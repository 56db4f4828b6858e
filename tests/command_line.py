"""Runs the entry point in this process: all that a command does, without a quarter of a second of starting Python."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from flashsale import cli

Result = subprocess.CompletedProcess[str]


def call_here(arguments: Sequence[str | bytes], environment: Mapping[str, str]) -> Result:
    """Return how `flashsale ARGUMENTS` ends, and what it prints."""
    words = ["flashsale", *map(os.fsdecode, arguments)]
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)  # which the entry point sets
    try:
        with (
            Path(os.devnull).open() as nothing,
            patch.dict(os.environ, environment, clear=True),
            patch.object(sys, "argv", words),
            patch.object(sys, "stdin", nothing),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Result(words, int(str(ended.value.code)), out.getvalue(), err.getvalue())
