"""A demo's folder says which demo it is of: finished parts are kept, so they must not be another's.

Another world's web would be held against this world's truth, and another model's captions cannot
stand beside this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from capfilt.demo.world import Picture
from capfilt.errors import ConfigError
from capfilt.io import publish
from capfilt.jsontree import parse_json

RECORD = "demo.json"


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder this demo's, or see that it is already.

    Args:
        folder: Made if absent.
        identity: JSON's types by name; `arguments` is what a person chose.

    Raises:
        ConfigError: The folder is another demo's or somebody else's, or is none.
        CommitError: It cannot be written.
    """
    try:
        _claim(folder, identity)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"demo: {folder}: {reason}; give another folder") from error


def digest(pictures: Iterable[Picture]) -> str:
    """sha256 of everything that is known of pictures, in hex."""
    content = hashlib.sha256()
    for picture in pictures:
        content.update(json.dumps(asdict(picture), sort_keys=True).encode() + b"\n")
    return content.hexdigest()


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"demo: {folder} is a file; give a folder")
    record = folder / RECORD
    if record.exists():
        _check_same(record, identity)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if all(each.match(f".{RECORD}.*.tmp") for each in folder.iterdir()):
        publish.clean_temporary(str(folder))  # of a demo that was killed at its first file
    if any(folder.iterdir()):
        raise ConfigError(f"demo: {folder} is not empty and not a demo's; give another folder")
    publish.write_bytes(str(record), json.dumps(identity, indent=1).encode())


def _check_same(record: Path, identity: Mapping[str, Any]) -> None:
    folder = record.parent
    remedy = f"give another folder, or remove {folder}"
    try:
        earlier = parse_json(record.read_bytes())
    except ValueError:
        raise ConfigError(f"demo: {record} is damaged; {remedy}") from None
    if earlier == identity:
        return
    # The first versions wrote down the arguments alone.
    before = earlier.get("arguments", earlier) if isinstance(earlier, dict) else earlier
    if before != identity["arguments"]:
        raise ConfigError(f"demo: {folder} is of a demo with other arguments; {remedy}")
    raise ConfigError(f"demo: {folder} was made by another version of capfilt; {remedy}")
