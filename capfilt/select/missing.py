"""Shards that an OUTPUT lacks, told before something is made from it as if it were whole."""

from __future__ import annotations

import logging

from capfilt.errors import CapfiltError
from capfilt.io.inputs import find_shards
from capfilt.select.origin import Origin

log = logging.getLogger("capfilt")


def warn_of_missing(origin: Origin) -> None:
    """Warn where what an OUTPUT is made from has shards without a commit in it."""
    missing = missing_shards(origin)
    if missing:
        log.warning(
            "%s lacks %s of %s shards, e.g. %s: `capfilt status` says why",
            origin.url,
            f"{len(missing):,}",
            f"{len(missing) + len(origin.commits):,}",
            missing[0],
        )


def missing_shards(origin: Origin) -> list[str]:
    """Ids of the shards of its input that an OUTPUT has no commit of, sorted.

    Unfinished shards count where its run took them. None where the input cannot be listed any more;
    those of human pairs are not looked for.
    """
    try:
        if origin.parent is not None:
            return [
                shard_id for shard_id in origin.parent.commits if shard_id not in origin.commits
            ]
        manifest, known = origin.manifest, origin.commits
        found = find_shards(manifest.input, allow_unfinished=manifest.allow_unfinished, known=known)
        return sorted(shard.id for shard in found.shards)
    except CapfiltError:
        return []
