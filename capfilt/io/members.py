"""Members into samples: what tars, folders and Parquet rows have in common. No I/O.

    part/12.jpg  .txt  .json  .seg.png  ->  Sample("part/12", image, text, metadata, extras)

A member ends its key at the first dot of its base name, and the rest, in lower case, says what it
is. Nothing here raises for a sample: what is wrong with one becomes its `problem`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capfilt.config import ImageConfig
from capfilt.jsontree import parse_json
from capfilt.record import Reason, Sample, Source, Text

# The formats that pretraining sets hold. Which of them can be decoded is found out by decoding.
IMAGE_EXTS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
TEXT_EXTS = ("txt", "json")
MAX_TEXT_BYTES = 64 * 2**10
MAX_TEXTS = 2**15  # of one source and sample: a ledger counts them in 16 bits, from 0 on
MAX_JSON_BYTES = 4 * 2**20
MAX_EXTRAS_BYTES = 64 * 2**20  # all other members of one sample together
MAX_KEY_BYTES = 255  # what a file name may have on common file systems


def split_name(name: str) -> tuple[str, str] | None:
    """A member's key and extension; None for hidden files and names without a dot.

    Source: webdataset, `tariterators.base_plus_ext`.

    >>> split_name("part/000012.Seg.PNG")
    ('part/000012', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, ext = base.partition(".")
    return (f"{folder}{slash}{stem}", ext.lower()) if stem and dot and ext else None


def is_key_safe(key: str) -> bool:
    """Whether a key can name a file below any folder and be stored as text."""
    parts = key.split("/")
    return (
        bool(parts[0])  # not empty, not absolute
        and bool(parts[-1])
        and ".." not in parts
        and not any(c in "\\\x7f" or c < " " for c in key)
        and not any("\ud800" <= c <= "\udfff" for c in key)
        and len(key.encode()) <= MAX_KEY_BYTES
    )


def web_text(raw: Any, source: Source = Source.WEB, index: int = 0) -> Text:
    """A text exactly as the input has it, with the reason where it can be of no use.

    Args:
        raw: Text, its bytes, or None; anything else is no text.
        source: Where it comes from.
        index: Its position among the sample's texts of that source.
    """
    if not isinstance(raw, str | bytes):
        return Text(source, index, None, reason=Reason.NO_TEXT)
    if len(raw) > MAX_TEXT_BYTES:
        return Text(source, index, None, reason=Reason.TEXT_TOO_LONG)
    content, valid = readable(raw)
    if not valid:
        return Text(source, index, content, reason=Reason.TEXT_NOT_UTF8)
    return Text(source, index, content, reason=None if content.strip() else Reason.EMPTY_TEXT)


def readable(raw: str | bytes) -> tuple[str, bool]:
    """Text that UTF-8 can store, and whether it is unchanged; what it cannot becomes an escape.

    JSON can hold half a surrogate pair (`"\\ud83d"`), which no UTF-8 file can.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        if isinstance(raw, str):
            data = raw.encode("utf-8", "backslashreplace")
        return data.decode("utf-8", "backslashreplace"), False


@dataclass(slots=True)
class Members:
    """The members of one key as they are read, and the sample that they make.

    Ask `wants` before reading a member's bytes, then `add` it.
    """

    key: str
    limits: ImageConfig
    source: Source = Source.WEB
    problem: Reason | None = None
    _image: bytes | None = None
    _image_ext: str = ""
    _parts: dict[str, bytes] = field(default_factory=dict)  # text, json and extras by extension
    _seen: set[str] = field(default_factory=set)
    _text_too_long: bool = False

    def wants(self, ext: str, size_bytes: int) -> bool:
        """Whether to read a member; a reason not to is kept for the sample."""
        if ext in self._seen:  # webdataset's readers would raise; the first one is kept
            self.problem = self.problem or Reason.DUPLICATE_KEY
            return False
        self._seen.add(ext)
        if ext in IMAGE_EXTS and not self._image_ext:
            self._image_ext = ext
            return self._within(size_bytes, self.limits.max_bytes, Reason.IMAGE_TOO_LARGE)
        if ext == "txt":
            self._text_too_long = size_bytes > MAX_TEXT_BYTES
            return not self._text_too_long
        if ext == "json":
            return self._within(size_bytes, MAX_JSON_BYTES, Reason.METADATA_INVALID)
        extras = sum(len(data) for name, data in self._parts.items() if name not in TEXT_EXTS)
        return self._within(extras + size_bytes, MAX_EXTRAS_BYTES, Reason.METADATA_INVALID)

    def add(self, ext: str, data: bytes) -> None:
        """Take a member that is wanted."""
        if ext == self._image_ext:
            self._image = data
        else:
            self._parts[ext] = data

    def sample(self) -> Sample:
        """The sample that the members make."""
        metadata = self._metadata()
        if not self._image_ext:
            self.problem = self.problem or Reason.NO_IMAGE
        extras = {ext: data for ext, data in self._parts.items() if ext not in TEXT_EXTS}
        return Sample(
            self.key,
            self._image,
            self._image_ext,
            self._texts(metadata),
            metadata,
            extras,
            self.problem,
        )

    def _metadata(self) -> Mapping[str, Any]:
        if "json" not in self._parts:
            return {}
        try:
            metadata = parse_json(self._parts["json"])
        except ValueError:
            metadata = None
        if not isinstance(metadata, dict):
            self.problem = self.problem or Reason.METADATA_INVALID
            return {}
        return metadata

    def _texts(self, metadata: Mapping[str, Any]) -> tuple[Text, ...]:
        if self._text_too_long:
            return (Text(self.source, 0, None, reason=Reason.TEXT_TOO_LONG),)
        caption = metadata.get("caption")
        raw: Any = self._parts.get("txt", caption)
        # img2dataset writes an empty .txt for a null caption.
        if raw == b"" and "caption" in metadata and caption is None:
            raw = None
        return texts_of(raw, self.source)

    def _within(self, size_bytes: int, limit: int, reason: Reason) -> bool:
        if size_bytes <= limit:
            return True
        self.problem = self.problem or reason
        return False


def texts_of(raw: Any, source: Source) -> tuple[Text, ...]:
    """The texts in a caption field: one; of human captions a list may hold several.

    A list of more than `MAX_TEXTS` counts as one text that is too long.
    """
    if source is Source.HUMAN and isinstance(raw, Sequence) and not isinstance(raw, str | bytes):
        if len(raw) > MAX_TEXTS:
            return (Text(source, 0, None, reason=Reason.TEXT_TOO_LONG),)
        texts = tuple(web_text(text, source, index) for index, text in enumerate(raw))
        return texts or (web_text(None, source),)
    return (web_text(raw, source),)
