"""What an ingest folder was made of, kept in it: img2dataset's resume looks at shard numbers only,
so another list would find its shards done already.

The record lies in a folder of its own: img2dataset takes every `*.json` beside the shards for one
of its statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from capfilt.errors import ConfigError, InputError
from capfilt.io import files, publish

RECORD = "_capfilt/ingest.json"
_LIST = "list"  # the record's field that is not an argument of img2dataset
# What decides which rows make which shard, and what a shard holds of a row.
_SETTINGS = {
    "url_col": "url_column",
    "caption_col": "caption_column",
    "save_additional_columns": "other columns",
    "output_format": "format",
    "image_size": "image_size",
    "number_sample_per_shard": "samples_per_shard",
}


def claim(download: Mapping[str, Any]) -> None:
    """Write down what the output is made of, before anything of it is.

    An output of which no shard is done may become another list's.

    Args:
        download: The arguments of img2dataset.

    Raises:
        ConfigError: The output has shards of another list or of other settings.
        InputError: The list or the output cannot be read.
        CommitError: The output cannot be written.
    """
    output = download["output_folder"]
    record = {name: download[argument] for argument, name in _SETTINGS.items()}
    record[_LIST] = _digest(download["url_list"], download["input_format"])
    earlier = _read(files.join(output, RECORD))
    if earlier == record:
        return
    if earlier is not None and _has_shards(output):
        if earlier.get(_LIST) != record[_LIST]:
            what = f"another list than {download['url_list']}"
        else:
            names = [name for name in _SETTINGS.values() if earlier.get(name) != record[name]]
            what = "; ".join(f"{name} {earlier.get(name)}, not {record[name]}" for name in names)
        raise ConfigError(f"{output} has shards of {what}; give another output")
    publish.write_bytes(files.join(output, RECORD), json.dumps(record, indent=2).encode())


def _read(url: str) -> dict[str, Any] | None:
    if not files.exists(url):
        return None
    try:
        tree = json.loads(files.read_bytes(url))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise InputError(f"{url}: not the record of an ingest; remove it if the list is the same")
    return tree


def _has_shards(output: str) -> bool:
    return any(entry.name.endswith("_stats.json") for entry in files.list_folder(output))


def _digest(urls: str, kind: str) -> str:
    """Of the list's content, wherever it lies: of a folder, of its lists in their order."""
    entry = files.info(urls)
    if entry is None or not entry.is_folder:
        return files.digest(urls)[1]
    lists = [e for e in files.list_folder(urls) if e.name.endswith(f".{kind}") and not e.is_folder]
    content = "".join(files.digest(entry.url)[1] for entry in lists)
    return hashlib.sha256(content.encode()).hexdigest()
