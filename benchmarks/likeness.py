"""What perceptual duplicates cost, and what the limit of `NEAR_BITS` finds and wrongly drops.

    python benchmarks/likeness.py PHOTOGRAPHS [--changed 500] [--hashes 10000000]

PHOTOGRAPHS is a folder of JPEGs of different scenes. Each is hashed, and pairs of different ones
that are near are false ones, but for copies that the folder has: their names are printed, to be
looked at. Some are changed as the web changes pictures, and the share of the changed that is near
its original is what would be found. Then as many hashes as a large dataset has are compared:
uniform ones, and ones whose bits go together as those of the photographs do (a Gaussian with their
correlations), which crowd more.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from capfilt.io.likeness import NEAR_BITS, likeness, near_earlier

LIMITS = (0, 2, 4, 6, 8, 10)
CHUNK = 250_000
Hashes = npt.NDArray[np.uint64]


def encoded(image: Image.Image, form: str = "JPEG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, form, quality=quality)
    return file.getvalue()


def scaled(share: float) -> Callable[[Image.Image], bytes]:
    return lambda image: encoded(
        image.resize((round(image.width * share), round(image.height * share)))
    )


def cropped(share: float) -> Callable[[Image.Image], bytes]:
    def crop(image: Image.Image) -> bytes:
        x, y = round(image.width * share), round(image.height * share)
        return encoded(image.crop((x, y, image.width - x, image.height - y)))

    return crop


def marked(image: Image.Image) -> bytes:
    """With a line of white letters, a third as wide as the picture."""
    image = image.copy()
    place = (image.width * 0.62, image.height * 0.93)
    ImageDraw.Draw(image).text(place, "(c) example.org", fill="white", font_size=image.width // 20)
    return encoded(image)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "half the size": scaled(0.5),
    "a quarter of the size": scaled(0.25),
    "twice the size": scaled(2),
    "JPEG of quality 50": lambda image: encoded(image, quality=50),
    "JPEG of quality 20": lambda image: encoded(image, quality=20),
    "half the size, quality 40": lambda image: encoded(
        image.resize((image.width // 2, image.height // 2)), quality=40
    ),
    "WebP of quality 60": lambda image: encoded(image, "WEBP", quality=60),
    "grey": lambda image: encoded(image.convert("L")),
    "a fifth brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "a written line": marked,
    "1 % cut from each side": cropped(0.01),
    "3 % cut from each side": cropped(0.03),
    "10 % cut from each side": cropped(0.10),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
}


def hashed(images: list[bytes]) -> Hashes:
    found = [likeness(image, look=True).phash for image in images]
    assert None not in found
    return np.array(found, dtype=np.uint64)


def pairs_apart(hashes: Hashes) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """How many pairs differ in 0, 1, ... 64 bits; and which of them in at most `NEAR_BITS`."""
    counts = np.zeros(65, dtype=np.int64)
    near = []
    for i in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[i] ^ hashes[i + 1 :])
        counts += np.bincount(distance, minlength=65)
        near += [(i, i + 1 + int(j)) for j in np.flatnonzero(distance <= NEAR_BITS)]
    return counts, near


def like(hashes: Hashes, count: int) -> Hashes:
    """Hashes whose bits are set as often, and together as often, as those of some others."""
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(float)
    share = bits.mean(axis=0)
    with np.errstate(invalid="ignore"):  # a bit that is the same in all goes with none
        together = np.nan_to_num(np.corrcoef(bits, rowvar=False))
    values, vectors = np.linalg.eigh(np.sin(np.pi / 2 * together))  # of signs to a Gaussian's
    root = (vectors * np.sqrt(np.clip(values, 0, None))).astype(np.float32)
    scale = np.sqrt((root**2).sum(axis=1))
    generator = np.random.default_rng(0)
    normal = np.sort(generator.standard_normal(1_000_001))
    least = normal[np.round((1 - share) * 1_000_000).astype(int)] * scale
    least[share == 0], least[share == 1] = np.inf, -np.inf
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    made = []
    for start in range(0, count, CHUNK):
        drawn = generator.standard_normal((min(CHUNK, count - start), 64), dtype=np.float32)
        made.append(((drawn @ root.T >= least) * weights).sum(axis=1, dtype=np.uint64))
    return np.concatenate(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--changed", type=int, default=200, help="photographs that are changed")
    parser.add_argument("--hashes", type=int, default=10_000_000)
    options = parser.parse_args()
    paths = sorted(options.photographs.glob("*.jpg"))
    images = [path.read_bytes() for path in paths]
    began = time.process_time()
    hashes = hashed(images)
    print(
        f"{len(images):,} photographs, {len(images) / (time.process_time() - began):,.0f}/s a core"
    )
    counts, near = pairs_apart(hashes)
    below = np.cumsum(counts)
    print(f"of {below[-1]:,} pairs within " + ", ".join(f"{n} bits {below[n]}" for n in LIMITS))
    for one, other in near:
        print(f"  {paths[one].name} {paths[other].name}")
    print(f"found of {options.changed:,}, in %, within " + ", ".join(f"{n} bits" for n in LIMITS))
    some = [Image.open(io.BytesIO(image)).convert("RGB") for image in images[: options.changed]]
    for name, change in CHANGES.items():
        apart = np.bitwise_count(hashed([change(image) for image in some]) ^ hashes[: len(some)])
        shares = (f"{100 * (apart <= n).mean():5.1f}" for n in LIMITS)
        print(f"  {name:26}", *shares, flush=True)
    uniform = np.random.default_rng(1).integers(0, 2**64, options.hashes, dtype=np.uint64)
    for name, many in (("uniform", uniform), ("like photographs", like(hashes, options.hashes))):
        began = time.process_time()
        gone = int(near_earlier(many).sum())
        seconds = time.process_time() - began
        print(
            f"{len(many):,} hashes, {name}: {seconds:.0f} s of one core, {gone:,} are near",
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.1f} GB at most")


if __name__ == "__main__":
    main()
