"""The jobs as a user gets them: copied by the catalog, and filled in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt import catalog

ROOT = Path(__file__).resolve().parents[2]
JOBS = ("nightly_capfilt", "pretrain_blip", "pretrain_blip2")
STEPS = {
    "nightly_capfilt": ["ingest", "run", "report"],
    "pretrain_blip": ["train"],
    "pretrain_blip2": ["stage1", "stage2"],
}
BASH = shutil.which("bash") or "bash"


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of each job's folder in turn, with nothing filled in."""
    return catalog.copy(f"jobs/{request.param}", tmp_path)


def fill(folder: Path, **values: str) -> None:
    """Write values into a copy's job.env, as a person does."""
    file = folder / "job.env"
    lines = file.read_text().splitlines()
    for name, value in values.items():
        lines[lines.index(f"{name}=")] = f"{name}={value}"
    file.write_text("\n".join(lines) + "\n")
