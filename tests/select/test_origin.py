from __future__ import annotations

import json

import pytest

from capfilt.io.members import MAX_TEXT_BYTES
from capfilt.select.origin import original

LONG = "long " * MAX_TEXT_BYTES


@pytest.mark.parametrize("web", ["a web text", "", None])
def test_original_fields_of_a_tar_are_those_that_a_run_did_not_add(web: str | None) -> None:
    fields = {"url": "u", "input_caption": 3, "caption": "c", "captions": [], "web_text": web}
    assert original(fields) == {"url": "u", "input_caption": 3}


def test_original_fields_of_a_row_are_in_its_json() -> None:
    stored = {"caption": "c", "captions": 1, "json": 2}
    row = {"key": "k", "json": json.dumps(stored), "web_text": "c", "caption": "kept"}
    assert original(row, is_row=True) == stored
    row["json"] = json.dumps({"width": 3})
    assert original(row, is_row=True) == {"width": 3}


@pytest.mark.parametrize("is_row", [False, True])
def test_a_text_too_long_for_the_ledger_comes_back(is_row: bool) -> None:
    found = original({"json": "{}", "web_text": LONG}, is_row=is_row)
    assert found["caption"] == LONG
