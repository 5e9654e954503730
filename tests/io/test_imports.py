from __future__ import annotations

import pkgutil
import subprocess
import sys

import capfilt.io


def test_io_runs_where_no_model_or_cluster_is_installed() -> None:
    names = [f"capfilt.io.{module.name}" for module in pkgutil.iter_modules(capfilt.io.__path__)]
    assert "capfilt.io.tar" in names
    heavy = ("torch", "transformers", "ray", "webdataset", "capfilt.models", "capfilt.run")
    script = f"import sys, {', '.join(names)}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
