"""How much of the decoder's own speed the loader keeps: shards to batches against bytes in memory.

    python benchmarks/loader.py [--images 4000] [--batch-size 64] [--repeats 5] [--quick] [--json]

The bare loop decodes and varies images whose bytes are in memory, in one process on one thread,
with the loader's own functions. The loader reads the same bytes from shards, decodes and varies
them, normalises and tokenises a text of each, and hands whole batches over to the main process,
which does nothing with them. Both are measured in turns; `ratio` is the median of the turns' ratios
of images/s per worker to bare images/s, `cpu_ratio` the same with the processor time that all
processes took, the main one too: waiting for the machine's other work is not in it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from capfilt.config import ImageConfig
from capfilt.data.augment import augment
from capfilt.data.config import DataConfig, DatasetConfig
from capfilt.data.loader import Loader
from capfilt.demo.tiny import tokenizer
from capfilt.models import images
from capfilt.models.vocabulary import Vocabulary

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared/data/flickr8k/images"
TEXT = b"A dog (brown) runs over the green grass in front of a white house."
PER_SHARD = 1000


def photographs(count: int) -> list[bytes]:
    """JPEGs: real ones where they are at hand, else of noise at photographs' size."""
    if PHOTOGRAPHS.is_dir():
        return [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:count]]
    generator = np.random.default_rng(0)
    made = []
    for _ in range(min(count, 500)):
        patches = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        jpeg = io.BytesIO()
        Image.fromarray(patches).resize((256, 256)).save(jpeg, "JPEG", quality=92)
        made.append(jpeg.getvalue())
    return [made[i % len(made)] for i in range(count)]


def write_shards(folder: Path, data: list[bytes]) -> None:
    """Tars as img2dataset writes them, with the stats that say how many images they have."""
    for index, start in enumerate(range(0, len(data), PER_SHARD)):
        part = data[start : start + PER_SHARD]
        with tarfile.open(folder / f"{index:05d}.tar", "w") as tar:
            for number, jpeg in enumerate(part, start):
                fields = json.dumps({"key": f"{number:09d}", "caption": TEXT.decode()}).encode()
                for ending, content in (("jpg", jpeg), ("json", fields), ("txt", TEXT)):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        stats = json.dumps({"successes": len(part)})
        (folder / f"{index:05d}_stats.json").write_text(stats)


def bare_rates(data: list[bytes], config: DataConfig, count: int) -> tuple[float, float]:
    """Images/s by the clock and by processor time, from memory."""
    batch = torch.empty(64, 3, config.image_size, config.image_size, dtype=torch.uint8)
    started, cpu = time.perf_counter(), time.process_time()
    for i in range(count):
        rgb = images.decode(data[i % len(data)], ImageConfig())
        pixels = augment(rgb, random.Random(i), config.augment, config.image_size)
        batch[i % len(batch)].copy_(pixels)
    return count / (time.perf_counter() - started), count / (time.process_time() - cpu)


def loader_rates(batches: Iterator[Any], count: int, workers: int) -> tuple[float, float]:
    """The same of the loader, per worker; `batches` is running already."""
    children = list(Path("/proc/self/task").glob("*/children"))
    pids = [pid for child in children for pid in child.read_text().split()]
    started, cpu, images_seen = time.perf_counter(), _cpu_s(pids), 0
    while images_seen < count:
        images_seen += len(next(batches))
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_s(pids) - cpu
    return images_seen / seconds / workers, images_seen / cpu_seconds


def _cpu_s(pids: list[str]) -> float:
    """Processor time of this process and its workers so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(count: int, batch_size: int, repeats: int, workers: int) -> dict[str, Any]:
    """Both in turns."""
    torch.set_num_threads(1)
    names = tokenizer()
    vocabulary = Vocabulary(
        names, start=names.bos_token_id, end=names.sep_token_id, size=len(names)
    )
    data = photographs(count)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), data)
        config = DataConfig((DatasetConfig(folder),), workers=workers)
        rates: dict[str, list[float]] = {"bare": [], "loader": [], "bare cpu": [], "loader cpu": []}
        loader = Loader(
            config, rank=0, world=1, batch_size=batch_size, vocabulary=vocabulary, seed=0
        )
        batches = loader.batches()
        # Training goes over its data many times, so the first epoch is not what counts: in it each
        # worker finds out where samples lie in a shard.
        for _ in islice(batches, math.ceil(loader.steps_per_epoch)):
            pass
        for _ in range(repeats):
            bare = bare_rates(data, config, count)
            ours = loader_rates(batches, count, loader.workers)
            for name, value in zip(rates, (bare[0], ours[0], bare[1], ours[1]), strict=True):
                rates[name].append(value)
        loader.close()
    ratios = [ours / bare for ours, bare in zip(rates["loader"], rates["bare"], strict=True)]
    cpu_ratios = [o / b for o, b in zip(rates["loader cpu"], rates["bare cpu"], strict=True)]
    return {
        "images": count,
        "batch_size": batch_size,
        "workers": loader.workers,
        "photographs": PHOTOGRAPHS.is_dir(),
        "bytes_per_image": sum(map(len, data)) // len(data),
        "bare_images_per_s": statistics.median(rates["bare"]),
        "loader_images_per_s_per_core": statistics.median(rates["loader"]),
        "ratio": statistics.median(ratios),
        "cpu_ratio": statistics.median(cpu_ratios),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="seconds, for a test")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats, options.batch_size = 400, 1, 16
    found = measure(options.images, options.batch_size, options.repeats, options.workers)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:30} {value:.3f}" if isinstance(value, float) else f"{name:30} {value}")


if __name__ == "__main__":
    main()
