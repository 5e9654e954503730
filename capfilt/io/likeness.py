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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.config import IMAGE_FORMATS, ImageConfig
from capfilt.errors import ConfigError, InputError
from capfilt.io import files
from capfilt.io.inputs import find_shards
from capfilt.io.members import IMAGE_EXTS
from capfilt.io.reader import read_samples
from capfilt.record import Reason

NEAR_BITS = 4  # of 64 that may differ
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PHASH = re.compile(r"[0-9a-f]{16}")
_READS = 8


@dataclass(frozen=True, slots=True)
class Likeness:
    """An image's two hashes. `phash` is None where it was not asked for or nothing can be seen."""

    sha256: bytes
    phash: int | None = None  # 64 bits


def likeness(image: bytes, *, look: bool) -> Likeness:
    """Hash an image.

    Args:
        image: Its file.
        look: Whether to decode it, too, for the perceptual hash.

    Raises:
        ConfigError: `imagehash` is not installed.
    """
    sha256 = hashlib.sha256(image).digest()
    return Likeness(sha256, _phash(image) if look else None)


def _phash(image: bytes) -> int | None:
    from PIL import Image

    try:
        import imagehash
    except ImportError as error:
        raise ConfigError(
            "perceptual duplicates need another package: pip install 'capfilt[dedupe]'"
        ) from error
    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as opened:
            opened.draft("L", (64, 64))  # a JPEG need not be decoded in full
            return int(str(imagehash.phash(opened)), 16)
    except Exception:  # noqa: BLE001 - decoders raise nearly every class on bad data
        return None


def near_earlier(hashes: npt.NDArray[np.uint64], *, bits: int = NEAR_BITS) -> npt.NDArray[np.bool_]:
    """Which hashes have an earlier one that differs in at most `bits` bits; shape [N].

    Exact: two such hashes agree in full on one of `bits + 1` parts, so only those are compared.
    """
    values, first, back = np.unique(hashes, return_index=True, return_inverse=True)
    near = np.zeros(len(values), dtype=bool)  # one that came before another such value
    for part in _parts(values, bits):
        order = np.lexsort((first, part))
        ordered, ranked = part[order], values[order]
        places = np.arange(len(order))
        for step in range(1, len(order)):
            places = places[places + step < len(order)]
            places = places[ordered[places + step] == ordered[places]]
            if not len(places):
                break
            distance = np.bitwise_count(ranked[places + step] ^ ranked[places])
            near[order[places[distance <= bits] + step]] = True
    again: npt.NDArray[np.bool_] = first[back] != np.arange(len(hashes))
    return near[back] | again


def near_any(
    hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], *, bits: int = NEAR_BITS
) -> npt.NDArray[np.bool_]:
    """Which hashes differ in at most `bits` bits from one of some others; shape [N]."""
    found = np.zeros(len(hashes), dtype=bool)
    for part, other in zip(_parts(hashes, bits), _parts(others, bits), strict=True):
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


def _parts(hashes: npt.NDArray[np.uint64], bits: int) -> Iterator[npt.NDArray[np.uint64]]:
    edges = np.linspace(0, 64, bits + 2).astype(int).tolist()
    for start, stop in itertools.pairwise(edges):
        yield hashes >> np.uint64(start) & np.uint64((1 << (stop - start)) - 1)


@dataclass(frozen=True)
class Looks:
    """The hashes of a shard's images as columns, 33 bytes an image."""

    numbers: npt.NDArray[np.int64]  # of the images in their shard
    sha256: npt.NDArray[np.uint64]  # shape [N, 2]: its first 128 bits
    phash: npt.NDArray[np.uint64]
    visible: npt.NDArray[np.bool_]  # has a phash

    @classmethod
    def of(cls, numbers: Sequence[int], likes: Sequence[Likeness]) -> Looks:
        """Columns of some images."""
        halves = b"".join(like.sha256[:16] for like in likes)
        return cls(
            np.array(numbers, dtype=np.int64),
            np.frombuffer(halves, dtype=np.uint64).reshape(-1, 2),
            np.array([like.phash or 0 for like in likes], dtype=np.uint64),
            np.array([like.phash is not None for like in likes], dtype=bool),
        )


def find_duplicates(looks: Mapping[str, Looks], how: str) -> dict[str, dict[int, Reason]]:
    """What an earlier image is already, by shard and number, with the reason to drop it.

    Args:
        looks: By shard, in the order in which an image comes first.
        how: "exact" goes by bytes, "perceptual" by looks, too.
    """
    columns = list(looks.values())
    halves = np.concatenate([np.zeros((0, 2), np.uint64), *(of.sha256 for of in columns)])
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable, so the earlier comes first
    same = np.zeros(len(halves), dtype=bool)
    same[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    near = np.zeros(len(halves), dtype=bool)
    if how == "perceptual" and columns:
        visible = np.concatenate([of.visible for of in columns])
        near[visible] = near_earlier(np.concatenate([of.phash for of in columns])[visible])
    found: dict[str, dict[int, Reason]] = {}
    at = 0
    for shard_id, of_shard in looks.items():
        part = slice(at, at + len(of_shard.numbers))
        at = part.stop
        found[shard_id] = {
            int(number): Reason.DUPLICATE_IMAGE if exact else Reason.NEAR_DUPLICATE_IMAGE
            for number, exact, alike in zip(of_shard.numbers, same[part], near[part], strict=True)
            if exact or alike
        }
    return found


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

    def holds(self, likes: list[Likeness]) -> npt.NDArray[np.bool_]:
        """Which images are of the set, or look like one of it; shape [N]."""
        same = np.array([like.sha256 in self.sha256 for like in likes], dtype=bool)
        seen = [place for place, like in enumerate(likes) if like.phash is not None]
        hashes = np.array([likes[place].phash for place in seen], dtype=np.uint64)
        same[np.array(seen, dtype=int)] |= near_any(hashes, self.phash)
        return same


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
        for sample in read_samples(shard, ImageConfig()):
            if sample.image is not None:
                yield likeness(sample.image, look=True)


_IMAGE_ENDINGS = tuple(f".{ext}" for ext in IMAGE_EXTS)
