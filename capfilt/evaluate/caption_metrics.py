"""BLEU and CIDEr of captions, as COCO's evaluation computes them, without its Java.

Counts of n-grams, n = 1 to 4, over the tokens of `tokens`. Figures equal those of COCO's scorers
(`pycocoevalcap` 1.2) for equal tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

Ngram = tuple[str, ...]
Tokens = Sequence[str]

MAX_N = 4
_CIDER_SIGMA = 6.0  # width of the penalty on unequal lengths

# COCO's evaluation drops these tokens of the Penn Treebank.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", '"', ".", "..", "...", "?", "!", ",", ":", "-", "--", ";"]
)
# Brackets it means to drop, too, but looks for them in capitals: they stay.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# What the Penn Treebank takes as one token, most special first.
_TOKEN = re.compile(
    r"""
      \d+ (?: [.,:/] \d+ )+                   # 7:30, 1/2, 3,000
    | (?: [^\W\d_] \. ){2,}                   # u.s., p.m.
    | (?: mr | mrs | ms | dr | st ) \.
    | can (?= not\b)                          # cannot is two
    | \w+? (?= n't\b )                        # is n't
    | n't\b | '(?: s | re | ve | ll | d | m )\b
    | \w+ (?: [-&/] \w+ )*                    # t-shirt, brown/white
    | \.{2,} | -{2,} | \S
    """,
    re.VERBOSE,
)


def tokens(caption: str) -> list[str]:
    """Lower-case words of a caption, clitics apart ("isn't" is "is n't"), punctuation dropped.

    Source: the tokeniser of COCO's evaluation (Stanford's PTBTokenizer).
    """
    found = _TOKEN.findall(caption.lower())
    return [_BRACKETS.get(token, token) for token in found if token not in _PUNCTUATION]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a whole corpus, one candidate per image, each in [0, 1].

    The length to reach is, per image, that of the reference nearest in length, of two the shorter.
    Nothing is smoothed: without one common 4-gram BLEU-4 is 0.

    Source: Papineni et al., ACL 2002.

    Args:
        candidates: Tokens per image.
        references: Per image the tokens of each of its references, at least one.
    """
    common, total = [0] * MAX_N, [0] * MAX_N
    length = wanted = 0
    for candidate, of_image in zip(candidates, references, strict=True):
        length += len(candidate)
        wanted += min((abs(len(r) - len(candidate)), len(r)) for r in of_image)[1]
        most: Counter[Ngram] = Counter()
        for reference in of_image:
            most |= _ngrams(reference)
        for ngram, count in _ngrams(candidate).items():
            total[len(ngram) - 1] += count
            common[len(ngram) - 1] += min(count, most[ngram])
    brevity = math.exp(min(0.0, 1 - wanted / length)) if length else 0.0
    figures, log_sum = [], 0.0
    for n in range(MAX_N):
        log_sum += math.log(common[n] / total[n]) if common[n] else -math.inf
        figures.append(brevity * math.exp(log_sum / (n + 1)))
    return figures


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """CIDEr-D, the "CIDEr" of papers: mean over images of ten times a clipped tf-idf cosine.

    An n-gram's weight falls with the number of images whose references have it, so the figure is
    one of this set of images; of a single image it is 0.

    Source: Vedantam et al., arXiv:1411.5726, section 5, and COCO's scorer, which takes the number
    of bigrams for a text's length.

    Args:
        candidates: As in `bleu`.
        references: As in `bleu`.

    Returns:
        In [0, 10]; papers print it times 100.
    """
    counted = [[_ngrams(reference) for reference in of_image] for of_image in references]
    images_with = Counter(ngram for of_image in counted for ngram in set().union(*of_image))
    weight = {ngram: math.log(len(counted) / count) for ngram, count in images_with.items()}
    unseen = math.log(len(counted)) if counted else 0.0
    total = 0.0
    for candidate, of_image in zip(candidates, counted, strict=True):
        vector = _Vector(_ngrams(candidate), weight, unseen)
        total += sum(vector.likeness(_Vector(r, weight, unseen)) for r in of_image) / len(of_image)
    return 10 * total / len(counted)


class _Vector:
    """The tf-idf weights of a text's n-grams and, for each n, their norm."""

    def __init__(
        self, counts: Counter[Ngram], weight: Mapping[Ngram, float], unseen: float
    ) -> None:
        self.weights = {ngram: n * weight.get(ngram, unseen) for ngram, n in counts.items()}
        self.bigrams = sum(n for ngram, n in counts.items() if len(ngram) == 2)
        self.norms = [0.0] * MAX_N
        for ngram, value in self.weights.items():
            self.norms[len(ngram) - 1] += value**2
        self.norms = [math.sqrt(norm) for norm in self.norms]

    def likeness(self, reference: _Vector) -> float:
        """Of this candidate and a reference, in [0, 1]."""
        products = [0.0] * MAX_N
        for ngram, value in self.weights.items():
            wanted = reference.weights.get(ngram, 0.0)
            products[len(ngram) - 1] += min(value, wanted) * wanted
        cosines = (
            product / (mine * its) if mine and its else 0.0
            for product, mine, its in zip(products, self.norms, reference.norms, strict=True)
        )
        gap = self.bigrams - reference.bigrams
        return math.exp(-(gap**2) / (2 * _CIDER_SIGMA**2)) * sum(cosines) / MAX_N


def _ngrams(words: Tokens) -> Counter[Ngram]:
    """How often each n-gram of 1 to 4 tokens occurs."""
    return Counter(
        tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1)
    )
