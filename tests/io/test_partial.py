from __future__ import annotations

import json
from pathlib import Path

import pytest

from capfilt.io.partial import Partial, recalled
from capfilt.record import Annotated, Reason, Sample, Score, Source, Text, Verdict
from tests.io.conftest import annotate

MADE_BY = {"fingerprint": "f", "batch_size": 2}


def many(count: int, first: int = 0) -> list[Annotated]:
    return [
        annotate(f"{i:03d}", score=Score(0.1 + i / 7, None)) for i in range(first, first + count)
    ]


def partial(place: str, every: int = 4, made_by: dict[str, object] = MADE_BY) -> Partial:
    return Partial(place, "a/0", made_by, every=every)


def test_partial_recalls_what_every_so_many_samples_put_aside(place: str) -> None:
    samples = many(8)
    first = partial(place)
    assert first.recall() == []
    for start in range(0, 6, 2):
        first.add(samples[start : start + 2])
    again = partial(place)
    known = again.recall()
    assert [k["key"] for k in known] == [f"{i:03d}" for i in range(4)]
    for one, sample in zip(known, samples, strict=False):
        assert recalled(one, sample.sample) == sample
    again.add(samples)
    assert len(partial(place).recall()) == 8


def test_partial_left_out_samples_and_ranked_captions_come_back_as_they_were(place: str) -> None:
    texts = tuple(
        Text(Source.SYNTHETIC, i, f"text {i} \u202e\x1b[2J", Score(None, i / 3), Verdict.KEPT)
        for i in range(3)
    )
    ranked = Annotated(Sample("1", b"x", "jpg", texts[:1]), texts, texts[::-1], Verdict.KEPT)
    lost = Text(Source.WEB, 0, None, Score(), Verdict.FAILED, Reason.IMAGE_CORRUPT)
    failed = Annotated(
        Sample("2", None, "jpg", (lost,), problem=Reason.IMAGE_CORRUPT), (lost,), (), Verdict.FAILED
    )
    out = Text(Source.WEB, 0, "a", Score(), Verdict.DROPPED, Reason.EVALUATION_IMAGE)
    unwanted = Annotated(
        Sample("3", None, "jpg", (out,), unwanted=Reason.EVALUATION_IMAGE),
        (out,),
        (),
        Verdict.DROPPED,
    )
    partial(place, every=1).add([ranked, failed, unwanted])
    first, second, third = partial(place).recall()
    assert recalled(first, ranked.sample) == ranked
    assert recalled(second, Sample("2", b"bytes", "jpg", (lost,))) == failed
    assert recalled(third, Sample("3", b"bytes", "jpg", (out,))) == unwanted


def test_partial_of_another_config_or_input_is_nobodys(place: str) -> None:
    partial(place, every=1).add(many(2))
    assert partial(place, made_by={**MADE_BY, "batch_size": 3}).recall() == []
    assert len(partial(place).recall()) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"samples": [{"key": 1}]}', b"\xff"])
def test_partial_damaged_is_passed_over(tmp_path: Path, content: bytes) -> None:
    place = str(tmp_path)
    two = partial(place, every=2)
    two.add(many(2))
    two.add(many(2, first=2))
    first, second = sorted((tmp_path / "partial" / "a" / "0").iterdir())
    second.write_bytes(content)
    assert len(partial(place).recall()) == 2
    first.write_bytes(content)
    assert partial(place).recall() == []


def test_partial_with_a_gap_ends_before_it(tmp_path: Path) -> None:
    two = partial(str(tmp_path), every=2)
    for start in (0, 2, 4):
        two.add(many(2, first=start))
    sorted((tmp_path / "partial" / "a" / "0").iterdir())[1].unlink()
    assert len(partial(str(tmp_path)).recall()) == 2


def test_partial_never_is_never(tmp_path: Path) -> None:
    partial(str(tmp_path), every=0).add(many(9))
    assert list(tmp_path.iterdir()) == []


def test_partial_removed_leaves_nothing(place: str) -> None:
    one = partial(place, every=1)
    one.add(many(3))
    one.remove()
    assert partial(place).recall() == []


def test_partial_leaves_alone_what_is_of_shards_below_its_own(place: str) -> None:
    below = Partial(place, "a/0/b", MADE_BY, every=1)
    below.add(many(2))
    one = partial(place, every=1)
    assert one.recall() == []
    one.add(many(3))
    one.remove()
    assert len(below.recall()) == 2


def test_partial_is_json_of_a_few_hundred_bytes_a_sample(tmp_path: Path) -> None:
    partial(str(tmp_path), every=1).add(many(100))
    [file] = (tmp_path / "partial" / "a" / "0").iterdir()
    assert len(json.loads(file.read_bytes())["samples"]) == 100
    assert file.stat().st_size < 100 * 400
