"""Verdicts: which texts of an image are kept. Pure, so a ledger can be re-cut without a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from capfilt.config import SelectionConfig
from capfilt.record import Reason, Text, Verdict


def judge(
    texts: Sequence[Text], rule: SelectionConfig
) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """Give every text of one image its verdict.

    A text that already has a reason (empty, not UTF-8, ...) stays dropped for it. The others pass
    `min_match_prob` (inclusive), then the `top_k` most similar of those stay; of equal ones the
    earlier.

    Source: BLIP section 3.3; BLIP-2 section 3.4.

    Args:
        texts: Web or human text first, then synthetic; scored as the rule needs.
        rule: Which rules hold; with none of them every text is kept.

    Returns:
        The texts with verdicts in input order, and the kept ones: in input order too, but best
        first where `top_k` ranks them.

    Raises:
        ValueError: A score that the rule needs is missing or NaN.
    """
    candidates = [i for i, text in enumerate(texts) if text.reason is None]
    reasons: dict[int, Reason] = {}
    if rule.min_match_prob is not None:
        for i in candidates:
            if _score(texts[i].score.match_prob, "match_prob") < rule.min_match_prob:
                reasons[i] = Reason.BELOW_MIN_MATCH_PROB
        candidates = [i for i in candidates if i not in reasons]
    if rule.top_k is not None:
        candidates.sort(key=lambda i: -_score(texts[i].score.similarity, "similarity"))
        reasons.update(dict.fromkeys(candidates[rule.top_k :], Reason.NOT_IN_TOP_K))
        candidates = candidates[: rule.top_k]
    kept = frozenset(candidates)
    judged = tuple(
        replace(text, verdict=Verdict.KEPT)
        if i in kept
        else replace(text, verdict=Verdict.DROPPED, reason=reasons.get(i, text.reason))
        for i, text in enumerate(texts)
    )
    return judged, tuple(judged[i] for i in candidates)


def _score(value: float | None, name: str) -> float:
    if value is None or math.isnan(value):
        raise ValueError(f"{name} is {value}: the rule needs it for every text")
    return value
