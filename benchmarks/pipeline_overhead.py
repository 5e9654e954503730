"""How much of the models' own speed a run keeps: one worker on one shard against a bare loop.

    python benchmarks/pipeline_overhead.py [--images 1000] [--batch-size 8] [--json]

The bare loop calls the same captioner and filter on tensors that are in memory already. The run
reads a tar, decodes, resizes, captions, scores, judges, writes tar and ledger, hashes, publishes
and commits. Both are measured in turns in one process, after a warm-up; the medians are compared.
`ratio` is the run's images/s over the bare loop's; 1 means that nothing but the models takes time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from capfilt.config import resolve
from capfilt.demo.tiny import make_captioner, make_filter
from capfilt.io.inputs import find_shards
from capfilt.io.reader import read_samples
from capfilt.models import images
from capfilt.run.device import one_thread_per_operation
from capfilt.run.flow import in_order
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.run.worker import Worker


def make_shard(path: Path, count: int) -> None:
    """Write a tar of photograph-sized JPEGs (512 x 384) with a text each."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            patches = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            image = Image.fromarray(patches).resize((512, 384), Image.Resampling.BICUBIC)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=90)
            for ending, content in (("jpg", jpeg.getvalue()), ("txt", b"a red circle on grass")):
                member = tarfile.TarInfo(f"{i:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


# A quarter of BLIP-base in width, half in depth: a CPU core takes some 30 ms an image.
SIZES = {"image_size": 160, "patch_size": 16, "hidden": 192, "layers": 6}
Batch = tuple[list[torch.Tensor], list[str], list[str]]  # pixels, keys, web texts


def bare_loop(worker: Worker, batches: list[Batch], cpus: int) -> float:
    """Seconds for caption and score alone, on as many cores as the run has."""
    captioner, filter_ = worker.annotator.captioner, worker.annotator.filter
    assert captioner is not None
    assert filter_ is not None

    def both(batch: Batch) -> None:
        pixels, keys, texts = batch
        captions = captioner.caption(pixels, keys)
        filter_.score(pixels, [[text, *of] for text, of in zip(texts, captions, strict=True)])

    started = time.monotonic()
    with ThreadPoolExecutor(cpus, initializer=one_thread_per_operation) as pool:
        for _ in in_order(pool, both, batches, most=cpus + 1):
            pass
    return time.monotonic() - started


def measure(count: int, batch_size: int, cpus: int, repeats: int) -> dict[str, Any]:
    """Run both in turns and compare."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "web").mkdir()
        make_shard(root / "web" / "00000.tar", count)
        captioner = make_captioner(root / "captioner", **SIZES)
        filter_ = make_filter(root / "filter", **SIZES)
        config = resolve(
            options={"captioner": str(captioner), "filter": str(filter_)},
            overrides=[f"compute.batch_size={batch_size}"],
        )
        task = Task(config, inspect_models(config), str(root / "out"))
        worker = Worker.load(task, cpus=cpus)
        spec = worker.annotator.specs[0]
        [shard] = find_shards(str(root / "web")).shards
        samples = list(read_samples(shard, config.images))
        batches = []
        for first in range(0, count, batch_size):
            part = samples[first : first + batch_size]
            pixels = [images.fit(images.decode(s.image or b"", config.images), spec) for s in part]
            batches.append(
                (pixels, [s.key for s in part], [s.texts[0].content or "" for s in part])
            )
        bare_loop(worker, batches[:4], cpus)  # warm-up
        bare, run = [], []
        for attempt in range(repeats):
            bare.append(count / bare_loop(worker, batches, cpus))
            started = time.monotonic()
            worker.process(shard, redo=attempt > 0)
            run.append(count / (time.monotonic() - started))
    return {
        "images": count,
        "batch_size": batch_size,
        "cpus": cpus,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "bare_images_per_s": statistics.median(bare),
        "run_images_per_s": statistics.median(run),
        "ratio": statistics.median(run) / statistics.median(bare),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.images, arguments.batch_size, arguments.cpus, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:20} {value:,.3f}" if isinstance(value, float) else f"{name:20} {value}")


if __name__ == "__main__":
    main()
