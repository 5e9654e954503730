"""Ledgers as the columns that a cut judges, and their counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.cut import REASONS, SOURCES, Codes, Rows
from capfilt.errors import InputError
from capfilt.io.ledger import read_ledger_columns
from capfilt.record import Source, Verdict
from capfilt.tally import NO_TEXT_KEPT, Tally

COLUMNS = ("source", "index", "match_prob", "similarity", "verdict", "reason")


def read_rows(url: str) -> Rows:
    """A ledger's texts without what they say.

    Raises:
        InputError: The file is missing or no ledger.
    """
    return rows_of(read_ledger_columns(url, COLUMNS), url)


def rows_of(table: Any, url: str) -> Rows:
    """The texts of a ledger's table, which has at least `COLUMNS`.

    An image's rows are adjacent and begin with its first web or human text.

    Raises:
        InputError: The table holds something that no ledger does.
    """
    source = _codes(table["source"], [str(source) for source in SOURCES], url)
    reason = _codes(table["reason"], ["", *(str(reason) for reason in REASONS[1:])], url)
    verdict = _codes(table["verdict"], [str(verdict) for verdict in Verdict], url)
    index = table["index"].to_numpy()
    is_first = (source != SOURCES.index(Source.SYNTHETIC)) & (index == 0)
    if len(is_first) and not is_first[0]:
        raise InputError(f"{url}: not a ledger: its first row is no image's first text")
    failed = verdict == list(Verdict).index(Verdict.FAILED)
    return Rows(
        image=np.cumsum(is_first) - 1,
        source=source,
        match_prob=_scores(table["match_prob"]),
        similarity=_scores(table["similarity"]),
        reason=reason,
        failed=failed,
    )


def tally_of(rows: Rows) -> Tally:
    """The counts of judged rows, as a run keeps them."""
    kept = rows.open
    tally = Tally()
    states = ((kept, Verdict.KEPT), (rows.failed, Verdict.FAILED))
    for mask, verdict in (*states, (~kept & ~rows.failed, Verdict.DROPPED)):
        for code, count in enumerate(np.bincount(rows.source[mask], minlength=len(SOURCES))):
            if count:
                tally.texts[SOURCES[code], verdict] = int(count)
    tally.dropped_texts = _reasons(rows.reason[~kept & ~rows.failed])
    first = np.r_[True, rows.image[1:] != rows.image[:-1]] if len(rows.image) else kept
    tally.dropped_samples = _dropped_images(rows)
    tally.failed_samples = _reasons(rows.reason[first & rows.failed])
    failed = int((first & rows.failed).sum())
    with_kept = int(rows.with_kept().sum())
    tally.samples = Counter(
        {
            Verdict.KEPT: with_kept,
            Verdict.FAILED: failed,
            Verdict.DROPPED: rows.images - with_kept - failed,
        }
    )
    return tally


def _dropped_images(rows: Rows) -> Counter[str]:
    """Images without a text by the rule on images that dropped them, or as having none kept."""
    codes = np.zeros(rows.images, dtype=np.uint8)
    by_rule = rows.by_image_rule
    codes[rows.image[by_rule]] = rows.reason[by_rule]
    out = ~rows.with_kept()
    out[rows.image[rows.failed]] = False
    found = _reasons(codes[out])
    if rest := int((codes[out] == 0).sum()):
        found[NO_TEXT_KEPT] = rest
    return found


def _reasons(codes: Codes) -> Counter[str]:
    found: Counter[str] = Counter()
    for code, count in enumerate(np.bincount(codes, minlength=1)):
        reason = REASONS[code]
        if count and reason is not None:
            found[str(reason)] = int(count)
    return found


def _codes(column: Any, values: list[str], url: str) -> Codes:
    """Places of a dictionary column's values in a list; null is 0."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    names = array.dictionary.to_pylist()
    unknown = [name for name in names if name not in values]
    if unknown:
        raise InputError(f"{url}: {unknown[0]!r} is none of {', '.join(values)}: a newer ledger?")
    places = np.array([values.index(name) for name in names] or [0], dtype=np.uint8)
    indices = array.indices
    codes: Codes = places[pc.fill_null(indices, 0).to_numpy(zero_copy_only=False)]
    if indices.null_count:
        codes = np.where(pc.is_null(indices).to_numpy(zero_copy_only=False), np.uint8(0), codes)
    return codes


def _scores(column: Any) -> Any:
    return column.to_numpy().astype(np.float32, copy=False)  # null is NaN
