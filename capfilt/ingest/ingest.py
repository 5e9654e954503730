"""A list of URLs becomes shards: img2dataset, set up for CapFilt and for strangers' URLs.

    list (parquet, csv, tsv, ...) --img2dataset, in a process of its own--> <output>/00000.tar ...

img2dataset does the work, and each of its shards is done when its `_stats.json` exists: running
again redoes exactly the others. An output is of one list (`capfilt.ingest.record`). What is set
here:

- Images keep their shape, and their bytes too where they are JPEGs whose shorter side is at most
  `image_size`. Larger ones are reduced to it, other formats become JPEG at quality 95.
- Only public hosts are fetched (`capfilt.webguard`), and OpenCV refuses a header that
  promises more pixels than a run would decode: a 20,000 x 20,000 PNG of 50 kB would take 1.2 GB.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capfilt.config import ImageConfig
from capfilt.errors import ConfigError
from capfilt.ingest.process import download
from capfilt.ingest.record import claim
from capfilt.ingest.stats import Ingested, read_stats
from capfilt.ingest.urllist import UrlList
from capfilt.io import files

log = logging.getLogger("capfilt")

FORMATS = ("webdataset", "parquet", "files")  # of img2dataset's, those that a run reads

# img2dataset writes these itself and refuses a list's columns of the same name.
_RESERVED = frozenset(
    {"key", "caption", "url", "width", "height", "original_width", "original_height"}
    | {"status", "error_message", "exif", "md5", "sha256", "sha512"}
)


def ingest(
    urls: str,
    output: str,
    *,
    url_column: str | None = None,
    caption_column: str | None = None,
    allow_private_hosts: bool | Sequence[str] = False,
    format: str = "webdataset",  # noqa: A002 - the word of img2dataset and of the command line
    image_size: int = 384,
    samples_per_shard: int = 10_000,
    processes: int | None = None,
    threads: int = 32,
    timeout_s: int = 10,
    retries: int = 1,
    limits: ImageConfig | None = None,
    log_file: Path | None = None,
) -> Ingested:
    """Download a list of image URLs as shards that `capfilt run` reads; or go on with it.

    Every other column of the list passes through into each sample's metadata, and every row that
    fails stays in the shard's Parquet file with its message.

    Args:
        urls: A list, or a folder of lists of one format: parquet, csv, tsv, json, jsonl or txt.
        output: Folder or fsspec URL of the shards.
        url_column: None takes the first of the usual names that the list has.
        caption_column: The web texts; None as above, "none" if the list has no texts.
        allow_private_hosts: Also fetch from loopback, private and otherwise non-public addresses;
            True for any host, or the names of those. Never lifts the rule of http and https only.
        format: webdataset (tars), parquet or files.
        image_size: Shorter sides above this many pixels are reduced to it.
        samples_per_shard: Rows of the list per shard; a folder's lists each end with a short one.
        processes: None for one per core.
        threads: Downloads at once in each process.
        timeout_s: Of connecting and of every pause; a whole response may take six times as long.
        retries: Of a download that failed.
        limits: Bytes and pixels above these are not fetched, or not decoded; None for a run's.
        log_file: img2dataset's own messages are added to it; None lets them go to stderr.

    Raises:
        ConfigError: img2dataset is not installed, a column is missing (names those there are), or a
            value is out of range, or the output has shards of another list or other settings.
        CommitError: The output cannot be written.
        InputError: The list cannot be read, or the download as a whole ended early.
    """
    _check(format, image_size, samples_per_shard, processes, threads, timeout_s, retries)
    limits = limits or ImageConfig()
    found = UrlList.read_header(urls, url_column=url_column, caption_column=caption_column)
    passed = [name for name in found.other_columns if name not in _RESERVED]
    left_out = sorted(set(found.other_columns) - set(passed))
    if left_out:
        log.warning(
            "ingest: the list's columns %s are left out: shards have their own", ", ".join(left_out)
        )
    exempt = allow_private_hosts
    if not isinstance(exempt, bool):
        exempt = tuple(sorted({host.lower() for host in exempt}))
    proxies = [name for name in ("http_proxy", "https_proxy") if _environ(name)]
    if proxies:
        log.warning("ingest: %s is not used: hosts are checked by address", " and ".join(proxies))
    request: dict[str, dict[str, Any]] = {
        "guard": {
            "private_hosts": exempt,
            "max_bytes": limits.max_bytes,
            "max_response_s": 6.0 * timeout_s,
        },
        "download": {
            "url_list": files.absolute(urls),
            "output_folder": files.absolute(output),
            "input_format": found.format,
            "url_col": found.url_column,
            "caption_col": found.caption_column,
            "save_additional_columns": passed,
            "output_format": format,
            "image_size": image_size,
            "resize_mode": "keep_ratio",  # `image_size` is of the shorter side
            "resize_only_if_bigger": True,
            "skip_reencode": True,
            "number_sample_per_shard": samples_per_shard,
            "processes_count": processes or os.cpu_count() or 1,
            "thread_count": threads,
            "timeout": timeout_s,
            "retries": retries,
            "compute_hash": "sha256",
            "user_agent_token": "capfilt",
            "incremental_mode": "incremental",
        },
    }
    claim(request["download"])
    failed = download(request, max_pixels=limits.max_pixels, log_file=log_file)
    return read_stats(output, shards_failed=failed)


def _check(image_format: str, *numbers: int | None) -> None:
    if image_format not in FORMATS:
        raise ConfigError(f"format: {image_format!r} is none of {', '.join(FORMATS)}")
    names = ("image_size", "samples_per_shard", "processes", "threads", "timeout_s", "retries")
    for name, value in zip(names, numbers, strict=True):
        # One sample per shard would make img2dataset's keys, of log10 digits, all alike.
        least = {"samples_per_shard": 2, "retries": 0}.get(name, 1)
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, is {value}")
    check_installed()


def check_installed() -> None:
    """See that there is what downloads.

    Raises:
        ConfigError: img2dataset is not installed.
    """
    if importlib.util.find_spec("img2dataset") is None:
        raise ConfigError("ingest needs img2dataset: pip install 'capfilt[ingest]'")


def _environ(name: str) -> str:
    return os.environ.get(name) or os.environ.get(name.upper()) or ""
