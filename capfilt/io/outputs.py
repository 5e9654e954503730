"""Where the files of an output lie. Every path is relative to the output's URL. No I/O.

data/<id>.tar or .parquet    the data shard
ledger/<id>.parquet          every text of it with its scores and verdict
commits/<id>.json            written last: what has no commit does not exist
failures/<id>.json           the shards that were given up
partial/<id>/...             of shards under way: what became of their first samples
looks/<id>.npz               hashes of its images, where copies were looked for
manifest.json                what the run was
lease.json                   who works on it, as long as somebody does
"""

from __future__ import annotations

from capfilt.config import OutputConfig

COMMITS = "commits"
FAILURES = "failures"
PARTIAL = "partial"
MANIFEST = "manifest.json"
LEASE = "lease.json"
LOOKS = "looks"
FOLDERS = ("data", "ledger", COMMITS, FAILURES, PARTIAL, LOOKS)

_ENDINGS = {"webdataset": "tar", "parquet": "parquet"}


def data_path(shard_id: str, output: OutputConfig) -> str:
    """Of a data shard.

    >>> data_path("laion/00000", OutputConfig(format="webdataset"))
    'data/laion/00000.tar'
    """
    return f"data/{shard_id}.{_ENDINGS[output.format]}"


def ledger_path(shard_id: str) -> str:
    """Of a shard's ledger."""
    return f"ledger/{shard_id}.parquet"


def commit_path(shard_id: str) -> str:
    """Of a shard's commit."""
    return f"{COMMITS}/{shard_id}.json"


def partial_path(shard_id: str) -> str:
    """Of the folder of what is known before a shard's commit."""
    return f"{PARTIAL}/{shard_id}"


def looks_path(shard_id: str) -> str:
    """Of the hashes of a shard's images."""
    return f"{LOOKS}/{shard_id}.npz"


def failure_path(shard_id: str) -> str:
    """Of the record that a shard was given up."""
    return f"{FAILURES}/{shard_id}.json"
