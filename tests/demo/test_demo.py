import io
import json
import os
import shutil
import urllib.request
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from capfilt.cli import app
from capfilt.demo.dataset import write_images
from capfilt.demo.demo import CAPTIONER, CHECKPOINT, Demonstration, demo, greedy_captions_true
from capfilt.demo.serve import serve
from capfilt.demo.world import EVALUATION, draw_pictures
from capfilt.errors import CapfiltError, CommitError, ConfigError
from capfilt.record import Source, Verdict

pytest.importorskip("img2dataset")

PICTURES = 40
MEBIBYTE = 2**20


def test_serve_gives_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    with serve(tmp_path) as url, urllib.request.urlopen(f"{url}/a.jpg") as response:
        assert response.read() == b"image"
    assert url.startswith("http://127.0.0.1:")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Demonstration, str]:
    """A demo's folder, what came of it, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("shown") / "demo", io.StringIO()
    with redirect_stdout(printed):
        result = demo(folder, PICTURES)
    return folder, result, printed.getvalue()


def test_demo_shows_every_part_and_again_does_nothing(
    shown: tuple[Path, Demonstration, str],
) -> None:
    folder, result, printed = shown
    printed = " ".join(printed.split())
    assert f"fetched {PICTURES}" in printed
    assert "all as committed" in printed
    assert "web: one word wrong" in printed
    assert str(folder / "dataset/report.html") in printed
    assert (folder / "dataset/report.html").is_file()
    assert result.run.tally.read == PICTURES == result.found.images
    assert result.run.shards_failed == ()
    texts = result.run.tally.texts
    assert texts[Source.SYNTHETIC, Verdict.KEPT] > 0 < texts[Source.WEB, Verdict.DROPPED]
    assert result.found.itm_auc is not None
    assert result.found.itm_auc > 0.94  # 0.98 over 1,000 pictures
    assert result.found.noise_ratio < 0.3  # 0.05
    assert result.found.captions_written_true > 0.75  # 0.90
    assert result.found.filter_precision > 0.8  # 0.93
    again = demo(folder, PICTURES, quiet=True)
    assert (again.run.shards_done, again.run.shards_before) == (0, result.run.shards_done)
    assert again.found == result.found
    with pytest.raises(ConfigError, match="other arguments"):
        demo(folder, PICTURES + 1)


def test_demo_of_another_version_is_told_apart_and_left_as_it_is(
    shown: tuple[Path, Demonstration, str], tmp_path: Path
) -> None:
    folder, _, _ = shown
    record = json.loads((folder / "demo.json").read_bytes())
    assert len({record["truth"], record["run"]}) == 2
    for changed in ("truth", "run"):
        (tmp_path / "demo.json").write_text(json.dumps(record | {changed: "of another version"}))
        with pytest.raises(ConfigError, match="another version"):
            demo(tmp_path, PICTURES)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_demo_of_which_the_dataset_is_damaged_is_an_error(
    shown: tuple[Path, Demonstration, str], tmp_path: Path
) -> None:
    copy = shutil.copytree(shown[0], tmp_path / "demo")
    data = copy / "dataset" / "data" / "00001.tar"
    content = data.read_bytes()
    data.write_bytes(content[:-1] + b"x")
    with pytest.raises(CommitError, match=r"data/00001\.tar.*; remove .*/dataset and try again"):
        demo(copy, PICTURES, quiet=True)


def test_demo_of_which_a_shard_fails_is_an_error_and_the_same_again_mends_it(
    shown: tuple[Path, Demonstration, str], tmp_path: Path
) -> None:
    copy = shutil.copytree(shown[0], tmp_path / "demo")
    shard = copy / "web" / "00001.tar"
    content, times = shard.read_bytes(), shard.stat()
    (copy / "dataset" / "commits" / "00001.json").unlink()
    shard.write_bytes(b"no tar")
    with pytest.raises(CapfiltError, match=r"1 of 4 shards failed, 00001 with: .*; the same"):
        demo(copy, PICTURES, quiet=True)
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert demo(copy, PICTURES, quiet=True).found == shown[1].found


def test_demo_of_which_the_download_was_cut_short_starts_it_anew_and_prints_json(
    shown: tuple[Path, Demonstration, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, first, _ = shown
    shutil.copytree(folder, tmp_path / "demo")
    (tmp_path / "demo" / "web" / "00003_stats.json").unlink()
    app(
        ["demo", str(tmp_path / "demo"), "--pictures", str(PICTURES), "--json"],
        standalone_mode=False,
    )
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert "downloading" not in printed.err
    assert "downloading" in (tmp_path / "demo" / "demo.log").read_text()  # img2dataset says so
    assert found["images"] == PICTURES
    assert found["itm_auc"] == round(first.found.itm_auc or 0.0, 4)
    assert {
        "captions_true", "itm_auc_hard_lies", "noise_ratio", "filter_precision", "filter_recall",
        "seconds",
    } <= found.keys()  # fmt: skip


def test_demo_leaves_a_folder_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        demo(tmp_path, PICTURES)


def test_demo_of_too_few_pictures_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pictures"):
        demo(tmp_path, 3)


def test_the_bundled_checkpoint_is_small() -> None:
    size = sum(file.stat().st_size for file in CHECKPOINT.rglob("*"))
    assert size < 12 * MEBIBYTE


def test_the_bundled_captioner_says_what_is_true_of_scenes_it_has_not_seen(tmp_path: Path) -> None:
    pictures = list(draw_pictures(200, EVALUATION, seed=5))
    write_images(tmp_path, pictures, 128)
    assert greedy_captions_true(CAPTIONER, tmp_path, pictures) >= 0.9  # 0.94 over 1,000
