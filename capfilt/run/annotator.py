"""Captioner and filter together: from decoded samples to judged texts, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from capfilt.config import RunConfig, SelectionConfig
from capfilt.models.images import PixelSpec
from capfilt.record import Annotated, ModelIdentity, Reason, Sample, Score, Source, Text, Verdict
from capfilt.run.fitting import Fitting
from capfilt.run.meter import Meter
from capfilt.selection import judge
from capfilt.text import normalise


class Captioner(Protocol):
    """Makes captions; see `capfilt.models.captioner`."""

    pixels: PixelSpec
    identity: ModelIdentity

    def caption(
        self, pixels: Sequence[torch.Tensor], keys: Sequence[str]
    ) -> list[tuple[str, ...]]: ...


class Filter(Protocol):
    """Scores texts; see `capfilt.models.filter`."""

    pixels: PixelSpec
    identity: ModelIdentity

    def score(
        self, pixels: Sequence[torch.Tensor], texts: Sequence[Sequence[str]]
    ) -> list[list[Score]]: ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample and what the models see of its image, uint8 [3, size, size] for each need.

    `pixels` is empty when the sample has failed or is unwanted, or an earlier try has judged it.
    """

    sample: Sample
    pixels: Mapping[PixelSpec, torch.Tensor]
    judged: Annotated | None = None


class Annotator:
    """Captions, scores and judges. Safe to call from several threads."""

    def __init__(
        self, config: RunConfig, captioner: Captioner | None, filter_: Filter | None, meter: Meter
    ) -> None:
        self.captioner = captioner
        self.filter = filter_
        self.specs = tuple({model.pixels for model in (captioner, filter_) if model is not None})
        self.fitting = Fitting()
        self._meter = meter
        self._rule = config.selection
        self._max_words = config.scoring.max_words

    def annotate(self, batch: Sequence[Decoded], source: Source) -> list[Annotated]:
        """Judge every text of every sample; samples come back in order, failed ones too.

        Human captions pass: they are neither filtered nor joined by synthetic ones.
        """
        is_human = source is Source.HUMAN
        rule = SelectionConfig(min_match_prob=None) if is_human else self._rule
        describe = self._web_texts if is_human else self._described
        good = [d for d in batch if d.judged is None and is_good(d.sample)]
        texts = iter(self.fitting.in_parts(describe, good))
        return [
            decoded.judged
            or (
                _judged(decoded.sample, *judge(next(texts), rule))
                if is_good(decoded.sample)
                else _left_out(decoded.sample)
            )
            for decoded in batch
        ]

    def _web_texts(self, good: Sequence[Decoded]) -> list[list[Text]]:
        return [[self._check(text) for text in decoded.sample.texts] for decoded in good]

    def _described(self, good: Sequence[Decoded]) -> list[list[Text]]:
        """The texts of images that fit into memory together, captions among them, scored."""
        texts = self._web_texts(good)
        with self._meter.stage("caption"):
            self._caption(good, texts)
        with self._meter.stage("score"):
            self._score(good, texts)
        return texts

    def _caption(self, good: Sequence[Decoded], texts: Sequence[list[Text]]) -> None:
        if self.captioner is None:
            return
        pixels = [decoded.pixels[self.captioner.pixels] for decoded in good]
        captions = self.captioner.caption(pixels, [decoded.sample.key for decoded in good])
        for of_image, found in zip(texts, captions, strict=True):
            of_image.extend(
                self._check(Text(Source.SYNTHETIC, i, caption)) for i, caption in enumerate(found)
            )

    def _score(self, good: Sequence[Decoded], texts: Sequence[list[Text]]) -> None:
        if self.filter is None:
            return
        pixels = [decoded.pixels[self.filter.pixels] for decoded in good]
        contents = [[t.content or "" for t in of if t.reason is None] for of in texts]
        scores = self.filter.score(pixels, contents)
        for of_image, of_scores in zip(texts, scores, strict=True):
            found = iter(of_scores)
            of_image[:] = [
                text if text.reason is not None else replace(text, score=next(found))
                for text in of_image
            ]

    def _check(self, text: Text) -> Text:
        """Say so when nothing of a text is left for the filter to see."""
        if text.reason is not None or text.content is None:
            return text
        seen = normalise(text.content, max_words=self._max_words)
        return text if seen.strip() else replace(text, reason=Reason.EMPTY_TEXT)


def _judged(sample: Sample, texts: tuple[Text, ...], kept: tuple[Text, ...]) -> Annotated:
    return Annotated(sample, texts, kept, Verdict.KEPT if kept else Verdict.DROPPED)


def is_good(sample: Sample) -> bool:
    """Whether its texts are to be judged."""
    return sample.problem is None and sample.unwanted is None


def _left_out(sample: Sample) -> Annotated:
    """A sample that has failed, or else is unwanted, with all its texts."""
    verdict = Verdict.DROPPED if sample.problem is None else Verdict.FAILED
    reason = sample.problem or sample.unwanted
    texts = tuple(replace(text, verdict=verdict, reason=reason) for text in sample.texts)
    return Annotated(sample, texts, (), verdict)
