import urllib.request
from pathlib import Path

import pytest

from capfilt.demo.demo import demo
from capfilt.demo.serve import serve
from capfilt.errors import ConfigError
from capfilt.record import Source, Verdict

pytest.importorskip("img2dataset")


def test_serve_gives_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    with serve(tmp_path) as url, urllib.request.urlopen(f"{url}/a.jpg") as response:
        assert response.read() == b"image"
    assert url.startswith("http://127.0.0.1:")


def test_demo_runs_every_part_and_again_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demo(tmp_path / "demo", 12)
    assert "untrained" in capsys.readouterr().out
    assert summary.tally.read == 12
    assert summary.shards_failed == ()
    for verdict in (Verdict.KEPT, Verdict.DROPPED):  # both paths of a filter are shown
        assert summary.tally.texts[Source.SYNTHETIC, verdict] > 0
    again = demo(tmp_path / "demo", 12)
    assert (again.shards_done, again.shards_before) == (0, summary.shards_done)


def test_demo_of_which_the_download_was_cut_short_starts_it_anew(tmp_path: Path) -> None:
    summary = demo(tmp_path / "demo", 12)
    (tmp_path / "demo" / "web" / "00003_stats.json").unlink()
    assert demo(tmp_path / "demo", 12).tally.read == summary.tally.read == 12


def test_demo_leaves_a_folder_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        demo(tmp_path, 12)
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(ConfigError, match="other arguments"):
        demo(tmp_path, 12)


def test_demo_of_too_few_pictures_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pictures"):
        demo(tmp_path, 3)
