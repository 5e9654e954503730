"""How long it takes to look at a large ledger, and to cut a dataset by bytes.

    python benchmarks/report.py [--texts 10000000] [--gigabytes 2] [--folder DIR] [--json]

A ledger of that many texts is made (a web text and a synthetic caption an image, words drawn by
rank, scores from beta distributions), then `capfilt report` and `capfilt select --dry-run` run over
it as processes of their own: wall and processor seconds and peak memory. For copying, data shards
of 10,000 images of 40 kB are made, as img2dataset makes them; `capfilt select` at a threshold that
drops some texts of some images is held against `cp` of the same files, alone and with a `sync` of
each, which `select` does for each shard, too. All are measured after the files were read once, so
from memory. `select_start_s` is a cut of 200 images, nearly all of it the start of processes; what
a cut takes beyond it is the copying. Processor seconds are what wall seconds would be worth on one
idle core. `--texts 0` and `--gigabytes 0` leave a part out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capfilt.config import resolve
from capfilt.io.commits import Commit, InputRecord, OutputRecord, write_commit
from capfilt.io.files import digest
from capfilt.io.ledger import SCHEMA, LedgerWriter
from capfilt.io.tar import TarWriter
from capfilt.record import Annotated, ModelIdentity, Sample, Score, Source, Text, Verdict
from capfilt.run.manifest import Manifest
from capfilt.run.task import Task
from capfilt.run.where import Where
from capfilt.select.rows import rows_of, tally_of

TEXTS_PER_SHARD = 100_000
IMAGE_BYTES = 40_000
IMAGES_PER_SHARD = 10_000
WORDS = 2_000  # of the vocabulary
THRESHOLD = 0.5


def begin(folder: Path) -> Task:
    """The manifest of an output, and what its commits say."""
    config = resolve(options={"captioner": "captioner", "filter": "filter"})
    models = {role: ModelIdentity("Blip", "0" * 64, "nowhere") for role in ("captioner", "filter")}
    task = Task(config, models, str(folder))
    folder.mkdir(parents=True)
    Manifest.of(task, Where(str(folder), str(folder))).write(str(folder))
    return task


def write_ledger(path: Path, shard: int, count: int) -> Any:
    """A ledger of `count` texts; its table."""
    generator = np.random.default_rng(shard)
    images = count // 2
    vocabulary = pa.array([f"w{i}" for i in range(WORDS)])
    words = [
        vocabulary.take(pa.array(np.minimum(generator.zipf(1.4, count), WORDS) - 1))
        for _ in range(9)
    ]
    score = generator.beta(1.2, 0.6, count).astype(np.float32)
    score[::2] = generator.beta(0.8, 1.0, images)
    kept = score.astype(np.float64) >= THRESHOLD
    number = np.repeat(np.arange(images) + shard * images, 2)
    table = pa.table(
        [
            pc.utf8_lpad(pa.array(number).cast(pa.string()), 9, "0"),
            pa.array(np.where(np.arange(count) % 2 == 0, "web", "synthetic")),
            pa.array(np.zeros(count, np.int16)),
            pc.binary_join_element_wise(*words, " "),
            pa.array(score),
            pa.nulls(count, pa.float32()),
            pa.array(np.where(kept, "kept", "dropped")),
            pc.if_else(pa.array(kept), pa.scalar(None, pa.string()), "below_min_match_prob"),
        ],
        schema=SCHEMA,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    named = ["source", "verdict", "reason"]
    pq.write_table(table, path, row_group_size=8192, compression="zstd", use_dictionary=named)
    return table


def make_ledgers(folder: Path, texts: int) -> None:
    """An output of ledgers and commits; of data it has empty files alone."""
    task = begin(folder)
    for shard in range(-(-texts // TEXTS_PER_SHARD)):
        name = f"{shard:05d}"
        count = min(TEXTS_PER_SHARD, texts - shard * TEXTS_PER_SHARD)
        table = write_ledger(folder / f"ledger/{name}.parquet", shard, count)
        for column in ("source", "verdict", "reason"):
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, table[column].dictionary_encode())
        (folder / "data").mkdir(exist_ok=True)
        (folder / f"data/{name}.tar").touch()
        commit(folder, task, name, tally_of(rows_of(table, name)).to_dict())


def make_data(folder: Path, shards: int, images: int) -> None:
    """An output with images: random bytes, two texts kept of each."""
    task = begin(folder)
    generator = np.random.default_rng(0)
    for shard in range(shards):
        name = f"{shard:05d}"
        for part in ("data", "ledger"):
            (folder / part).mkdir(exist_ok=True)
        counts = {"read": 0, "kept": 0, "dropped": 0, "failed": 0}
        with (
            TarWriter(folder / f"data/{name}.tar") as tar,
            LedgerWriter(folder / f"ledger/{name}.parquet", metadata={}) as ledger,
        ):
            for number in range(images):
                scores = (0.5 + generator.random(2) / 2).astype(np.float32).tolist()
                texts = tuple(
                    Text(source, 0, f"a text of {number}", Score(score), Verdict.KEPT)
                    for source, score in zip((Source.WEB, Source.SYNTHETIC), scores, strict=True)
                )
                image = generator.bytes(IMAGE_BYTES)
                sample = Sample(f"{shard:04d}{number:05d}", image, "jpg", texts)
                annotated = Annotated(sample, texts, texts, Verdict.KEPT)
                tar.write(annotated)
                ledger.write(annotated)
                counts["read"] += 1
                counts["kept"] += 1
        texts_of = {s: {"kept": counts["kept"]} for s in ("web", "synthetic")}
        more = {"texts": texts_of, "dropped_texts": {}, "failed_samples": {}}
        commit(folder, task, name, {**counts, **more})


def commit(folder: Path, task: Task, name: str, counts: dict[str, Any]) -> None:
    """Commit a shard as it lies there."""
    found = {}
    for path in (f"data/{name}.tar", f"ledger/{name}.parquet"):
        found[path] = OutputRecord(*digest(str(folder / path)))
    record = InputRecord("nowhere", "tar", 0, "")
    write_commit(str(folder), Commit(name, record, task.fingerprint, task.models, counts, found))


def timed(*arguments: str) -> dict[str, float]:
    """Wall and processor seconds of a capfilt command, and the most memory of any so far."""
    clock = Clock()
    subprocess.run([sys.executable, "-m", "capfilt", *arguments], check=True, capture_output=True)
    wall_s, processor_s = clock.passed()
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    return {"s": wall_s, "processor_s": processor_s, "mb": most}


def measure_ledger(folder: Path, texts: int) -> dict[str, Any]:
    """Report and dry runs over a large ledger; `select` first, since it takes less memory."""
    make_ledgers(folder, texts)
    cuts = {
        "threshold": ["--min-match", "0.6"],
        "fraction": ["--keep-fraction", "0.3", "--mix", "web-first"],
    }
    found: dict[str, Any] = {"texts": texts}
    for name, options in cuts.items():
        measured = timed("select", str(folder), "--dry-run", *options)
        found |= {f"dry_run_{name}_{unit}": value for unit, value in measured.items()}
    found |= {f"report_{unit}": value for unit, value in timed("report", str(folder)).items()}
    return found | {"report_html_mb": (folder / "report.html").stat().st_size / 1e6}


def measure_copy(folder: Path, gigabytes: float) -> dict[str, Any]:
    """`select` against `cp`, in turns; the best of three each."""
    images = round(gigabytes * 1e9 / IMAGE_BYTES)
    shards = max(2, round(images / IMAGES_PER_SHARD))
    make_data(folder / "run", shards, images // shards)
    make_data(folder / "small", 2, 100)
    size_mb = sum(file.stat().st_size for file in (folder / "run/data").iterdir()) / 1e6
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        for name, copy in {
            "cp": _cp,
            "cp_sync": _cp_sync,
            "select": _select,
            "start": _start,
        }.items():
            for file in sorted((folder / "run/data").iterdir()):
                digest(str(file))  # so that it is in memory
            shutil.rmtree(folder / "copy", ignore_errors=True)
            clock = Clock()
            copy(folder)
            taken.setdefault(name, []).append(clock.passed())
    best = {name: min(times) for name, times in taken.items()}
    start_s, copying_s = best["start"][0], best["select"][0] - best["start"][0]
    return {
        "copied_mb": size_mb,
        **{f"{name}_mb_per_s": size_mb / best[name][0] for name in ("cp", "cp_sync", "select")},
        **{f"{name}_processor_s": best[name][1] for name in ("cp", "cp_sync", "select")},
        "select_start_s": start_s,
        **{f"ratio_to_{name}": best[name][0] / best["select"][0] for name in ("cp", "cp_sync")},
        **{f"ratio_of_copying_to_{name}": best[name][0] / copying_s for name in ("cp", "cp_sync")},
    }


def _cp(folder: Path) -> None:
    subprocess.run(["cp", "-r", folder / "run/data", folder / "copy"], check=True)


def _cp_sync(folder: Path) -> None:
    _cp(folder)
    subprocess.run(["sync", *sorted((folder / "copy").iterdir())], check=True)


def _select(folder: Path, run: str = "run") -> None:
    timed("select", str(folder / run), str(folder / "copy"), "--min-match", "0.6")


def _start(folder: Path) -> None:
    _select(folder, "small")


class Clock:
    """Wall seconds, and processor seconds of ended processes, from its making on."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), _processor_s()

    def passed(self) -> tuple[float, float]:
        wall_s = time.monotonic() - self._wall
        return wall_s, _processor_s() - self._processor


def adopt() -> None:
    """Become the parent of what a command leaves behind, so that its processor time counts."""
    set_child_subreaper = 36  # linux/prctl.h
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _processor_s() -> float:
    try:
        while True:
            os.wait()
    except ChildProcessError:  # none is left
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=10_000_000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    adopt()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found: dict[str, Any] = {}
        if arguments.texts:
            found |= measure_ledger(Path(folder) / "ledgers", arguments.texts)
        if arguments.gigabytes:
            found |= measure_copy(Path(folder) / "data", arguments.gigabytes)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value:,}")


if __name__ == "__main__":
    main()
