"""How much memory a driver takes over many shards, and a worker that may not take more."""

from __future__ import annotations

import logging
import multiprocessing
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import RunConfig, resolve
from capfilt.io import outputs
from capfilt.io.commits import Commit, InputRecord, OutputRecord, encode
from capfilt.record import Source, Verdict
from capfilt.run import job
from capfilt.run.engine import Done, Outcome, Work
from capfilt.run.job import run
from capfilt.run.schedule import Schedule
from capfilt.run.task import Task
from capfilt.run.where import Where
from capfilt.tally import Tally
from tests.checkpoints import make_captioner
from tests.faults.conftest import Undisturbed
from tests.run.conftest import hashes, write_shard

WORKERS = 8
log = logging.getLogger(__name__)
TEXTS = Counter({(Source.WEB, Verdict.KEPT): 5, (Source.SYNTHETIC, Verdict.DROPPED): 3})
COUNTS = Tally(Counter({Verdict.KEPT: 7, Verdict.FAILED: 1}), TEXTS).to_dict()


class Workers:
    """An engine whose workers take no time and write empty files; the real schedule deals out."""

    workers = WORKERS

    def __init__(self, task: Task) -> None:
        self._task = task
        self._config = task.config.output
        self._out = Path(task.output_url)
        self.grown: list[int] = []  # bytes of this process, every hundredth of the shards

    def in_flight(self) -> Tally:
        return Tally()

    def execute(self, works: Iterable[Work | None]) -> Iterator[Outcome | None]:
        for folder in ("data", "ledger", "commits"):
            (self._out / folder).mkdir(exist_ok=True)
        schedule = Schedule(works, max_attempts=3, clock=time.monotonic)
        for worker in range(WORKERS):
            schedule.join(worker)
        while not schedule.is_finished:
            for each in list(schedule.assign()):
                shard_id = each.work.shard.id
                schedule.done(each.worker, shard_id)
                yield Done(self._commit(each.work))
                if shard_id.endswith("00"):
                    self.grown.append(own_bytes())

    def _commit(self, work: Work) -> Commit:
        shard = work.shard
        made = (outputs.data_path(shard.id, self._config), outputs.ledger_path(shard.id))
        for path in made:
            (self._out / path).touch()
        commit = Commit(
            shard=shard.id,
            input=InputRecord.of(shard),
            fingerprint=self._task.fingerprint,
            models=self._task.models,
            counts=COUNTS,
            outputs={path: OutputRecord(0, "0" * 64) for path in made},
            telemetry={"seconds": 1.0, "worker": "stub", "device": "none", "ended": 0.0},
        )
        (self._out / outputs.commit_path(shard.id)).write_bytes(encode(commit))
        return commit


def own_bytes() -> int:
    """Memory of this process that it does not share with files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def drive(config: RunConfig, folder: Path, shards: int, results: Any) -> None:
    """A run over many shards and a resume, in a process of its own.

    Tells the bytes at its beginning and every hundred shards, those after the resume, how many
    shards that found done, and its seconds of a core.
    """
    first = folder / "one"
    first.mkdir()
    (first / "0.tar").touch()
    engines: list[Workers] = []

    def start(task: Task, *_: Any) -> Workers:
        engines.append(Workers(task))
        return engines[-1]

    job._start = start  # type: ignore[assignment]
    run(config, Where(str(first), str(folder / "out-of-one"), local=True))  # imports what it needs
    before = own_bytes()
    where = Where(str(folder / "web"), str(folder / "out"), local=True)
    assert run(config, where).shards_done == shards
    began_s = time.process_time()
    found = run(config, where)
    seconds = time.process_time() - began_s
    results.put((before, engines[1].grown, own_bytes(), found.shards_before, seconds))


def driven(config: RunConfig, folder: Path, shards: int) -> tuple[list[int], float]:
    """How many bytes a driver has grown, every hundred shards and after a resume; its seconds."""
    (folder / "web").mkdir()
    for number in range(shards):
        (folder / "web" / f"{number:06d}.tar").touch()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=drive, args=(config, folder, shards, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    before, grown, at_last, done, seconds = results.get()
    assert done == shards
    assert len(grown) == shards // 100
    return [size - before for size in (*grown, at_last)], seconds


@pytest.fixture
def captioning(undisturbed: Undisturbed) -> RunConfig:
    return resolve(options={"captioner": undisturbed.config.captioner, "filter": "none"})


def test_driver_takes_no_more_memory_with_every_shard(
    captioning: RunConfig, tmp_path: Path
) -> None:
    grown, _ = driven(captioning, tmp_path, 4000)
    # A commit kept would be 2,000 bytes a shard: 8 MB. Once there is a step of 4 MB.
    assert max(grown[10:]) - grown[10] < 6_000_000
    assert max(grown) < 15_000_000


@pytest.mark.slow
def test_driver_of_100_000_shards_stays_small_and_resumes_soon(
    captioning: RunConfig, tmp_path: Path
) -> None:
    grown, seconds = driven(captioning, tmp_path, 100_000)
    log.info("grown by %.1f MB, resumed in %.1f s of a core", max(grown) / 1e6, seconds)
    assert max(grown[:-1]) - grown[0] < 10_000_000  # from the first hundred shards to the last
    assert max(grown) < 60_000_000  # what there is to do is listed: 0.4 kB a shard, 0.55 with gaps
    assert seconds < 20  # of a core: twice what it takes alone


IMAGES, SIDE = 384, 192  # of one batch, which takes some 350 MB on its way through the ViT
SHORT_BYTES = 120_000_000


def watched(arguments: list[str]) -> tuple[int, str]:
    """Run a command: the most memory of its own that it had at a time, and what it said."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        if held := re.search(r"VmData:\s+(\d+) kB", status):
            most = max(most, int(held[1]) * 1024)
        time.sleep(0.02)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.returncode == 0, said
    return most, said


@pytest.mark.slow
def test_run_with_less_memory_than_a_batch_needs_takes_smaller_ones_and_changes_nothing(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "web", 0, IMAGES)
    captioner = make_captioner(tmp_path / "captioner", image_size=SIDE)
    shared = [sys.executable, "-m", "capfilt.cli", "run", str(tmp_path / "web")]
    options = ["--local", "--captioner", str(captioner), "--filter", "none"]
    options += ["--set", f"compute.batch_size={IMAGES}"]
    need, said = watched([*shared, str(tmp_path / "whole"), *options])
    assert "do not fit into memory" not in said
    limit_gb = (need - SHORT_BYTES) / 1e9
    options += ["--memory-limit", f"{limit_gb:.3f}"]
    held, said = watched([*shared, str(tmp_path / "parts"), *options])
    assert f"{IMAGES} images at once do not fit into memory: {IMAGES // 2} from now on" in said
    assert held <= limit_gb * 1e9 + 1e6
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole") != {}
