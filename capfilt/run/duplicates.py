"""Copies of images in an input, found before a model sees one of them.

A pass over the whole input by the driver's cores, which a run with `images.dedupe` makes before it
starts: of copies in two shards the one stays whose shard's id comes first, so what a shard drops
does not depend on the order in which shards are done. What was found lies in OUTPUT, and a resume
over the same input reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from capfilt.config import IMAGE_FORMATS, ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, outputs, publish
from capfilt.io.commits import encode
from capfilt.io.likeness import Likeness, Looks, find_duplicates, likeness
from capfilt.io.reader import read_samples
from capfilt.record import Reason, Sample, Source
from capfilt.run.flow import in_order
from capfilt.shard import InputShard

_WAITING = 64  # images in memory

log = logging.getLogger("capfilt")


Duplicates = Mapping[str, Mapping[int, Reason]]


def duplicates_among(
    shards: Sequence[InputShard], config: ImageConfig, output_url: str
) -> Duplicates:
    """By shard, the numbers of the samples that an earlier image is already.

    Images that will fail (too small, say) are nobody's original. A shard that cannot be read is
    left to its worker, which will say why. Human-annotated images are left alone.

    Raises:
        CommitError: What was found cannot be written to OUTPUT.
    """
    url, key = files.join(output_url, outputs.DUPLICATES), _key(shards, config)
    known = _read(url, key)
    if known is not None:
        return known
    duplicates, is_whole = _look(shards, config)
    log.info("%d images are copies of others", sum(map(len, duplicates.values())))
    if is_whole:
        publish.write_bytes(url, encode({"of": key, "duplicates": duplicates}))
    return duplicates


def _key(shards: Iterable[InputShard], config: ImageConfig) -> str:
    """sha256 of what decides: the input's shards by size and version, and the limits."""
    seen = sorted((shard.id, shard.size_bytes, shard.version) for shard in shards)
    limits = [config.dedupe, config.max_bytes, config.min_side]
    return hashlib.sha256(json.dumps([limits, seen]).encode()).hexdigest()


def _read(url: str, key: str) -> Duplicates | None:
    if not files.exists(url):
        return None
    try:
        tree = json.loads(files.read_bytes(url))
        if tree["of"] != key:
            return None
        found: dict[str, dict[str, str]] = tree["duplicates"]
        return {
            shard_id: {int(number): Reason(reason) for number, reason in of_shard.items()}
            for shard_id, of_shard in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not of this version, or damaged: found anew


def _look(shards: Iterable[InputShard], config: ImageConfig) -> tuple[Duplicates, bool]:
    """The duplicates, and whether every shard could be looked at."""
    looks, is_whole = {}, True
    by_looks = config.dedupe == "perceptual"

    def hash_one(sample: Sample) -> Likeness | None:
        image = sample.image
        if image is None or sample.problem is not None or _shorter_side(image) < config.min_side:
            return None
        return likeness(image, look=by_looks)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="hash") as pool:
        for shard in sorted(shards, key=lambda shard: shard.id):
            if shard.source is Source.HUMAN:
                continue
            samples = read_samples(shard, config)
            try:
                hashed = list(in_order(pool, hash_one, samples, most=_WAITING))
            except InputError as error:
                log.warning("not looked at for duplicates: %s", error)
                is_whole = False
                continue
            found = [(number, like) for number, like in enumerate(hashed) if like is not None]
            looks[shard.id] = Looks.of([n for n, _ in found], [like for _, like in found])
    assert config.dedupe is not None
    return find_duplicates(looks, config.dedupe), is_whole


def _shorter_side(image: bytes) -> int:
    try:
        with Image.open(io.BytesIO(image), formats=IMAGE_FORMATS) as opened:
            return min(opened.size)
    except Exception:  # noqa: BLE001 - decoders raise nearly every class on bad data
        return 0
