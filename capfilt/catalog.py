"""Finds the stages (`pipelines/`) and jobs (`jobs/`) that travel with capfilt as files.

A wheel carries them in `capfilt/_bundled/`; in a checkout the top-level folders come first.
"""

from __future__ import annotations

import ast
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
    known = sorted({found.stem for found in _all(kind)})
    raise ConfigError(f"{name}: not part of capfilt; {kind} has {', '.join(known) or 'nothing'}")


def stage(name: str) -> dict[str, Any]:
    """Run the file of a stage and return its names, as `runpy.run_path` does."""
    return runpy.run_path(str(path(f"pipelines/{name}.py")), run_name=f"capfilt_stage_{name}")


def trainings() -> dict[str, str]:
    """The stages that train, those with a `CONFIG`, and what each does in a line; none is run."""
    found = {}
    for file in _all("pipelines"):
        if file.suffix != ".py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [
            target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
        ]
        if any(isinstance(name, ast.Name) and name.id == "CONFIG" for name in names):
            first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[file.stem] = first_line.partition(": ")[2]
    return found


def _all(kind: str) -> list[Path]:
    """The files and folders of a kind, those of the first root that has any."""
    for root in _ROOTS:
        found = sorted(p for p in (root / kind).glob("*") if p.name[0] not in "._")
        if found and (root.name == "_bundled" or (root / "pyproject.toml").exists()):
            return found
    return []
