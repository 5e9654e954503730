"""Counts of samples and texts by verdict, source and reason. They add up, shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capfilt.record import ON_IMAGES, Annotated, Source, Verdict

NO_TEXT_KEPT = "no_text_kept"  # of an image: each of its texts was dropped for a reason of its own


@dataclass(slots=True)
class Tally:
    """What became of every sample and every text.

    `read == kept + dropped + failed` holds by construction of `add`; commits check it again.
    """

    samples: Counter[Verdict] = field(default_factory=Counter)
    texts: Counter[tuple[Source, Verdict]] = field(default_factory=Counter)
    dropped_texts: Counter[str] = field(default_factory=Counter)  # by reason
    dropped_samples: Counter[str] = field(default_factory=Counter)  # by a rule on images, or none
    failed_samples: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def read(self) -> int:
        return self.samples.total()

    def add(self, annotated: Annotated) -> None:
        """Count one sample and its texts."""
        self.samples[annotated.verdict] += 1
        if annotated.verdict is Verdict.DROPPED:
            self.dropped_samples[dropped_for(text.reason for text in annotated.texts)] += 1
        if annotated.sample.problem is not None:
            self.failed_samples[annotated.sample.problem] += 1
        for text in annotated.texts:
            assert text.verdict is not None
            self.texts[text.source, text.verdict] += 1
            if text.verdict is Verdict.DROPPED and text.reason is not None:
                self.dropped_texts[text.reason] += 1

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """All counts together, in a new tally."""
        total = cls()
        for tally in tallies:
            total.merge(tally)
        return total

    def merge(self, other: Tally) -> None:
        """Add another tally's counts to this one."""
        self.samples.update(other.samples)
        self.texts.update(other.texts)
        self.dropped_texts.update(other.dropped_texts)
        self.dropped_samples.update(other.dropped_samples)
        self.failed_samples.update(other.failed_samples)

    def judged(self, source: Source) -> int:
        """Texts of a source whose image could be read."""
        return self.texts[source, Verdict.KEPT] + self.texts[source, Verdict.DROPPED]

    def kept_share(self, source: Source) -> float | None:
        """Kept texts of a source over its judged texts, in [0, 1]; None when there is none."""
        judged = self.judged(source)
        return self.texts[source, Verdict.KEPT] / judged if judged else None

    @property
    def noise_ratio(self) -> float | None:
        """Share of synthetic captions that were rejected, in [0, 1]; None without captions.

        Source: BLIP section 4.2, Table 2 (25 % for nucleus sampling, 19 % for beam search).
        """
        share = self.kept_share(Source.SYNTHETIC)
        return None if share is None else 1.0 - share

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain nested dicts with every verdict named."""
        return {
            "read": self.read,
            **{verdict.value: self.samples[verdict] for verdict in Verdict},
            "texts": {
                source.value: {v.value: self.texts[source, v] for v in Verdict}
                for source in Source
                if any(self.texts[source, v] for v in Verdict)
            },
            "dropped_texts": dict(sorted(self.dropped_texts.items())),
            "dropped_samples": dict(sorted(self.dropped_samples.items())),
            "failed_samples": dict(sorted(self.failed_samples.items())),
        }

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> Tally:
        """Read back what `to_dict` wrote.

        Raises:
            ValueError: The counts do not add up.
        """
        tally = cls(
            samples=Counter({v: counts[v.value] for v in Verdict}),
            texts=Counter(
                {
                    (Source(source), Verdict(verdict)): n
                    for source, verdicts in counts["texts"].items()
                    for verdict, n in verdicts.items()
                }
            ),
            dropped_texts=Counter(counts["dropped_texts"]),
            # Older commits do not say.
            dropped_samples=Counter(counts.get("dropped_samples", {})),
            failed_samples=Counter(counts["failed_samples"]),
        )
        if tally.read != counts["read"]:
            raise ValueError(f"read {counts['read']} is not kept + dropped + failed = {tally.read}")
        return tally


def dropped_for(reasons: Iterable[str | None]) -> str:
    """Why an image is dropped, from its texts' reasons: a rule on images, else NO_TEXT_KEPT."""
    return next((str(reason) for reason in reasons if reason in ON_IMAGES), NO_TEXT_KEPT)
