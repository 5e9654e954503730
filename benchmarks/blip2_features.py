"""How much faster an epoch of `blip2_stage1` is that finds its features in the cache.

    python benchmarks/blip2_features.py [--images 8] [--batch-size 4] [--repeats 3] [--json]

The step is that of the loop: forward, backward and AdamW over CLIP's ViT-L/14 (frozen, less its
last block, random weights, 224 pixels) and BLIP-2's Q-Former with 32 queries. After a first epoch,
which fills the cache, epochs without and with it are measured in turns in one process; medians of
seconds per image are printed, and their ratio. Images are in memory, and features in files that the
system has in memory. On a CPU one thread computes in fp32, and the time is its own, which other
work on the machine hardly lengthens; with CUDA it is that of the clock, in bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from capfilt.data.batch import Batch
from capfilt.models.vit import ViT, VitConfig
from capfilt.train.blip2 import Blip2Represent, RepresentConfig
from capfilt.train.config import Blip2Stage1Config, LoopConfig
from capfilt.train.features import Features
from capfilt.train.precision import fast_products
from capfilt.train.ranks import Ranks
from capfilt.train.stepper import Stepper
from capfilt.train.tokens import Tokens
from capfilt.train.towers import FrozenImageTower, QueryTower

CLS, SEP, FIRST_WORD, DEC = 101, 102, 1996, 30522
LARGE = VitConfig(1024, 23, 16, 4096, image_size=224, patch_size=14, activation="quick_gelu")
TINY = VitConfig(32, 2, 4, 64, image_size=28, patch_size=14, activation="quick_gelu")
TEXT_TOKENS = 16  # of a web text


class Epochs:
    """A training of stage 1, an epoch at a time over the same images."""

    def __init__(
        self, *, size: VitConfig, qformer: QueryTower, images: int, batch_size: int
    ) -> None:
        torch.manual_seed(0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.ranks = Ranks(0, 1, device)
        self.images = images
        image = FrozenImageTower(image_size=size.image_size)
        self.model = Blip2Represent(
            RepresentConfig(image=image, qformer=qformer),
            ViT(size),
            Tokens(CLS, CLS, DEC, DEC + 1),
            seed=0,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        )
        loop = LoopConfig(batch_size=batch_size)
        self._stepper = Stepper(self.model, Blip2Stage1Config(loop=loop), self.ranks)
        self._batches = [
            _batch(size.image_size, range(i, i + batch_size)) for i in range(0, images, batch_size)
        ]
        self._step = 0

    def seconds_per_image(self) -> float:
        """Of one epoch."""
        clock = time.perf_counter if self.ranks.device.type == "cuda" else time.process_time
        batches: Iterator[Batch] = iter(self._batches)
        began = clock()
        for _ in self._batches:
            self._stepper.step(batches, self._step, 1e-4, stop=False)  # waits for its losses
            self._step += 1
        return (clock() - began) / self.images


def _batch(side: int, numbers: range) -> Batch:
    """Noise, with texts of words at random."""
    generator = torch.Generator().manual_seed(numbers.start)
    count, ids = len(numbers), torch.tensor(numbers)
    words = torch.randint(FIRST_WORD, DEC, (count, TEXT_TOKENS - 1), generator=generator)
    pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(
        pixels, [[*row, SEP] for row in words.tolist()], [str(i) for i in numbers], ids, ids
    )


def measure(epochs: Epochs, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds per image of epochs without a cache, of the one that fills it, and with it."""
    plain, cached = epochs.model.features, Features(epochs.model.model.vit)
    cached.keep(folder)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with fast_products(epochs.ranks.device):
        epochs.model.features = cached
        first = epochs.seconds_per_image()
        for _ in range(repeats):
            for name, features in (("without", plain), ("with", cached)):
                epochs.model.features = features
                seconds[name].append(epochs.seconds_per_image())
    without, with_ = (statistics.median(seconds[name]) for name in ("without", "with"))
    stored = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
    return {
        "device": str(epochs.ranks.device),
        "torch": torch.__version__,
        "images": epochs.images,
        "first_s_per_image": first,
        "without_s_per_image": without,
        "with_s_per_image": with_,
        "ratio": without / with_,
        "stored_bytes_per_image": stored / epochs.images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    epochs = Epochs(
        size=TINY if options.quick else LARGE,
        qformer=QueryTower(width=24, layers=2, heads=4) if options.quick else QueryTower(),
        images=options.images,
        batch_size=options.batch_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measure(epochs, Path(folder), options.repeats)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'epoch':24}{'s per image':>12}")
    for name in ("first", "without", "with"):
        print(f"{name:24}{found[f'{name}_s_per_image']:12.4f}")
    print(f"ratio {found['ratio']:.2f}, {found['stored_bytes_per_image'] / 1000:.0f} kB per image")


if __name__ == "__main__":
    main()
