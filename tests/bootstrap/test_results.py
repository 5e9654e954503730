from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from capfilt.bootstrap.page import page
from capfilt.bootstrap.plot import plot
from capfilt.bootstrap.results import Results
from tests.bootstrap.conftest import resolve

# Per seed.
IR = {"raw": (0.50, 0.54, 0.49), "filter": (0.55, 0.56, 0.57), "both": (0.60, 0.65, 0.61)}


def write(out: Path, seed: int, name: str, **figures: float) -> None:
    path = out / f"seed-{seed}" / "figures" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"retrieval": {"of": {}, "figures": figures}}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for arm, values in IR.items():
        for seed, value in enumerate(values):
            write(tmp_path, seed, arm, ir_r1=value)
    return tmp_path


def read(out: Path) -> Results:
    return Results.read(out, resolve("seeds=[0, 1, 2, 3]"))


def test_figures_have_mean_and_deviation_over_the_seeds_that_there_are(out: Path) -> None:
    results = read(out)
    assert results.seeds == (0, 1, 2)
    assert list(results.arms) == ["raw", "filter", "both"]
    for arm, values in IR.items():
        spread = results.arms[arm]["ir_r1"]
        assert spread.mean == pytest.approx(mean(values))
        assert spread.deviation == pytest.approx(stdev(values))


def test_differences_are_between_models_of_one_seed(out: Path) -> None:
    differences = read(out).differences
    assert list(differences) == ["filter - raw", "both - raw"]
    spread = differences["both - raw"]["ir_r1"]
    assert spread.values == pytest.approx((0.10, 0.11, 0.12))
    assert spread.deviation == pytest.approx(0.01)


def test_controls_and_rounds_are_held_against_what_they_are_for(tmp_path: Path) -> None:
    arms = ("raw", "both", "repeat", "continue", "shared", "both-2", "both-3")
    for number, arm in enumerate(arms):
        write(tmp_path, 0, arm, ir_r1=0.1 * number)
    differences = Results.read(tmp_path, resolve("seeds=[0]", "rounds=3")).differences
    assert {name: round(row["ir_r1"].mean, 6) for name, row in differences.items()} == {
        "both - raw": 0.1,
        "repeat - raw": 0.2,
        "continue - both": 0.2,
        "shared - both": 0.3,
        "both-2 - both": 0.4,
        "both-3 - both-2": 0.1,
    }


def test_seed_that_lacks_an_arm_takes_no_part_in_its_differences(out: Path) -> None:
    (out / "seed-1/figures/both.json").unlink()
    results = read(out)
    assert results.arms["both"]["ir_r1"].values == (0.60, 0.61)
    assert results.differences["both - raw"]["ir_r1"].values == pytest.approx((0.10, 0.12))


def test_arms_and_rounds_that_are_not_wanted_are_left_out(out: Path) -> None:
    write(out, 0, "both-2", ir_r1=0.7)
    for name in ("1", "2", "shared"):
        write(out, 0, f"modules-{name}", auc=0.8)
        write(out, 0, f"harvest-{name}", noise_ratio=0.2)
    less = Results.read(out, resolve("seeds=[0, 1]", "arms=[raw, both]", "rounds=1"))
    assert (list(less.arms), list(less.modules)) == (["raw", "both"], ["1"])
    assert set(less.modules["1"]) == {"auc", "noise_ratio"}
    more = Results.read(out, resolve("seeds=[0, 1]", "arms=[raw, both, shared]"))
    assert (list(more.arms), set(more.modules)) == (["raw", "both", "both-2"], {"1", "2", "shared"})


def test_single_seed_has_no_deviation(tmp_path: Path) -> None:
    write(tmp_path, 0, "raw", ir_r1=0.5)
    results = read(tmp_path)
    assert results.arms["raw"]["ir_r1"].deviation is None
    assert "| raw | - | - | 50.0 | 93.9 |" in page(results)


@pytest.mark.parametrize(("second", "is_warned"), [(0.20, False), (0.14, False), (0.12, True)])
def test_noise_ratio_that_falls_as_with_shared_weights_is_warned_of(
    second: float, is_warned: bool, tmp_path: Path
) -> None:
    for name, ratio in (("1", 0.2), ("2", second), ("shared", 0.05)):
        write(tmp_path, 0, f"harvest-{name}", noise_ratio=ratio)
    results = read(tmp_path)
    assert bool(results.warnings) == is_warned
    assert ("**Warning**: round 2: the noise ratio fell from 20.0%" in page(results)) == is_warned


@pytest.mark.parametrize(("second", "is_warned"), [(0.21, False), (0.12, True)])
def test_noise_ratio_of_a_round_is_held_against_the_same_seeds_first(
    second: float, is_warned: bool, tmp_path: Path
) -> None:
    for seed, ratio in enumerate((0.2, 0.45, 0.45)):
        write(tmp_path, seed, "harvest-1", noise_ratio=ratio)
    write(tmp_path, 0, "harvest-2", noise_ratio=second)
    assert bool(read(tmp_path).warnings) == is_warned


def test_page_has_percent_with_deviation_beside_the_papers_figures(out: Path) -> None:
    text = page(read(out))
    assert "| texts | C | F | IR@1 | BLIP TR@1 | BLIP IR@1 | BLIP B@4 | BLIP CIDEr |" in text
    assert "| filter | - | ✓ | 56.0 ± 1.0 | 94.1 | 82.8 | 38.1 | 128.2 |" in text
    assert "| both - raw | +11.0 ± 1.0 |" in text


def test_plot_of_the_same_results_has_the_same_bytes(out: Path, tmp_path: Path) -> None:
    plot(read(out), tmp_path / "a.svg")
    plot(read(out), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"IR@1, %" in (tmp_path / "a.svg").read_bytes()


def test_plot_without_matplotlib_says_what_to_install(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    plot(read(out), out / "results.svg")
    assert not (out / "results.svg").exists()
    assert "pip install 'capfilt[plot]'" in caplog.text
