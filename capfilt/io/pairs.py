"""Captions files: images that lie anywhere, and their human-made captions in one JSON.

Two forms: COCO's (`{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`)
and BLIP's list (`[{"image": path, "caption": text or [texts]}]`). A shard is a slice of its images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.members import IMAGE_EXTS, is_key_safe, readable, texts_of
from capfilt.jsontree import parse_json
from capfilt.record import Reason, Sample, Source
from capfilt.shard import Form, InputShard

IMAGES_PER_SHARD = 1000
_IMAGES_AT_ONCE = 16  # read in parallel: each is a request of its own
_WITH_IMAGES = " images:"  # in a version: after the JSON's own

# An image's path and its captions, all of them in the order of the file.
_Pair = tuple[str, list[Any]]


def slice_pairs(
    url: str, images: str | None, per_shard: int = IMAGES_PER_SHARD
) -> tuple[InputShard, ...]:
    """Slice a captions file into shards.

    Args:
        url: The JSON.
        images: The folder that its image paths start from; None: the JSON's own.
        per_shard: Images per shard.

    Returns:
        Shards `human-<stem>-00000`, ... in the file's order. Their version is of the JSON and of
        the slice's images, where their folders can be listed.

    Raises:
        InputError: The file is missing or has neither form.
    """
    place = files.absolute(url)
    entry = files.info(place)
    if entry is None:
        raise InputError(f"{place}: not found")
    folder = files.absolute(images) if images else files.parent(place)
    if not files.exists(folder):
        raise InputError(f"{folder}: not found; it shall hold the images of {place}")
    pairs = _pairs(place, entry.version)
    count = len(pairs)
    seen = _versions(folder, (path for path, _ in pairs))
    stem = entry.name.removesuffix(".json")
    return tuple(
        InputShard(
            f"human-{stem}-{number:05d}",
            Form.PAIRS,
            place,
            entry.size_bytes,
            entry.version + _digest(folder, pairs[start : start + per_shard], seen),
            source=Source.HUMAN,
            start=start,
            stop=min(start + per_shard, count),
            images=folder,
        )
        for number, start in enumerate(range(0, count, per_shard))
    )


def read_pairs(shard: InputShard, limits: ImageConfig, images: bool = True) -> Iterator[Sample]:
    """The samples of a slice of a captions file; a few images in memory at a time.

    The key is the image's path without its ending. A path that leaves the images' folder is not
    read: its sample fails. Without `images` none is.

    Raises:
        InputError: The captions file or an image cannot be read. A missing image fails its sample.
    """
    pairs = captions_of(shard)

    def read(pair: _Pair) -> Sample:
        path, captions = pair
        name, dot, ending = path.rpartition(".")
        ext = ending.lower() if dot and ending.lower() in IMAGE_EXTS else ""
        image, problem = None, None
        if not is_key_safe(path):
            problem = Reason.INVALID_KEY
        elif images:
            image, problem = _read_image(files.join(shard.images, path), limits)
        key = readable(name if ext else path)[0]
        texts = texts_of(captions, shard.source)
        return Sample(key, image, ext or "jpg", texts, {"image": path}, problem=problem)

    with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
        for start in range(0, len(pairs), _IMAGES_AT_ONCE):
            yield from pool.map(read, pairs[start : start + _IMAGES_AT_ONCE])


def captions_of(shard: InputShard) -> list[tuple[str, list[Any]]]:
    """The image paths of a slice, each with its captions.

    Raises:
        InputError: The captions file cannot be read.
    """
    return _pairs(shard.url, shard.version.partition(_WITH_IMAGES)[0])[shard.start : shard.stop]


def missing_images(shards: Sequence[InputShard]) -> list[str]:
    """The images that their folder lacks, of all slices of a file; from one listing of each folder.

    A web server cannot be asked, so nothing is missing there.

    Raises:
        InputError: The captions file cannot be read, or the folder cannot be listed.
    """
    folder = shards[0].images
    if _is_web(folder):
        return []
    paths = [path for shard in shards for path, _ in captions_of(shard)]
    seen = _versions(folder, paths)
    return [path for path in paths if path not in seen]


def _read_image(url: str, limits: ImageConfig) -> tuple[bytes | None, Reason | None]:
    entry = files.info(url)
    if entry is None or entry.is_folder:
        return None, Reason.NO_IMAGE
    if entry.size_bytes > limits.max_bytes:
        return None, Reason.IMAGE_TOO_LARGE
    return files.read_bytes(url), None


def _versions(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """What the images are by their paths, from one listing of each folder that they lie in."""
    if _is_web(folder):  # a listing is rare there, and has no versions
        return {}
    below = sorted({path.rpartition("/")[0] for path in paths if is_key_safe(path)})

    def listed(name: str) -> list[tuple[str, str]]:
        place = files.join(folder, name) if name else folder
        if not files.exists(place):
            return []
        return [
            (f"{name}/{entry.name}" if name else entry.name, f"{entry.size_bytes} {entry.version}")
            for entry in files.list_folder(place)
        ]

    with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
        return {path: version for found in pool.map(listed, below) for path, version in found}


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _digest(folder: str, pairs: list[_Pair], versions: dict[str, str]) -> str:
    lines = [folder, *(f"{path}\n{versions.get(path, '')}" for path, _ in pairs)]
    return _WITH_IMAGES + hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


# A worker gets many slices of one file, a training windows of several in turn: COCO's has 90 MB.
# The version is there for the cache.
@lru_cache(maxsize=8)
def _pairs(url: str, version: str) -> list[_Pair]:
    try:
        tree = parse_json(files.read_bytes(url))
    except ValueError as error:
        raise _not_captions(url, error) from error
    return list(captions_by_image(tree, url).items())


def captions_by_image(tree: Any, url: str) -> dict[str, list[Any]]:
    """The captions of each image path, in the order of the file.

    Args:
        tree: The JSON of a captions file, in either form.
        url: What to call it in errors.

    Raises:
        InputError: It has neither form, or no images.
    """
    try:
        by_image = _coco(tree) if isinstance(tree, dict) else _blip(tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_captions(url, error) from error
    if not by_image:
        raise InputError(f"{url}: no images in it")
    return by_image


def _not_captions(url: str, error: Exception) -> InputError:
    return InputError(
        f"{url}: not a captions file: it needs COCO's `images` and `annotations`, or a list of "
        f"`image` and `caption` ({type(error).__name__}: {error})"
    )


def _coco(tree: dict[str, Any]) -> dict[str, list[Any]]:
    names = {image["id"]: str(PurePosixPath(image["file_name"])) for image in tree["images"]}
    by_image: dict[str, list[Any]] = {name: [] for name in names.values()}
    for annotation in tree["annotations"]:
        by_image[names[annotation["image_id"]]].append(annotation["caption"])
    return by_image


def _blip(tree: list[dict[str, Any]]) -> dict[str, list[Any]]:
    by_image: dict[str, list[Any]] = {}
    for pair in tree:
        captions = pair["caption"]
        texts = captions if isinstance(captions, list) else [captions]
        by_image.setdefault(str(PurePosixPath(pair["image"])), []).extend(texts)
    return by_image
