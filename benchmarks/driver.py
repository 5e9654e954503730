"""What a shard costs the driver: tiny shards, a stub model, real Ray workers, real files.

    python benchmarks/driver.py [--shards 2000] [--workers 2] [--json]

`driver_ms_per_shard` is the driver process's own CPU time, from the first assignment to the last
outcome. `driver_growth_mb` is its resident memory after the run over that after a tenth of it.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from capfilt.cluster import connect, resources
from capfilt.config import resolve
from capfilt.io.inputs import find_shards
from capfilt.record import ModelIdentity
from capfilt.run.cluster import ClusterEngine
from capfilt.run.driver import drive
from capfilt.run.engine import Work
from capfilt.run.progress import Progress
from capfilt.run.task import Task

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

SAMPLES_PER_SHARD = 4


def stub_worker(task: Task, cpus: int) -> Worker:
    """A worker whose models answer at once, whatever the cores."""
    from capfilt.models.images import PixelSpec
    from capfilt.record import Score
    from capfilt.run.worker import Worker

    class StubCaptioner:
        pixels = PixelSpec(16)
        identity = task.models["captioner"]

        def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
            return [(f"a picture called {key}",) for key in keys]

    class StubFilter:
        pixels = PixelSpec(16)
        identity = task.models["filter"]

        def score(self, pixels: Sequence[Any], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
            return [[Score(match_prob=0.75) for _ in of_image] for of_image in texts]

    return Worker(task, StubCaptioner(), StubFilter())


def make_shards(folder: Path, count: int) -> None:
    """Write tars of a few tiny pictures each."""
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(jpeg, "JPEG")
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(SAMPLES_PER_SHARD):
                for ending, content in (("jpg", jpeg.getvalue()), ("txt", b"a teal square")):
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Watched(Progress):
    """Progress that notes the driver's memory as shards end."""

    def __init__(self, *, shards: int) -> None:
        super().__init__(shards=shards, live=False)
        self.resident_mb: dict[int, float] = {}

    def show(self, in_flight: Any) -> None:
        super().show(in_flight)
        self.resident_mb[self.shards_done] = resident_mb()


def measure(shards: int, workers: int) -> dict[str, float]:
    """Run and measure once."""
    with tempfile.TemporaryDirectory() as folder:
        web, output = Path(folder, "web"), Path(folder, "out")
        web.mkdir()
        make_shards(web, shards)
        config = resolve(options={"captioner": "stub", "filter": "stub"})
        identity = ModelIdentity("stub", "0" * 64, "stub")
        task = Task(config, {"captioner": identity, "filter": identity}, str(output))
        works = [Work(shard) for shard in find_shards(str(web)).shards]
        connect(None)
        needs = resources(workers=workers, gpus_per_worker=0, shards=shards)
        progress = Watched(shards=shards)
        cpu, wall = time.process_time(), time.monotonic()
        failed = drive(ClusterEngine(task, needs, stub_worker), works, str(output), progress)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        commits = len(list((output / "commits").glob("*.json")))
        if failed or commits != shards:
            raise SystemExit(f"{len(failed)} shards failed, {commits} of {shards} committed")
    early = progress.resident_mb[shards // 10]
    return {
        "shards": shards,
        "workers": workers,
        "wall_ms_per_shard": 1e3 * wall / shards,
        "driver_ms_per_shard": 1e3 * cpu / shards,
        "driver_growth_mb": progress.resident_mb[shards] - early,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.shards, arguments.workers)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:22} {value:,.2f}")


if __name__ == "__main__":
    main()
