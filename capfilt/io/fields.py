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


def output_fields(annotated: Annotated) -> dict[str, Any]:
    """Every original field, with the kept texts in `caption` and `captions`.

    `caption` is the first kept text, `captions` all of them with source and scores, `web_text` the
    web text as it came. No nulls are added: a reader that infers types from the first sample
    would take a null for a type.

    Returns:
        Original fields in their order, then ours.
    """
    web = web_text_of(annotated)
    fields: dict[str, Any] = {}
    for name, value in annotated.sample.metadata.items():
        if name not in OURS:
            fields[name] = value
        elif not (name == "caption" and value in (web, None)):
            fields[f"input_{name}"] = value
    fields["caption"] = annotated.kept[0].content
    fields["captions"] = [caption_fields(text) for text in annotated.kept]
    if web is not None:
        fields["web_text"] = web
    return fields


def output_json(annotated: Annotated) -> str:
    """`output_fields` as JSON of one line."""
    return to_json(output_fields(annotated))


def to_json(fields: Mapping[str, Any]) -> str:
    """Fields as JSON of one line, in their order, readable where UTF-8 can store them."""
    text = json.dumps(fields, ensure_ascii=False, default=_plain)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can hold it as an escape only
        text = json.dumps(fields, default=_plain)
    return text


def caption_fields(text: Text) -> dict[str, Any]:
    """A kept text with the scores it has."""
    scores = {"match_prob": text.score.match_prob, "similarity": text.score.similarity}
    known = {name: _shortest(score) for name, score in scores.items() if score is not None}
    return {"text": text.content, "source": str(text.source), **known}


def web_text_of(annotated: Annotated) -> str | None:
    """The web text as it came; None where there is none."""
    first = annotated.sample.texts[0]
    if first.source is not Source.WEB:
        return None
    raw = annotated.sample.metadata.get("caption")
    if first.content is None and isinstance(raw, str):  # too long for the filter and the ledger
        return readable(raw)[0]
    return first.content


def _shortest(score: float) -> float:
    # Scores are float32: 0.1 and not 0.10000000149011612.
    return float(str(np.float32(score)))


def _plain(value: Any) -> Any:
    """A Parquet value that JSON has no type for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
