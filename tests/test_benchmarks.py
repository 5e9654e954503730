"""The benchmarks run, and their figures come from what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("ray", "pyarrow", "fsspec", "img2dataset")
# Runs the script in place of `python`, and says which of the heavy packages it imported.
PROBE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
runpy.run_path(sys.argv[0], run_name="__main__")
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, Any], str]:
    """What a smoke run prints to stdout and at the end of stderr."""
    return quick("inference.py")


@pytest.fixture(scope="module")
def step() -> tuple[dict[str, Any], str]:
    """As `run`, of the training step."""
    return quick("train_step.py")


def quick(name: str) -> tuple[dict[str, Any], str]:
    script = str(ROOT / "benchmarks" / name)
    command = [sys.executable, "-c", PROBE, script, "--quick", "--repeats", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    return json.loads(done.stdout), done.stderr.splitlines()[-1]


def test_inference_gives_the_ratios_of_what_it_measured(run: tuple[dict[str, Any], str]) -> None:
    found, _ = run
    rates = found["images_per_s_of"]
    assert found["transformers_images_per_s"] == rates["transformers fp32"] > 0
    assert found["images_per_s"] == max(rates["capfilt fp32"], rates["capfilt bf16"])
    assert found["ratio"] == pytest.approx(found["images_per_s"] / rates["transformers fp32"])
    expected = rates["capfilt fp32"] / rates["transformers fp32"]
    assert found["ratio_same_precision"] == pytest.approx(expected)
    assert len(set(rates.values())) == len(rates) == 5
    work, peak = found["least_gflop_per_image"], found["peak_gflops"]["fp32"]
    assert found["share_of_peak"] == pytest.approx(work * rates["capfilt fp32"] / peak)
    for part in found["parts"]["fp32"].values():
        assert part["ratio"] == part["transformers_s_per_image"] / part["s_per_image"]


def test_inference_computes_the_same_as_transformers(run: tuple[dict[str, Any], str]) -> None:
    found, _ = run
    assert 0 < found["max_logit_difference"] < 1e-4


def test_inference_counts_one_tower_pass_for_three_captions(
    run: tuple[dict[str, Any], str],
) -> None:
    passes = run[0]["tower_passes_per_image"]
    assert passes["capfilt captioner"] == passes["capfilt filter"] == 1
    assert passes["transformers filter"] == 2


def test_inference_needs_neither_ray_nor_arrow(run: tuple[dict[str, Any], str]) -> None:
    assert run[1] == ""


def test_train_step_gives_the_ratios_of_what_it_measured(step: tuple[dict[str, Any], str]) -> None:
    found, _ = step
    rates = found["samples_per_s_of"]
    assert found["samples_per_s"] == rates["capfilt"] > 0
    assert found["ratio"] == pytest.approx(rates["capfilt"] / rates["transformers"])
    expected = rates["capfilt"] / rates["transformers medium"]
    assert found["ratio_same_setting"] == pytest.approx(expected)
    assert len(set(rates.values())) == len(rates) == 4
    assert found["gflop_per_sample"] > 0


def test_train_step_computes_the_same_as_transformers(step: tuple[dict[str, Any], str]) -> None:
    assert step[0]["max_loss_difference"] < 1e-4


def test_train_step_needs_neither_ray_nor_arrow(step: tuple[dict[str, Any], str]) -> None:
    assert step[1] == ""


def test_features_kept_are_those_of_every_image_and_their_gain_is_a_ratio() -> None:
    found, heavy = quick("blip2_features.py")
    assert found["ratio"] == found["without_s_per_image"] / found["with_s_per_image"] > 0
    tokens, width, of_a_number = 5, 32, 4  # of the tiny encoder
    assert found["stored_bytes_per_image"] >= tokens * width * of_a_number
    assert found["stored_bytes_per_image"] < 2 * tokens * width * of_a_number
    assert heavy == "fsspec"  # by which the cache's files are published


def test_report_measures_what_it_made() -> None:
    options = ["--texts", "20000", "--gigabytes", "0.02", "--json"]
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    found = json.loads(done.stdout)
    assert found["texts"] == 20_000
    assert found["dry_run_threshold_s"] > 0
    assert 0 < found["report_html_mb"] < 5
    assert 21 < found["copied_mb"] < 22
    for name in ("cp", "cp_sync"):
        ratio = found["select_mb_per_s"] / found[f"{name}_mb_per_s"]
        assert found[f"ratio_to_{name}"] == pytest.approx(ratio)


def test_scale_simulates_workers_of_every_kind_without_a_loss() -> None:
    """A quarter of what the pages tell of: as many shards a worker, so a tail as long."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--json"]
    options = ["--shards", "2500", "--workers", "64"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr  # a shard lost or done twice is an error of its own
    found = json.loads(done.stdout)["scenarios"]
    assert found["even"]["efficiency"] > 0.98
    assert found["stragglers"]["efficiency"] > 0.97  # 0.98 where the very last try is not late
    assert found["stragglers"]["copies"] > 0
    # A slow worker takes 300 to 900 s for a shard.
    assert found["stragglers"]["tail_s"] < 200
