from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.errors import ConfigError
from capfilt.select.where import Where

SAMPLES = [
    {"width": 300, "height": 200, "url": "http://a/1.jpg", "license": "cc0"},
    {"width": 100, "height": None, "url": "http://shutterstock/2.jpg"},
    {"height": 50.5, "url": None, "license": "cc-by"},
]


def judge_all(text: str) -> None:
    where = Where(text)
    where.mask(SAMPLES)
    where.check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width >= 200", [1, 0, 0]),
        ("100 <= width < 300", [0, 1, 0]),
        ("width / height <= 1.5", [1, 0, 0]),
        ("width * 2 - 100 == 500", [1, 0, 0]),
        ("width > -1 and not contains(url, 'shutterstock')", [1, 0, 0]),
        ("matches(url, '[12]\\\\.jpg$')", [1, 1, 0]),
        ("url is None or license == 'cc0'", [1, 0, 1]),
        ("license is not None", [1, 0, 1]),
        ("license in ['cc0', 'cc-by']", [1, 0, 1]),
        ("width not in [100]", [1, 0, 0]),  # as in SQL: not where there is no width
        ("nowhere > 3", [0, 0, 0]),
        ("contains(nowhere, 'a') or width == 100", [0, 1, 0]),
        ("not (width > 200)", [0, 1, 0]),
        ("width / 0 > 1", [1, 1, 0]),
        ("width * 9223372036854775807 > 1", [1, 1, 0]),  # no overflow
    ],
)
def test_where_keeps(text: str, expected: list[int], caplog: pytest.LogCaptureFixture) -> None:
    where = Where(text)
    assert where.mask(SAMPLES).astype(int).tolist() == expected
    where.check()
    assert caplog.records == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "width >",
        "width",
        "1 < 2",
        "width > 3 if height else 2",
        "width.real > 3",
        "width[0] > 3",
        "(lambda: width)() > 3",
        "[x for x in width] == 3",
        "__import__('pathlib').Path('ran').touch() == 3",
        "contains(url, width)",
        "contains(url, 'a', 'b')",
        "width is 3",
        "width in height",
        "width > [1]",
        "width == 'wide'",
        "width ** 2 > 3",
        "f'{width}' == 'a'",
        "not " * 5000 + "width",
        "+".join(["width"] * 5000) + " > 3",
        "width in [1, 'a']",
        "width > 99999999999999999999",
        "url == '\\ud800'",
        "matches(url, '(')",
    ],
)
def test_where_refuses_what_it_does_not_know_and_runs_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--where") as caught:
        judge_all(text)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width > 3", [1, 0, 0, 0]),
        ("width == '5'", [0, 1, 0, 0]),
        ("width == True", [0, 0, 1, 0]),
        ("not (width > 3)", [0, 0, 0, 0]),
        ("width in [5, 7]", [1, 0, 0, 0]),
        ("2 * width > 3", [1, 0, 0, 0]),
        ("3 < width", [1, 0, 0, 0]),
        ("contains(width, '5')", [0, 1, 0, 0]),
        ("width is None", [0, 0, 0, 1]),
    ],
)
def test_where_takes_values_of_another_kind_as_missing(
    text: str, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    samples: list[dict[str, object]] = [{"width": 5}, {"width": "5"}, {"width": True}, {}]
    where = Where(text)
    each = [where.mask([sample])[0] for sample in samples]
    assert (each, where.mask(samples).tolist()) == ([bool(e) for e in expected],) * 2
    where.check()
    odd = 0 if "None" in text else 4
    assert [record.args for record in caplog.records][:1] == (
        [(odd, "width", where._kinds["width"])] if odd else []
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name == 'a'", [1, 0, 0]),
        ("size > 3", [0, 1, 0]),
        ("size < 3", [0, 0, 1]),
        ("contains(tags, '\"b\"')", [1, 0, 0]),
        ("tags is None", [0, 0, 1]),
        ("width / height < 3", [1, 0, 1]),
    ],
)
def test_where_bears_what_strangers_metadata_hold(text: str, expected: list[int]) -> None:
    samples = [
        {"name": "a", "size": 3, "tags": ["a", "b"], "width": 2, "height": 1},
        {"name": "\ud800", "size": 2**70, "tags": {"c": "\ud800"}, "width": 2, "height": 0},
        {"name": None, "size": -(2**70), "width": 2**62, "height": 2**62},
    ]
    assert Where(text).mask(samples).astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id > 3", [1, 0, 1, 1]),
        ("id > 3.5", [1, 0, 1, 1]),
        ("id == 1234567890123456789", [1, 0, 0, 0]),
        ("id in [7, 1234567890123456789]", [1, 0, 0, 1]),
        ("id in [1.5]", [0, 1, 0, 0]),
        ("id < -1234567890123456789 or id / 1.5 == 1", [0, 1, 0, 0]),
    ],
)
def test_where_integers_above_2_to_the_53rd_compare_with_floats(
    text: str, expected: list[int]
) -> None:
    samples = [{"id": 1234567890123456789}, {"id": 1.5}, {"id": 2**63}, {"id": 7}]
    where = Where(text)
    assert where.mask(samples).astype(int).tolist() == expected
    assert [int(where.mask([sample])[0]) for sample in samples] == expected


def test_where_integers_among_themselves_compare_exactly() -> None:
    samples = [{"id": 2**53 + 1}, {"id": 2**53}]
    assert Where(f"id == {2**53 + 1}").mask(samples).tolist() == [True, False]
