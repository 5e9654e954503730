"""Copies of images in an input, found before a model sees one of them.

A pass over the input by the driver's cores, which a run with `images.dedupe` makes before it
starts: of copies in two shards the one stays whose shard's id comes first, so what a shard drops
does not depend on the order in which shards are done. The hashes of a shard stay in OUTPUT, so a
later call reads those of the shards that it knows and the images of the others.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io.likeness import EvaluationSet, Likeness, likeness
from capfilt.io.looks import Looks, find_duplicates
from capfilt.io.reader import read_samples
from capfilt.record import Reason, Sample, Source
from capfilt.run.flow import in_order
from capfilt.shard import InputShard

_WAITING = 64  # images in memory
_READS = 32  # of hashes, which is waiting for the store

log = logging.getLogger("capfilt")


Duplicates = Mapping[str, Mapping[int, Reason]]


def duplicates_among(
    shards: Sequence[InputShard],
    config: ImageConfig,
    output_url: str,
    excluded: EvaluationSet | None = None,
) -> Duplicates:
    """By shard, the numbers of the samples that an earlier image is already.

    Images that will fail (too small, say) or are of the evaluation sets are nobody's original. A
    shard that cannot be read is left to its worker, which will say why. Human-annotated images are
    left alone.

    Args:
        shards: Of INPUT.
        config: Its `dedupe` is on.
        output_url: Where hashes are kept.
        excluded: The evaluation sets.

    Raises:
        CommitError: Hashes cannot be written to OUTPUT.
    """
    assert config.dedupe is not None
    web = sorted((s for s in shards if s.source is not Source.HUMAN), key=lambda shard: shard.id)
    limits = [config.dedupe, config.max_bytes, config.max_pixels, config.min_side]
    made_of = {s.id: json.dumps([s.url, s.size_bytes, s.version, *limits]) for s in web}

    def recall(shard: InputShard) -> tuple[InputShard, Looks | None]:
        return shard, Looks.recall(output_url, shard.id, made_of[shard.id])

    looks = {}
    cores = len(os.sched_getaffinity(0))
    with (
        ThreadPoolExecutor(_READS, thread_name_prefix="looks") as reading,
        ThreadPoolExecutor(cores, thread_name_prefix="hash") as hashing,
    ):
        for shard, known in in_order(reading, recall, web, most=_READS):
            found = known
            if found is None:
                try:
                    found = _look(shard, config, hashing)
                except InputError as error:
                    log.warning("not looked at for duplicates: %s", error)
                    continue
                found.keep(output_url, shard.id, made_of[shard.id])
            looks[shard.id] = found if excluded is None else found.only(~found.held_by(excluded))
    duplicates = find_duplicates(looks, config.dedupe)
    log.info("%d images are copies of others", sum(map(len, duplicates.values())))
    return duplicates


def _look(shard: InputShard, config: ImageConfig, pool: ThreadPoolExecutor) -> Looks:
    by_looks = config.dedupe == "perceptual"

    def hash_one(sample: Sample) -> Likeness | None:
        if sample.image is None or sample.problem is not None:
            return None
        like = likeness(sample.image, look=by_looks, limits=config)
        # What cannot be seen fails. By bytes alone its copies do so as well, whatever is said here.
        return None if by_looks and like.phash is None else like

    hashed = enumerate(in_order(pool, hash_one, read_samples(shard, config), most=_WAITING))
    found = [(number, like) for number, like in hashed if like is not None]
    return Looks.of([number for number, _ in found], [like for _, like in found])
