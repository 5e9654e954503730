from __future__ import annotations

import pytest

from capfilt.record import Annotated, Reason, Sample, Source, Text, Verdict
from capfilt.tally import Tally


def annotated(verdicts: list[tuple[Source, Verdict, Reason | None]], verdict: Verdict) -> Annotated:
    texts = tuple(Text(source, 0, "t", verdict=v, reason=reason) for source, v, reason in verdicts)
    problem = texts[0].reason if verdict is Verdict.FAILED else None
    sample = Sample("k", b"", "jpg", texts, problem=problem)
    return Annotated(sample, texts, tuple(t for t in texts if t.verdict is Verdict.KEPT), verdict)


@pytest.fixture
def tally() -> Tally:
    found = Tally()
    kept, dropped, failed = Verdict.KEPT, Verdict.DROPPED, Verdict.FAILED
    low = Reason.BELOW_MIN_MATCH_PROB
    web, synthetic = Source.WEB, Source.SYNTHETIC
    found.add(annotated([(web, dropped, low), (synthetic, kept, None)], kept))
    found.add(annotated([(web, kept, None), (synthetic, dropped, low)], kept))
    found.add(annotated([(web, dropped, Reason.EMPTY_TEXT), (synthetic, kept, None)], kept))
    found.add(annotated([(web, dropped, low), (synthetic, kept, None)], kept))
    found.add(annotated([(web, failed, Reason.IMAGE_CORRUPT)], failed))
    return found


def test_tally_counts_add_up(tally: Tally) -> None:
    assert tally.read == 5
    assert tally.samples == {Verdict.KEPT: 4, Verdict.FAILED: 1}
    assert tally.dropped_texts == {Reason.BELOW_MIN_MATCH_PROB: 3, Reason.EMPTY_TEXT: 1}
    assert tally.failed_samples == {Reason.IMAGE_CORRUPT: 1}


def test_tally_counts_dropped_images_by_the_rule_that_dropped_them(tally: Tally) -> None:
    dropped, held = Verdict.DROPPED, Reason.EVALUATION_IMAGE
    below = annotated([(Source.WEB, dropped, Reason.BELOW_MIN_MATCH_PROB)] * 2, dropped)
    tally.add(below)
    tally.add(annotated([(Source.WEB, dropped, held)] * 2, dropped))
    assert tally.dropped_samples == {"no_text_kept": 1, held: 1}
    assert tally.dropped_samples.total() == tally.samples[dropped]
    again = Tally.from_dict(tally.to_dict())
    again.merge(again)
    assert again.dropped_samples == {"no_text_kept": 2, held: 2}


def test_tally_noise_ratio_is_of_synthetic_texts_only(tally: Tally) -> None:
    assert tally.noise_ratio == pytest.approx(0.25)
    assert tally.kept_share(Source.WEB) == pytest.approx(0.25)  # the failed image's is not judged
    assert tally.kept_share(Source.HUMAN) is None


def test_tally_dict_round_trip_and_merge(tally: Tally) -> None:
    again = Tally.from_dict(tally.to_dict())
    assert again.to_dict() == tally.to_dict()
    again.merge(tally)
    assert again.read == 10
    assert again.noise_ratio == pytest.approx(0.25)


def test_tally_from_dict_refuses_counts_that_do_not_add_up(tally: Tally) -> None:
    counts = tally.to_dict()
    counts["kept"] += 1
    with pytest.raises(ValueError, match=r"kept \+ dropped \+ failed"):
        Tally.from_dict(counts)
