"""What travels with capfilt as files, handed out to be changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capfilt import catalog
from capfilt.errors import ConfigError


def test_copy_of_a_job_is_the_whole_folder_and_its_scripts_run(tmp_path: Path) -> None:
    copied = catalog.copy("jobs/nightly_capfilt", tmp_path / "new" / "place")
    assert copied == tmp_path / "new" / "place" / "nightly_capfilt"
    source = catalog.path("jobs/nightly_capfilt")
    for file in source.iterdir():
        assert (copied / file.name).read_bytes() == file.read_bytes()
    assert os.access(copied / "run.sh", os.X_OK)


def test_copy_of_a_file_lies_in_the_folder(tmp_path: Path) -> None:
    copied = catalog.copy("pipelines/bootstrap.yaml", tmp_path)
    assert copied == tmp_path / "bootstrap.yaml"
    assert copied.read_bytes() == catalog.path("pipelines/bootstrap.yaml").read_bytes()


def test_copy_never_overwrites(tmp_path: Path) -> None:
    mine = tmp_path / "nightly_capfilt" / "config.yaml"
    mine.parent.mkdir()
    mine.write_text("seed: 7\n")
    with pytest.raises(ConfigError, match="nightly_capfilt is there already"):
        catalog.copy("jobs/nightly_capfilt", tmp_path)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["seed: 7\n"]


@pytest.mark.parametrize("name", ["jobs/nonsense", "nonsense", "README.md", "jobs/../README.md"])
def test_copy_of_what_is_not_there_names_what_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not part of capfilt; .*jobs/nightly_capfilt"):
        catalog.copy(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_copy_into_a_file_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        catalog.copy("pipelines/bootstrap.yaml", tmp_path / "file")
