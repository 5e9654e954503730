"""Which images are the same: by their bytes, or by how they look.

Looks are compared by the perceptual hash of the `imagehash` package (pHash: 64 signs of the low
frequencies of a 32 x 32 cosine transform). Scaling, another JPEG quality and a faint watermark
change a few of its bits; another picture changes about half of them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.config import IMAGE_FORMATS, ImageConfig
from capfilt.errors import ConfigError, InputError
from capfilt.io import files
from capfilt.io.inputs import find_shards
from capfilt.io.members import IMAGE_EXTS
from capfilt.io.reader import read_samples

NEAR_BITS = 4  # of 64 that may differ
LARGE_PIXELS = 2**24  # decoded one at a time
LIMITS = ImageConfig()
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PHASH = re.compile(r"[0-9a-f]{16}")
_READS = 8
_decoding_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class Likeness:
    """An image's two hashes. `phash` is None where it was not asked for or nothing can be seen."""

    sha256: bytes
    phash: int | None = None  # 64 bits


def likeness(image: bytes, *, look: bool, limits: ImageConfig = LIMITS) -> Likeness:
    """Hash an image.

    Args:
        image: Its file.
        look: Whether to decode it, too, for the perceptual hash.
        limits: What a run decodes; of other images nothing is seen.

    Raises:
        ConfigError: `imagehash` is not installed.
    """
    sha256 = hashlib.sha256(image).digest()
    return Likeness(sha256, _phash(image, limits) if look else None)


def _phash(image: bytes, limits: ImageConfig) -> int | None:
    from PIL import Image

    try:
        import imagehash
    except ImportError as error:
        raise ConfigError(
            "perceptual duplicates need another package: pip install 'capfilt[dedupe]'"
        ) from error
    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            if width * height > limits.max_pixels or min(width, height) < limits.min_side:
                return None
            opened.draft("L", (64, 64))  # a JPEG need not be decoded in full
            is_large = opened.width * opened.height > LARGE_PIXELS
            with _decoding_large if is_large else nullcontext():
                return int(str(imagehash.phash(opened)), 16)
    except Exception:  # noqa: BLE001 - decoders raise nearly every class on bad data
        return None


def near_earlier(hashes: npt.NDArray[np.uint64], *, bits: int = NEAR_BITS) -> npt.NDArray[np.bool_]:
    """Which hashes are to go: an earlier one that stays differs in at most `bits` bits; shape [N].

    So nothing goes for its likeness to what has gone itself, and chains do not run away.
    """
    _, first, back = np.unique(hashes, return_index=True, return_inverse=True)
    starts = np.sort(first)
    values = hashes[starts]  # each once, in the order in which they come
    pairs = list(_near_pairs(values, bits))
    earlier = np.concatenate([one for one, _ in pairs])
    later = np.concatenate([other for _, other in pairs])
    near = [False] * len(values)
    order = np.argsort(later, kind="stable")
    for one, other in zip(earlier[order].tolist(), later[order].tolist(), strict=True):
        if not near[one]:  # which is settled: all its own pairs came before
            near[other] = True
    again: npt.NDArray[np.bool_] = first[back] != np.arange(len(hashes))
    return np.array(near, dtype=bool)[np.searchsorted(starts, first)[back]] | again


