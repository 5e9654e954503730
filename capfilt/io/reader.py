"""Reading a shard of any form, with the checks that all forms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io.folder import read_folder
from capfilt.io.members import is_key_safe
from capfilt.io.pairs import read_pairs
from capfilt.io.parquet import read_parquet
from capfilt.io.tar import read_tar
from capfilt.record import Reason, Sample
from capfilt.shard import Form, InputShard

Reader = Callable[[InputShard, ImageConfig, bool], Iterator[Sample]]

_READERS: Mapping[Form, Reader] = {
    Form.TAR: read_tar,
    Form.PARQUET: read_parquet,
    Form.FILES: read_folder,
    Form.PAIRS: read_pairs,
}


def read_samples(
    shard: InputShard, limits: ImageConfig, *, images: bool = True
) -> Iterator[Sample]:
    """The samples of a shard in its own order, a few in memory at a time.

    A sample that is of no use has a `problem`; a key that cannot name a file and a key that the
    shard has had before are such.

    Args:
        shard: What to read.
        limits: Images of more bytes are not kept.
        images: Whether to read images and extras; without, texts and metadata come alone.

    Raises:
        InputError: The shard cannot be read, is truncated or damaged, or does not have the images
            that img2dataset says it has. What was read before must not be used.
    """
    seen: set[str] = set()
    count = 0
    for sample in _READERS[shard.form](shard, limits, images):
        count += sample.problem is not Reason.NO_IMAGE
        yield _with_checked_key(sample, seen)
    if shard.expected is not None and count != shard.expected:
        raise InputError(
            f"{shard.url}: {count} images, but its _stats.json says {shard.expected}; "
            "download it again, or remove its _stats.json and use --allow-unfinished"
        )


def _with_checked_key(sample: Sample, seen: set[str]) -> Sample:
    problem = sample.problem
    if not is_key_safe(sample.key):
        problem = Reason.INVALID_KEY
    elif sample.key in seen:
        problem = problem or Reason.DUPLICATE_KEY
    seen.add(sample.key)
    return sample if problem is sample.problem else replace(sample, problem=problem)
