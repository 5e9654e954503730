"""Finds the stages (`pipelines/`) and jobs (`jobs/`) that travel with capfilt as files.

A wheel carries them in `capfilt/_bundled/`; in a checkout the top-level folders come first.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from capfilt.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE.parent, _PACKAGE / "_bundled")


def path(name: str) -> Path:
    """Where a bundled file or folder lies, e.g. `path("pipelines/bootstrap.py")`.

    Raises:
        ConfigError: Nothing of that name travels with capfilt; names what does.
    """
    for root in _ROOTS:
        found = root / name
        # Beside an installed package, a folder called `jobs` is somebody else's.
        is_ours = root.name == "_bundled" or (root / "pyproject.toml").exists()
        if is_ours and found.exists():
            return found
    kind = name.split("/")[0]
    known = sorted(
        {p.stem for root in _ROOTS for p in (root / kind).glob("*") if p.name[0] not in "._"}
    )
    raise ConfigError(f"{name}: not part of capfilt; {kind} has {', '.join(known) or 'nothing'}")


def stage(name: str) -> dict[str, Any]:
    """Run the file of a stage and return its names, as `runpy.run_path` does."""
    return runpy.run_path(str(path(f"pipelines/{name}.py")), run_name=f"capfilt_stage_{name}")
