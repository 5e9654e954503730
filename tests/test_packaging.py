"""The wheel: one import name, with the stages and jobs inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    [found] = folder.glob("capfilt-*.whl")
    return found


def test_wheel_ships_one_import_name_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"capfilt"}
    assert not [name for name in names if "test" in name]
    assert {"capfilt/demo/sprites.webp", "capfilt/demo/sprites.LICENSE"} <= set(names)
    shipped = {name for name in names if name.startswith("capfilt/_bundled/")}
    for folder in ("pipelines", "jobs"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"capfilt/_bundled/{file.relative_to(ROOT).as_posix()}" in shipped


def test_installed_catalog_finds_its_own_and_not_a_users_folder(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "jobs").mkdir()  # somebody else's, beside the installed package
    (site / "jobs" / "nightly_capfilt").mkdir()
    code = (
        "from pathlib import Path\n"
        "from capfilt import catalog\n"
        "print(catalog.path('jobs/nightly_capfilt/config.yaml'))\n"
        "print(catalog.stage('bootstrap')['bootstrap'].__name__)\n"
        "print(catalog.copy('jobs/nightly_capfilt', Path('copied')))\n"
        "try: catalog.path('pipelines/nonsense.py')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,  # first on the path, so that this is the capfilt that is imported
        capture_output=True,
        text=True,
        check=True,
    )
    config, stage, copied, error = done.stdout.splitlines()
    assert Path(config) == site / "capfilt/_bundled/jobs/nightly_capfilt/config.yaml"
    assert stage == "bootstrap"
    files = {file.name for file in (ROOT / "jobs/nightly_capfilt").iterdir()}
    assert {file.name for file in (site / copied).iterdir()} == files
    assert os.access(site / copied / "run.sh", os.X_OK)
    assert error.startswith("ConfigError pipelines/nonsense.py: not part of capfilt")
    assert "bootstrap" in error
