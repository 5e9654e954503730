"""How texts are worded, by whole columns: how many words, which of them repeat themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.cut import Mask

LONGEST_REPEATED = 4  # words


def count_words(texts: Any) -> npt.NDArray[np.int64]:
    """Words of each text, shape [N]: what white space separates. A null has none."""
    counts: npt.NDArray[np.int64] = np.diff(_words(texts).offsets.to_numpy())
    return counts


def repeats(texts: Any) -> Mask:
    """Which texts say one to four words twice in a row, whatever their case; shape [N].

    "a dog dog", "a dog and a dog and a cat"; not "a dog and a cat". So it is what a language model
    that has lost its way does.
    """
    lists = _words(texts)
    codes = pc.dictionary_encode(lists.values).indices.to_numpy(zero_copy_only=False)
    text = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    found = np.zeros(len(lists), dtype=bool)
    for n in range(1, LONGEST_REPEATED + 1):
        same = (codes[n:] == codes[:-n]) & (text[n:] == text[:-n])
        before = np.r_[0, np.cumsum(same)]
        [starts] = np.nonzero(before[n:] - before[:-n] == n)  # n words that come again at once
        found[text[starts]] = True
    return found


def _words(texts: Any) -> Any:
    """Each text's words, lower-cased, as one Arrow list array without nulls."""
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    filled = pc.fill_null(array, "")
    trimmed = pc.utf8_trim_whitespace(pc.utf8_lower(filled))
    lists = pc.utf8_split_whitespace(trimmed)
    # The parts of "" are [""]: no word.
    return pa.ListArray.from_arrays(*_without_empty(lists))


def _without_empty(lists: Any) -> tuple[Any, Any]:
    offsets = lists.offsets.to_numpy()
    values = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    wanted = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
    before = np.r_[0, np.cumsum(wanted)]
    return pa.array(before[offsets - offsets[0]], pa.int32()), values.filter(wanted)
