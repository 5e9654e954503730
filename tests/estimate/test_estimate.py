"""`capfilt plan`: what it says of an input against what a run then does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import RunConfig, resolve
from capfilt.errors import ConfigError, InputError
from capfilt.estimate import estimate
from capfilt.estimate.census import take_census
from capfilt.estimate.probe import _probe
from capfilt.io.inputs import find_shards
from capfilt.record import ModelIdentity, Source
from capfilt.run.job import run
from capfilt.run.task import Task
from capfilt.run.where import Where
from capfilt.run.worker import Worker
from tests.run.conftest import captioner, config, filter_, web, write_shard  # noqa: F401


def test_estimate_of_everything_is_what_the_run_does(
    config: RunConfig,  # noqa: F811
    tmp_path: Path,
) -> None:
    for index in range(2):
        write_shard(tmp_path / "web", index, 12)
    place = str(tmp_path / "web")
    before = sorted(tmp_path.rglob("*"))
    found = estimate(config, place, images=1000, price_per_hour=3.6)
    assert sorted(tmp_path.rglob("*")) == before
    done = run(config, Where(place, str(tmp_path / "out"), local=True))
    assert found.probe.tally == done.tally
    assert (found.census.images, found.census.is_exact) == (24, True)
    kept = found.texts[Source.SYNTHETIC]
    assert kept.low == kept.high == done.tally.kept_share(Source.SYNTHETIC)
    written = sum(
        file.stat().st_size
        for name in ("data", "ledger")
        for file in (tmp_path / "out" / name).iterdir()
    )
    assert found.output_bytes == written
    assert found.hours == pytest.approx(24 / found.probe.images_per_s / 3600)
    assert found.price == pytest.approx(3.6 * found.hours)
    assert found.to_dict()["unit"] == "machine"


def test_estimate_looks_at_no_more_than_it_is_told_and_the_same_each_time(
    config: RunConfig,  # noqa: F811
    web: str,  # noqa: F811
) -> None:
    config = replace(config, images=replace(config.images, dedupe="exact"))
    first, again = (estimate(config, web, images=8) for _ in range(2))
    assert [tally.read for tally in first.probe.tallies] == [4, 4]
    assert first.probe.shards == again.probe.shards
    assert first.probe.tally == again.probe.tally
    assert first.kept == again.kept
    assert first.census.images == 48
    assert first.to_dict()["not_looked_for"] == ["exact duplicates"]
    assert first.kept.low < first.kept.share < first.kept.high
    assert first.price is None


def test_estimate_goes_round_a_shard_that_cannot_be_read(
    config: RunConfig,  # noqa: F811
    web: str,  # noqa: F811
) -> None:
    drawn = estimate(config, web, images=4).probe.shards[0]
    Path(drawn.url).write_bytes(Path(drawn.url).read_bytes()[:700])
    found = estimate(config, web, images=8).probe
    assert found.unreadable == (drawn.id,)
    assert len(found.shards) == 2
    for shard in Path(web).glob("*.tar"):
        shard.write_bytes(b"no tar")
    with pytest.raises(InputError, match="none of 4 shards could be read"):
        estimate(config, web, images=8)


def test_estimate_refuses_what_it_cannot_do(config: RunConfig, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="--probe-images must be at least 1"):
        estimate(config, str(tmp_path), images=0)
    with pytest.raises(ConfigError, match="--gpu-hour-price must be 0 or more"):
        estimate(config, str(tmp_path), price_per_hour=-1.0)
    write_shard(tmp_path / "web", 0, 2, finished=False)
    write_shard(tmp_path / "web", 1, 2)
    (tmp_path / "web/00001.tar").unlink()
    with pytest.raises(InputError, match="every shard is unfinished"):
        estimate(config, str(tmp_path / "web"))


@pytest.mark.parametrize(("with_stats", "counted"), [(3, 3), (1, 1), (0, 2)])
def test_census_goes_by_size_where_a_count_is_missing(
    with_stats: int, counted: int, tmp_path: Path
) -> None:
    for index in range(3):
        write_shard(tmp_path, index, 20, finished=index < with_stats)
    shards = find_shards(str(tmp_path), allow_unfinished=True).shards
    found = take_census(shards, shards[:2], resolve(options=STUBS).images)
    assert (found.counted, found.has_stats) == (counted, with_stats > 0)
    assert found.is_exact == (with_stats == 3)
    assert found.images == pytest.approx(60, abs=2)
    assert found.size_bytes == sum(file.stat().st_size for file in tmp_path.glob("*.tar"))


STUBS = {"captioner": "stub", "filter": "none"}


class SlowToStart:
    """Takes two seconds for its first batch, and a tenth for any other."""

    pixels = None
    identity = ModelIdentity("stub", "stub", "0" * 64)

    def __init__(self) -> None:
        from capfilt.models.images import PixelSpec

        self.pixels = PixelSpec(16)
        self.times: list[tuple[float, float]] = []  # when each call began and ended

    def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
        began = time.monotonic()
        time.sleep(0.1 if self.times else 2.0)
        self.times.append((began, time.monotonic()))
        return [("a caption",) for _ in keys]


def test_probe_speed_is_of_a_worker_that_is_warm(tmp_path: Path) -> None:
    for index in range(2):
        write_shard(tmp_path / "web", index, 40)
    settings = resolve(options=STUBS, overrides=["compute.batch_size=8"])
    stub = SlowToStart()
    task = Task(settings, {"captioner": stub.identity}, str(tmp_path / "out"))
    found = _probe(Worker(task, stub, None), find_shards(str(tmp_path / "web")).shards, load_s=0.0)
    assert found.tally.read == 80
    assert len(stub.times) == 10
    warm_s = stub.times[-1][1] - stub.times[0][1]
    assert found.images_per_s == pytest.approx(72 / warm_s, rel=0.4)  # 80; 28 with the first batch
    busy_s = sum(ended - began for began, ended in stub.times[1:])
    assert found.busy_share == pytest.approx(busy_s / warm_s, abs=0.2)
