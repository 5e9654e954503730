"""Finds the stages (`pipelines/`) and jobs (`jobs/`) that travel with capfilt as files.

A wheel carries them in `capfilt/_bundled/`; in a checkout the top-level folders come first.
"""

from __future__ import annotations

import ast
import runpy
import shutil
from pathlib import Path
from typing import Any

from capfilt.errors import ConfigError

KINDS = ("jobs", "pipelines")
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
    raise ConfigError(_unknown(name))


def copy(name: str, folder: Path) -> Path:
    """Put a copy of a bundled file or folder into a folder of the user's, who may change it.

    Raises:
        ConfigError: Nothing of that name travels with capfilt, or the folder has one already.
    """
    if name.split("/")[0] not in KINDS or ".." in Path(name).parts:
        raise ConfigError(_unknown(name))
    source = path(name)
    target = folder / source.name
    if target.exists():
        raise ConfigError(f"{target} is there already, and nothing is overwritten: move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
        for file in target.rglob("*.sh"):
            file.chmod(0o755)  # an installer may have dropped it
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


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


def _unknown(name: str) -> str:
    kinds = [kind for kind in KINDS if name.split("/")[0] == kind] or KINDS
    known = ", ".join(f"{kind}/{found.name}" for kind in kinds for found in _all(kind))
    return f"{name}: not part of capfilt; there are {known}"


def _all(kind: str) -> list[Path]:
    """The files and folders of a kind, those of the first root that has any."""
    for root in _ROOTS:
        found = sorted(p for p in (root / kind).glob("*") if p.name[0] not in "._")
        if found and (root.name == "_bundled" or (root / "pyproject.toml").exists()):
            return found
    return []
