"""What an output says of a sample beside its image: the original fields, the kept texts, their
scores. The same for tars and Parquet. No I/O.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from capfilt.io.members import readable
from capfilt.record import Annotated, Source, Text

# What we add; an original field of such a name that says something else is kept as `input_<name>`.
OURS = ("caption", "captions", "web_text")

# A score that was not computed, in a tar's JSON: no match probability and no cosine lies there.
# Readers that infer types from the first samples (`datasets`) take a null or a missing key for the
# type of the whole column, and then fail on, or lose, the scores of later shards. Parquet, which
# says its types, has nulls.
NOT_SCORED = -2.0


def output_fields(annotated: Annotated) -> dict[str, Any]:
    """Every original field, with the kept texts in `caption` and `captions`.

    `caption` is the first kept text, `captions` all of them as `text`, `source`, `match_prob` and
    `similarity` (NOT_SCORED where there is none), `web_text` the web text as it came, empty where
    there is none. Every sample has these keys with values of these types, and no null among them.

    Returns:
        Original fields in their order, then ours.
    """
    web = web_text_of(annotated)
    metadata = annotated.sample.metadata
    fields: dict[str, Any] = {}
    for name, value in metadata.items():
        if name not in OURS:
            fields[name] = value
        elif not (name == "caption" and value in (web, None)):
            free = f"input_{name}"
            while free in metadata:
                free = f"input_{free}"
            fields[free] = value
    fields["caption"] = annotated.kept[0].content
    fields["captions"] = [plain_caption(text) for text in annotated.kept]
    fields["web_text"] = web or ""
    return fields


def output_json(annotated: Annotated) -> str:
    """`output_fields` as JSON of one line."""
    return to_json(output_fields(annotated))


def to_json(fields: Mapping[str, Any]) -> str:
    """Fields as JSON of one line, in their order, readable where UTF-8 can store them.

    What JSON has no type for: bytes are in base64, dates and times in ISO 8601, decimals and others
    as text, and numbers that are not finite are null.
    """
    try:
        text = _dump(fields, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can hold it as an escape only
        text = _dump(fields, ensure_ascii=True)
    return text


def _dump(fields: Mapping[str, Any], *, ensure_ascii: bool) -> str:
    try:
        return json.dumps(fields, ensure_ascii=ensure_ascii, default=_plain, allow_nan=False)
    except ValueError:  # NaN or infinity, at whatever depth
        tree = json.loads(json.dumps(fields, default=_plain), parse_constant=lambda _: None)
        return json.dumps(tree, ensure_ascii=ensure_ascii, allow_nan=False)


def caption_fields(text: Text) -> dict[str, Any]:
    """A kept text with its scores; None for one that was not computed."""
    return {
        "text": text.content,
        "source": str(text.source),
        "match_prob": _shortest(text.score.match_prob),
        "similarity": _shortest(text.score.similarity),
    }


def plain_caption(text: Text) -> dict[str, Any]:
    """A kept text with its scores, NOT_SCORED for one that was not computed."""
    fields = caption_fields(text)
    return {name: NOT_SCORED if value is None else value for name, value in fields.items()}


def web_text_of(annotated: Annotated) -> str | None:
    """The web text as it came; None where there is none."""
    first = annotated.sample.texts[0]
    if first.source is not Source.WEB:
        return None
    raw = annotated.sample.metadata.get("caption")
    if first.content is None and isinstance(raw, str):  # too long for the filter and the ledger
        return readable(raw)[0]
    return first.content


def _shortest(score: float | None) -> float | None:
    # Scores are float32: 0.1 and not 0.10000000149011612.
    return None if score is None else float(str(np.float32(score)))


def _plain(value: Any) -> Any:
    """A Parquet value that JSON has no type for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
