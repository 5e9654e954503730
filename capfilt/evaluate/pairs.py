"""What an evaluation reads: images with their human captions, and labelled pairs.

Captions files are COCO's JSON, a JSON list or JSONL of `image` and `caption` (or `captions`: a text
or several); labelled pairs a JSON list or JSONL of `image`, `caption`, `label` (1: they match).
Rows may have a `split`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.pairs import captions_by_image
from capfilt.jsontree import parse_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Captioned:
    """An image's path and its human captions, at least one."""

    image: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """An image's path, a text, and whether they match; `kind` says how they do not, if known."""

    image: str
    caption: str
    matches: bool
    kind: str = ""


def read_captioned(url: str, *, split: str | None = None) -> list[Captioned]:
    """The images of a captions file in its order.

    Args:
        url: The file.
        split: Take the rows of this split alone.

    Raises:
        InputError: It has no known form, an image has no caption, there is no such split, or the
            pairs are labelled: not all of them match.
    """
    tree = parse(url)
    if isinstance(tree, dict):
        if split is not None:
            raise InputError(f"{url}: COCO's form has no splits; leave --split out")
    else:
        column = _caption_column(tree)
        rows = rows_of(tree, url, ["image", column], split)
        if any("label" in row for row in rows):
            raise InputError(
                f"{url}: its rows have a `label`, but captions are all right: labelled pairs are "
                "for `capfilt evaluate filter`"
            )
        tree = [{"image": row["image"], "caption": row[column]} for row in rows]
    by_image = captions_by_image(tree, url)
    found = []
    for image, captions in by_image.items():
        texts = tuple(text for text in captions if isinstance(text, str) and text.strip())
        if len(texts) < len(captions) or not texts:
            raise InputError(f"{url}: image {image} has no caption, or one that is no text")
        found.append(Captioned(image, texts))
    return found


def read_labelled(url: str, *, split: str | None = None) -> list[Labelled]:
    """The labelled pairs of a file in its order.

    Args:
        url: The file.
        split: Take the rows of this split alone.

    Raises:
        InputError: It has no known form, a label is neither 0 nor 1, the labels are all the same,
            or there is no such split.
    """
    found = []
    for row in rows_of(parse(url), url, ["image", "caption", "label"], split):
        image, caption, label = row["image"], row["caption"], row["label"]
        if label not in (0, 1):
            raise InputError(f"{url}: a label is 1 (match) or 0, is {label!r} for {image!r}")
        if not (isinstance(image, str) and isinstance(caption, str)):
            raise InputError(f"{url}: image and caption are texts, are {image!r} and {caption!r}")
        found.append(Labelled(image, caption, bool(label), str(row.get("kind", ""))))
    if len({pair.matches for pair in found}) < 2:
        which = f"split {split!r}" if split else "the file"
        raise InputError(
            f"{url}: the labels of {which} are all the same; nothing tells a filter's quality"
        )
    return found


def parse(url: str) -> Any:
    """A JSON's tree, or the list of a JSONL's rows.

    Raises:
        InputError: It is neither.
    """
    place = files.absolute(url)
    try:
        text = files.read_bytes(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not UTF-8 text ({error})") from error
    try:
        tree = parse_json(text)
    except ValueError:
        return _parse_lines(text, url)
    is_row = isinstance(tree, dict) and not tree.keys() & {"annotations", "images", "questions"}
    return [tree] if is_row else tree


def _parse_lines(text: str, url: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except ValueError as error:
                raise InputError(
                    f"{url}: neither JSON nor JSON lines: line {number}: {error}"
                ) from None
    return rows


def _caption_column(tree: Any) -> str:
    first = tree[0] if isinstance(tree, list) and tree else {}
    has_list = isinstance(first, dict) and "captions" in first and "caption" not in first
    return "captions" if has_list else "caption"


def rows_of(tree: Any, url: str, columns: Sequence[str], split: str | None) -> list[Row]:
    """The rows of a split, all of which have these columns.

    Args:
        tree: From `parse`.
        url: Names the file in errors.
        columns: That each row must have.
        split: None takes all rows.

    Raises:
        InputError: It is no list of such rows, or has no such split.
    """
    if not (isinstance(tree, list) and all(isinstance(row, dict) for row in tree)):
        raise InputError(f"{url}: not a list of rows with {', '.join(columns)}")
    if not tree:
        raise InputError(f"{url}: no rows in it")
    if split is not None:
        columns = [*columns, "split"]
    for number, row in enumerate(tree, start=1):
        missing = [name for name in columns if name not in row]
        if missing:
            raise InputError(
                f"{url}: row {number} has no {', '.join(missing)}; it has {', '.join(row)}"
            )
    rows = [row for row in tree if split is None or row["split"] == split]
    if not rows:
        splits = sorted({str(row["split"]) for row in tree})
        raise InputError(f"{url}: no split {split!r}; it has {', '.join(splits)}")
    return rows
