"""Copies of images in an input, found before a model sees one of them.

A pass over the whole input by the driver's cores, which a run with `images.dedupe` makes each time
it has something to do: of copies in two shards the one stays whose shard's id comes first, so what
a shard drops does not depend on the order in which shards are done.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io.likeness import Likeness, Looks, find_duplicates, likeness
from capfilt.io.reader import read_samples
from capfilt.record import Reason, Sample, Source
from capfilt.run.flow import in_order
from capfilt.shard import InputShard

_WAITING = 64  # images in memory

log = logging.getLogger("capfilt")


def duplicates_among(
    shards: Iterable[InputShard], config: ImageConfig
) -> dict[str, dict[int, Reason]]:
    """By shard, the numbers of the samples that an earlier image is already.

    Images that will fail (too small, say) are nobody's original. A shard that cannot be read is
    left to its worker, which will say why. Human-annotated images are left alone.
    """
    looks = {}
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
                continue
            found = [(number, like) for number, like in enumerate(hashed) if like is not None]
            looks[shard.id] = Looks.of([n for n, _ in found], [like for _, like in found])
    assert config.dedupe is not None
    duplicates = find_duplicates(looks, config.dedupe)
    log.info("%d images are copies of others", sum(map(len, duplicates.values())))
    return duplicates


def _shorter_side(image: bytes) -> int:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return min(opened.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
