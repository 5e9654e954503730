"""`capfilt plan` as a user meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capfilt.cli import main
from tests.run.conftest import captioner, filter_, write_shard  # noqa: F401

Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Plan:
    """Calls it over three shards of six; gives the exit code and both streams."""
    for index in range(3):
        write_shard(tmp_path / "web", index, 6)

    def call(*options: str) -> tuple[int, str, str]:
        models = ("--captioner", captioner, "--filter", filter_)
        monkeypatch.setattr(
            sys, "argv", ["capfilt", "plan", str(tmp_path / "web"), *models, *options]
        )
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), *capsys.readouterr()
        raise AssertionError("typer ends a command by SystemExit")

    return call


def test_plan_says_hours_price_size_and_shares(plan: Plan) -> None:
    code, out, err = plan("--gpu-hour-price", "2.5", "--probe-images", "6")
    assert code == 0, err
    rows = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    found = {name: value.strip() for name, value in rows.items()}
    assert found["images"] == "18 (_stats.json)"
    assert found["machine"].startswith("CPU, models loaded in ")
    assert "machine hours" in found["takes"]
    assert found["price"].endswith("at 2.5 an hour")
    assert {"shards", "batch", "speed", "output", "images kept", "web texts kept"} <= found.keys()
    assert "from the first 6 images of 0000" in out


def test_plan_prints_json(plan: Plan) -> None:
    code, out, err = plan("--json", "--probe-images", "6", "--preset", "blip")
    assert code == 0, err
    found = json.loads(out)
    assert (found["images"], found["probe"]["read"], found["price"]) == (18, 6, None)
    assert found["hours"] == pytest.approx(18 / found["images_per_s"] / 3600, abs=1e-4)
    assert found["kept"]["low"] <= found["kept"]["share"] <= found["kept"]["high"]


def test_plan_wrong_usage_is_one_line(plan: Plan) -> None:
    code, out, err = plan("--probe-images", "0")
    assert (code, out) == (2, "")
    assert err == "capfilt: --probe-images must be at least 1, is 0\n"