def _near_pairs(
    values: npt.NDArray[np.uint64], bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Places (earlier, later) of values that differ in at most `bits` bits; a pair may come again.

    Exact: two such values agree in full on two of `bits + 2` parts, so of each two parts only those
    values are compared that agree there: 5 others for each of 10 million values, not 10 million.
    """
    for one, other in itertools.combinations(_parts(values, bits + 2), 2):
        # Both parts and the place as one number, so that sorting takes no second array.
        packed = (one << np.uint64(16) | other) << np.uint64(32)
        packed |= np.arange(len(values), dtype=np.uint64)
        packed.sort()
        keys, places = packed >> np.uint64(32), (packed & np.uint64(2**32 - 1)).astype(np.int64)
        ordered = values[places]
        [at] = np.nonzero(keys[1:] == keys[:-1])
        for step in itertools.count(1):
            near = at[np.bitwise_count(ordered[at + step] ^ ordered[at]) <= bits]
            yield places[near], places[near + step]
            at = at[at + step + 1 < len(keys)]
            at = at[keys[at + step + 1] == keys[at]]
            if not len(at):
                break


def near_any(
    hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], *, bits: int = NEAR_BITS
) -> npt.NDArray[np.bool_]:
    """Which hashes differ in at most `bits` bits from one of some others; shape [N]."""
    found = np.zeros(len(hashes), dtype=bool)
    for part, other in zip(_parts(hashes, bits + 1), _parts(others, bits + 1), strict=True):
        order = np.argsort(other, kind="stable")
        ordered = other[order]
        first, last = (np.searchsorted(ordered, part, side) for side in ("left", "right"))
        step = 0
        while (able := first + step < last).any():
            [places] = np.nonzero(able)
            distance = np.bitwise_count(hashes[places] ^ others[order[first[places] + step]])
            found[places[distance <= bits]] = True
            step += 1
    return found


def _parts(hashes: npt.NDArray[np.uint64], count: int) -> Iterator[npt.NDArray[np.uint64]]:
    edges = np.linspace(0, 64, count + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        yield hashes >> np.uint64(start) & np.uint64((1 << (stop - start)) - 1)


@dataclass(frozen=True)
class EvaluationSet:
    """Images that a dataset must not hold."""

    sha256: frozenset[bytes]
    phash: npt.NDArray[np.uint64]  # of those whose looks are known

    @classmethod
    def load(cls, places: Iterable[str]) -> EvaluationSet:
        """Read folders of images (or anything that `run` takes), and lists of hashes.

        A list is a text file with a hash in hex in each line, 64 digits for a sha256 or 16 for a
        pHash; what follows it in the line is left out, so `sha256sum * > list` makes one.

        Raises:
            InputError: A place is missing or holds nothing, or a line is no hash.
        """
        sha256: set[bytes] = set()
        phash: list[int] = []
        for place in places:
            entry = files.info(place)
            is_list = (
                entry is not None and not entry.is_folder and place.endswith((".txt", ".list"))
            )
            found = list(_of_list(place) if is_list else _of_images(place))
            if not found:
                raise InputError(f"{place}: no image and no hash in it, so nothing to exclude")
            for like in found:
                if like.sha256:
                    sha256.add(like.sha256)
                if like.phash is not None:
                    phash.append(like.phash)
        return cls(frozenset(sha256), np.array(sorted(set(phash)), dtype=np.uint64))

    def digest(self) -> str:
        """sha256 of all its hashes, in hex."""
        digest = hashlib.sha256(self.phash.tobytes())
        for value in sorted(self.sha256):
            digest.update(value)
        return digest.hexdigest()

    @property
    def looks(self) -> bool:
        """Whether it knows what any of its images looks like."""
        return len(self.phash) > 0

    def has(self, like: Likeness) -> bool:
        """As `holds`, of one image."""
        if like.sha256 in self.sha256:
            return True
        if like.phash is None:
            return False
        return bool((np.bitwise_count(self.phash ^ np.uint64(like.phash)) <= NEAR_BITS).any())


def _of_list(url: str) -> Iterator[Likeness]:
    for number, line in enumerate(files.read_bytes(url).decode("utf-8", "replace").splitlines(), 1):
        words = line.lower().split()
        if not words or words[0].startswith("#"):
            continue
        if _SHA256.fullmatch(words[0]):
            yield Likeness(bytes.fromhex(words[0]))
        elif _PHASH.fullmatch(words[0]):
            yield Likeness(b"", int(words[0], 16))
        else:
            raise InputError(
                f"{url}:{number}: {words[0][:70]!r} is no hash: 64 hex digits for a sha256, "
                "16 for a pHash"
            )


def _of_images(url: str) -> Iterator[Likeness]:
    images = [entry.url for entry in files.find(url) if entry.name.lower().endswith(_IMAGE_ENDINGS)]
    if not images:
        yield from _of_shards(url)
        return
    with ThreadPoolExecutor(_READS) as pool:
        yield from pool.map(lambda image: likeness(files.read_bytes(image), look=True), images)


def _of_shards(url: str) -> Iterator[Likeness]:
    for shard in find_shards(url).shards:
        for sample in read_samples(shard, LIMITS):
            if sample.image is not None:
                yield likeness(sample.image, look=True)


_IMAGE_ENDINGS = tuple(f".{ext}" for ext in IMAGE_EXTS)
