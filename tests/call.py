"""`capfilt` in the tests' own process, which has torch imported already."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from capfilt import cli


def capfilt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call a command line; its exit code and streams, its logs among them, are a process's own."""
    words = ["capfilt", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    root, on_sigterm = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    with (
        patch.object(sys, "argv", words),
        patch.object(root, "handlers", []),
        patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
