"""Which columns of a list of image URLs hold what; only its header is read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from capfilt.config import NONE
from capfilt.errors import ConfigError, InputError
from capfilt.io import files

# Longest first, so that `csv.gz` is not taken for something that ends with `gz`.
_FORMATS = (
    "jsonl.gz", "json.gz", "csv.gz", "tsv.gz", "txt.gz", "parquet", "jsonl", "json", "csv", "tsv",
    "txt",
)  # fmt: skip
# Conceptual Captions, LAION, COYO, DataComp, YFCC and hand-made lists, in this order of trust.
_URL_NAMES = ("url", "image_url", "img_url", "photo_url", "link")
_CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "title", "description")
_HEADER_BYTES = 2**20  # a line this long is no header


@dataclass(frozen=True)
class UrlList:
    """The columns of a list, by their part in a download."""

    format: str  # as img2dataset names it
    url_column: str
    caption_column: str | None
    other_columns: tuple[str, ...]

    @classmethod
    def read_header(
        cls, urls: str, *, url_column: str | None = None, caption_column: str | None = None
    ) -> UrlList:
        """Find the columns of a list, or of the first list in a folder.

        Args:
            urls: Place of a parquet, csv, tsv, json, jsonl or txt file, text ones also gzipped.
            url_column: None tries the usual names, whatever their case.
            caption_column: None as above; "none" for a list without texts.

        Raises:
            ConfigError: A column is missing, or the list has no header.
            InputError: The list cannot be read or is of no known format.
        """
        first = _first_file(urls)
        kind = _format_of(first)
        if kind.startswith("txt"):
            if caption_column not in (None, NONE):
                raise ConfigError(f"{urls}: a txt list has URLs only, no column {caption_column!r}")
            return cls(kind, "url", None, ())
        names = _columns(first, kind)
        url = _pick(urls, "url_column", url_column, names, _URL_NAMES)
        caption = None
        if caption_column != NONE:
            caption = _pick(urls, "caption_column", caption_column, names, _CAPTION_NAMES)
        if url == caption:
            raise ConfigError(f"{urls}: url_column and caption_column are both {url!r}")
        return cls(kind, url, caption, tuple(n for n in names if n not in (url, caption)))


def _first_file(urls: str) -> str:
    entry = files.info(urls)
    if entry is None:
        raise InputError(f"{urls}: no such file or folder")
    if not entry.is_folder:
        return urls
    lists = [e for e in files.list_folder(urls) if not e.is_folder and _known_format(e.name)]
    kinds = sorted({_format_of(e.name) for e in lists})
    if len(kinds) != 1:
        what = f"lists of several formats ({', '.join(kinds)})" if kinds else "no list of URLs"
        raise InputError(f"{urls}: the folder holds {what}; give one of {', '.join(_FORMATS)}")
    return lists[0].url


def _known_format(name: str) -> str | None:
    return next((kind for kind in _FORMATS if name.lower().endswith(f".{kind}")), None)


def _format_of(name: str) -> str:
    kind = _known_format(name)
    if kind is None:
        raise InputError(f"{name}: a list of URLs is one of {', '.join(_FORMATS)}")
    return kind


def _columns(file: str, kind: str) -> list[str]:
    with files.open_read(file) as stream:
        try:
            if kind == "parquet":
                return [str(name) for name in pq.read_schema(stream).names]
            data = gzip.GzipFile(fileobj=stream) if kind.endswith(".gz") else stream
            head = data.read(_HEADER_BYTES).decode("utf-8-sig", "replace")
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{file}: not a readable {kind} file: {error}") from None
    if kind.startswith("json"):
        return _json_columns(file, head)
    delimiter = "\t" if kind.startswith("tsv") else ","
    names = next(csv.reader(io.StringIO(head), delimiter=delimiter), [])
    if any(name.startswith(("http://", "https://")) for name in names):
        line = delimiter.join("url" if "://" in name else "caption" for name in names[:2])
        raise ConfigError(
            f"{file}: its first line is data, not the columns' names; "
            f"put a line such as {line!r} above it"
        )
    return names


def _json_columns(file: str, head: str) -> list[str]:
    try:
        row, _ = json.JSONDecoder().raw_decode(head.lstrip().removeprefix("[").lstrip())
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{file}: does not start with a JSON object")
    return list(row)


def _pick(
    urls: str, option: str, wanted: str | None, names: Sequence[str], usual: Sequence[str]
) -> str:
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ConfigError(f"{urls}: no column {wanted!r} for {option}; there are {_list(names)}")
    for usual_name in usual:
        for name in names:
            if name.lower() == usual_name:
                return name
    hint = f", or {NONE!r} if the list has no texts" if option == "caption_column" else ""
    raise ConfigError(f"{urls}: give {option}, one of the columns {_list(names)}{hint}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "(none)"
