"""Copies of images in an input, found before a model sees one of them.

A pass over the input by the driver's cores, which a run with `images.dedupe` makes before it
starts: of copies in two shards the one stays whose shard's id comes first, so what a shard drops
does not depend on the order in which shards are done. Nor does it on whether a worker reads what
the pass could not: such a shard has failed in this call. The hashes of a shard stay in OUTPUT, so a
later call reads those of the shards that it knows and the images of the rest.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from capfilt.config import RunConfig
from capfilt.errors import InputError, StalledError
from capfilt.io.likeness import EvaluationSet, Likeness, likeness
from capfilt.io.looks import Looks, find_duplicates
from capfilt.io.reader import read_samples
from capfilt.record import Reason, Sample, Source
from capfilt.run.engine import one_line
from capfilt.run.flow import ahead, in_order
from capfilt.shard import InputShard

_WAITING = 64  # images in memory
_READS = 32  # of hashes, which is waiting for the store

log = logging.getLogger("capfilt")


Duplicates = Mapping[str, Mapping[int, Reason]]


class Compared(NamedTuple):
    """What a pass has found."""

    duplicates: Duplicates
    unread: Mapping[str, str]  # shards that could not be read, and why


def duplicates_among(
    shards: Sequence[InputShard],
    config: RunConfig,
    output_url: str,
    excluded: EvaluationSet | None = None,
) -> Compared:
    """By shard, the numbers of the samples that an earlier image is already.

    Images that will fail (too small, say), are of the evaluation sets or in a shard that cannot be
    read, in as many rounds as a worker has tries, are nobody's original. Human-annotated images are
    left alone.

    Args:
        shards: Of INPUT.
        config: Its `images.dedupe` is on.
        output_url: Where hashes are kept.
        excluded: The evaluation sets.

    Raises:
        CommitError: Hashes cannot be written to OUTPUT.
    """
    images = config.images
    assert images.dedupe is not None
    web = sorted((s for s in shards if s.source is not Source.HUMAN), key=lambda shard: shard.id)
    limits = [images.dedupe, images.max_bytes, images.max_pixels, images.min_side]
    made_of = {s.id: json.dumps([s.url, s.size_bytes, s.version, *limits]) for s in web}

    def recall(shard: InputShard) -> tuple[InputShard, Looks | None]:
        return shard, Looks.recall(output_url, shard.id, made_of[shard.id])

    looks: dict[str, Looks] = {}
    unread: dict[str, str] = {}
    cores = len(os.sched_getaffinity(0))
    with (
        ThreadPoolExecutor(_READS, thread_name_prefix="looks") as reading,
        ThreadPoolExecutor(cores, thread_name_prefix="hash") as hashing,
    ):
        for _ in range(config.compute.max_attempts):
            todo, unread = [shard for shard in web if shard.id not in looks], {}
            for shard, known in in_order(reading, recall, todo, most=_READS):
                found = known
                if found is None:
                    try:
                        found = _look(shard, config, hashing)
                    except InputError as error:
                        unread[shard.id] = one_line(error)
                        log.warning("no look for duplicates at %s: %s", shard.id, one_line(error))
                        continue
                    found.keep(output_url, shard.id, made_of[shard.id])
                if excluded is not None:
                    found = found.only(~found.held_by(excluded))
                looks[shard.id] = found
    in_turn = {shard.id: looks[shard.id] for shard in web if shard.id in looks}
    duplicates = find_duplicates(in_turn, images.dedupe)
    log.info("%d images are copies of others", sum(map(len, duplicates.values())))
    return Compared(duplicates, unread)


def _look(shard: InputShard, config: RunConfig, pool: ThreadPoolExecutor) -> Looks:
    """Hash a shard's images."""
    by_looks = config.images.dedupe == "perceptual"
    timeout_s = config.compute.read_timeout_s

    def hash_one(sample: Sample) -> Likeness | None:
        if sample.image is None or sample.problem is not None:
            return None
        like = likeness(sample.image, look=by_looks, limits=config.images)
        # What cannot be seen fails. By bytes alone its copies do so as well, whatever is said here.
        return None if by_looks and like.phash is None else like

    hashed = in_order(pool, hash_one, read_samples(shard, config.images), most=_WAITING)
    try:
        with ahead(hashed, depth=_WAITING, timeout_s=timeout_s) as likes:
            found = [(number, like) for number, like in enumerate(likes) if like is not None]
    except TimeoutError:
        raise StalledError(f"{shard.url}: nothing came of it for {timeout_s:g} s") from None
    return Looks.of([number for number, _ in found], [like for _, like in found])
