from __future__ import annotations

import datetime
import json

import numpy as np
import pytest

from capfilt.io.fields import NOT_SCORED, output_fields, output_json, to_json, web_text_of
from capfilt.record import Annotated, Reason, Sample, Score, Source, Text, Verdict
from tests.io.conftest import annotate


def test_output_fields_originals_come_first_in_their_order() -> None:
    fields = output_fields(annotate("1", metadata={"z": 1, "caption": "the web text", "a": None}))
    assert list(fields) == ["z", "a", "caption", "captions", "web_text"]
    assert fields["a"] is None
    assert fields["caption"] == "a picture of a dog"
    assert fields["web_text"] == "the web text"


def test_output_fields_original_in_our_way_is_kept_under_another_name() -> None:
    metadata = {"caption": "not the web text", "captions": ["x"], "web_text": "older"}
    fields = output_fields(annotate("1", metadata=metadata))
    assert fields["input_caption"] == "not the web text"
    assert fields["input_captions"] == ["x"]
    assert fields["input_web_text"] == "older"
    assert fields["web_text"] == "the web text"


def test_output_fields_two_originals_in_our_way_are_both_kept() -> None:
    metadata = {"input_captions": ["older"], "captions": ["old"], "caption": ["a", "list"]}
    fields = output_fields(annotate("1", web=None, metadata=metadata))
    assert fields["input_captions"] == ["older"]
    assert fields["input_input_captions"] == ["old"]
    assert fields["input_caption"] == ["a", "list"]


def test_output_fields_without_web_text_have_no_null_and_the_same_keys() -> None:
    fields = output_fields(annotate("1", web=None, metadata={"caption": None}))
    assert list(fields) == ["caption", "captions", "web_text"]
    assert fields["web_text"] == ""
    assert "null" not in json.dumps(fields)


def test_output_fields_captions_are_all_kept_ones_in_their_order() -> None:
    web = Text(Source.WEB, 0, "web", Score(0.75, 0.5), Verdict.KEPT)
    made = Text(Source.SYNTHETIC, 3, "made", Score(None, np.float32(0.3)), Verdict.KEPT)
    annotated = Annotated(Sample("1", b"x", "jpg", (web,)), (web, made), (made, web), Verdict.KEPT)
    assert output_fields(annotated)["captions"] == [
        {"text": "made", "source": "synthetic", "match_prob": NOT_SCORED, "similarity": 0.3},
        {"text": "web", "source": "web", "match_prob": 0.75, "similarity": 0.5},
    ]
    assert output_fields(annotated)["caption"] == "made"


def test_output_json_score_is_the_shortest_that_is_the_same_float32() -> None:
    annotated = annotate("1")
    score = float(np.float32(0.1))
    text = Text(Source.SYNTHETIC, 0, "x", Score(score), Verdict.KEPT)
    line = output_json(Annotated(annotated.sample, (text,), (text,), Verdict.KEPT))
    assert '"match_prob": 0.1, ' in line
    assert np.float32(json.loads(line)["captions"][0]["match_prob"]) == np.float32(score)


def test_output_json_other_scripts_are_readable() -> None:
    line = output_json(annotate("1", synthetic="ein großer 犬"))
    assert "ein großer 犬" in line
    assert line == line.strip()
    assert "\n" not in line


def test_to_json_half_a_surrogate_pair_survives() -> None:
    line = to_json({"alt": "a \ud83d dog", "b": "ñ"})
    assert json.loads(line.encode()) == {"alt": "a \ud83d dog", "b": "ñ"}


def test_to_json_parquet_values_become_text() -> None:
    fields = {"raw": b"\x00\xff", "day": datetime.date(2026, 1, 2)}
    assert json.loads(to_json(fields)) == {"raw": "AP8=", "day": "2026-01-02"}


def test_to_json_numbers_that_are_not_finite_become_null() -> None:
    nan, fields = float("nan"), {"a": [1.5, {"b": float("-inf")}], "犬": "NaN", "alt": "\ud83d"}
    for more in ({"x": nan}, {"x": nan, "alt": "ñ"}):
        line = to_json({**fields, **more})
        tree = json.loads(line.encode(), parse_constant=pytest.fail)
        assert tree == {**fields, "a": [1.5, {"b": None}], **more, "x": None}


def test_web_text_of_a_text_too_long_to_score_is_still_there() -> None:
    long = Text(Source.WEB, 0, None, reason=Reason.TEXT_TOO_LONG)
    kept = Text(Source.SYNTHETIC, 0, "made", Score(0.9), Verdict.KEPT)
    sample = Sample("1", b"x", "jpg", (long,), {"caption": "x" * 70_000})
    annotated = Annotated(sample, (long, kept), (kept,), Verdict.KEPT)
    assert web_text_of(annotated) == "x" * 70_000


def test_web_text_of_human_captions_is_none() -> None:
    human = Text(Source.HUMAN, 0, "a dog", verdict=Verdict.KEPT)
    sample = Sample("1", b"x", "jpg", (human,))
    assert web_text_of(Annotated(sample, (human,), (human,), Verdict.KEPT)) is None
