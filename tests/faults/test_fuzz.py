"""Whatever bytes a shard or a config has, it is read, or refused by an error for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.config import SelectionConfig, resolve
from capfilt.errors import CapfiltError
from capfilt.record import Score, Source, Text, Verdict
from capfilt.selection import judge
from capfilt.shard import Form
from tests.fuzz.readers import SEEDS, check_read

# The same examples at every run of the suite, so that it fails for a change and not by chance.
short = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
damages = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x37])),
    max_size=6,
)


WHOLE = {form: seeds[0] for form, seeds in SEEDS.items()}


@pytest.mark.parametrize("form", WHOLE)
@short
@given(damage=damages, cut=st.integers(0, 2**16))
def test_damaged_shard_is_read_or_refused(
    form: Form, damage: list[tuple[int, int]], cut: int, tmp_path: Path
) -> None:
    data = bytearray(WHOLE[form])
    for place, byte in damage:
        data[place % len(data)] = byte
    (tmp_path / "0").write_bytes(data[: cut % (2 * len(data)) or None])
    check_read(tmp_path / "0", form)


@pytest.mark.parametrize("form", WHOLE)
@short
@given(data=st.binary(max_size=3000))
def test_bytes_that_are_no_shard_are_refused(form: Form, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(data)
    check_read(tmp_path / "0", form)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = ["seed", "preset", "captions", "captions.top_p", "scoring.match_prob", "selection.top_k"]
KEYS += [
    "images.max_pixels",
    "output.format",
    "compute.memory_limit_gb",
    "x",
    "",
    "a.b.c",
    "captioner",
]


@short
@given(
    text=st.text(max_size=200) | st.dictionaries(st.sampled_from(KEYS), values).map(str),
    overrides=st.lists(
        st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=8) | values), max_size=3
    ),
)
def test_config_of_anything_is_resolved_or_refused(text: str, overrides: list[str]) -> None:
    options: dict[str, Any] = {"captioner": "c", "filter": "f"}
    try:
        resolve(yaml_text=text, yaml_name="c.yaml", options=options, overrides=overrides)
    except CapfiltError as error:
        assert str(error)  # noqa: PT017


scored = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(-1, 1, width=32)), min_size=1, max_size=12
)


@short
@given(
    scores=scored,
    least=st.none() | st.floats(0, 1, width=32),
    top_k=st.none() | st.integers(1, 15),
)
def test_selection_keeps_what_a_plain_reading_of_its_rules_keeps(
    scores: list[tuple[float, float]], least: float | None, top_k: int | None
) -> None:
    texts = [Text(Source.WEB, i, str(i), Score(*score)) for i, score in enumerate(scores)]
    judged, kept = judge(texts, SelectionConfig(min_match_prob=least, top_k=top_k))
    expected = [i for i, (match, _) in enumerate(scores) if least is None or match >= least]
    if top_k is not None:
        expected = sorted(expected, key=lambda i: (-scores[i][1], i))[:top_k]
    assert [text.index for text in kept] == expected
    assert [text.index for text in judged] == list(range(len(scores)))
    for text in judged:
        assert (text.verdict is Verdict.KEPT) == (text.index in expected)
        assert (text.reason is None) == (text.verdict is Verdict.KEPT)
