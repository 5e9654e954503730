"""What an img2dataset folder holds: its `_stats.json` files, added up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capfilt.errors import InputError
from capfilt.io import files
from capfilt.jsontree import parse_json

# Long, varied messages by what they mean, so that a count of them says something.
_MEANINGS = (
    (r"timed out", "timed out"),
    (r"refused: .* is not a public address", "refused: not a public address"),
    (r"refused: \S+ URLs are not fetched|Redirection to url", "refused: not http or https"),
    (r"refused: a response above", "refused: response too large"),
    (r"IncompleteRead", "connection ended before the image did"),
    (r"!buf\.empty\(\)", "empty response"),
    (r"OpenCV.*(?:pixels|PIXELS|size\.(?:width|height))", "image has too many pixels"),
    (r"OpenCV", "Image decoding error"),
    (r"CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
    (r"(HTTP Error \d+)", None),
    (r"<urlopen error (.*)>", None),
)


@dataclass(frozen=True)
class Ingested:
    """What an output folder holds after a download, earlier calls included.

    `succeeded` plus the counts of `failures` is `rows`.
    """

    output: str
    shards: int  # with a `_stats.json`: complete
    rows: int
    succeeded: int
    failures: Mapping[str, int] = field(default_factory=dict)  # rows by what went wrong
    shards_failed: tuple[str, ...] = ()  # of this call; the same call again redoes them

    @property
    def failed(self) -> int:
        """Rows without an image."""
        return self.rows - self.succeeded

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "failed": self.failed}


def read_stats(output: str, *, shards_failed: Sequence[str] = ()) -> Ingested:
    """Add up the `_stats.json` of an img2dataset folder.

    Raises:
        InputError: The folder or a file cannot be read.
    """
    rows = succeeded = shards = 0
    failures: Counter[str] = Counter()
    for entry in files.list_folder(output):
        if not entry.name.endswith("_stats.json"):
            continue
        try:
            stats = parse_json(files.read_bytes(entry.url))
            messages = Counter({str(k): int(v) for k, v in stats["status_dict"].items()})
            count, done = int(stats["count"]), int(stats["successes"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise InputError(f"{entry.url}: not a statistics file of img2dataset") from None
        shards += 1
        rows += count
        succeeded += done
        messages.pop("success", None)
        for message, times in messages.items():
            failures[meaning(message)] += times
        unnamed = count - done - messages.total()  # rarities beyond the 100,000 that it counts
        if unnamed > 0:
            failures["no message"] += unnamed
    return Ingested(
        output, shards, rows, succeeded, dict(failures.most_common()), tuple(shards_failed)
    )


def meaning(message: str) -> str:
    """What a failed row's message means, without what is particular to its URL.

    >>> meaning("<urlopen error [Errno -2] Name or service not known>")
    '[Errno -2] Name or service not known'
    """
    for pattern, name in _MEANINGS:
        match = re.search(pattern, message, re.DOTALL)
        if match:
            return name or match[1]
    return " ".join(message.split())[:100]
