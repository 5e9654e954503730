"""The command line. A command parses, makes one library call and prints what came of it.

stdout is the result (`--json` for machines), stderr has progress and logs. Exit codes: 0 all done,
1 some failed (or a training that cannot go on), 2 wrong usage, config, model or input, 130
interrupted.
"""

from __future__ import annotations

import sys

from capfilt.cli.app import app, say, speaker

# Commands stand in `capfilt --help` in this order.
# isort: off
from capfilt.cli import run, jobs, plan, report, select, diff, export  # noqa: F401
from capfilt.cli import ingest, train, evaluate, convert, copy, demo  # noqa: F401

# isort: on
from capfilt.errors import CapfiltError, TrainingError

INTERRUPTED = 130  # typer's exit code for Ctrl-C


def main() -> None:
    """The `capfilt` command: an error for people is one line; `--debug` adds the traceback."""
    try:
        app()
    except CapfiltError as error:
        if _debugging():
            raise
        say(str(error))
        sys.exit(1 if isinstance(error, TrainingError) else 2)
    except Exception as error:
        if _debugging():
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        say(f"unexpected {what} (capfilt --debug ... shows where)")
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED and not speaker():
            say("interrupted; the same command goes on where it stopped")
        raise


def _debugging() -> bool:
    return "--debug" in sys.argv[1:]
