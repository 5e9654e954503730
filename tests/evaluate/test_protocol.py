from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.config import resolve
from capfilt.evaluate.protocol import decoding
from capfilt.models.load import load_captioner
from tests import blip2_checkpoints
from tests.blip2_checkpoints import Kind


def test_blip_has_three_beams_and_its_own_lengths(captioner_folder: Path) -> None:
    options = {"captioner": "c", "filter": "none", **decoding(captioner_folder, None)}
    captions = resolve(options=options).captions
    assert (captions.method, captions.num_beams) == ("beam", 3)
    assert (captions.min_length, captions.max_length) == (5, 20)


@pytest.mark.parametrize(
    ("kind", "prompt", "before"),
    [
        ("opt", None, 4),  # a start and `a photo of`
        ("opt", "a photo of two ", 5),
        ("opt", "", 1),
        ("llama", None, 4),
        ("t5", None, 1),  # its encoder has the prompt
        ("t5", "a photo of two ", 1),
    ],
)
def test_blip2_writes_thirty_tokens_after_what_stands_before_them(
    kind: Kind, prompt: str | None, before: int, tmp_path: Path
) -> None:
    folder = blip2_checkpoints.make_captioner(tmp_path, kind)
    options = {"captioner": "c", "filter": "none", "captions.prompt": prompt}
    found = decoding(folder, prompt)
    assert (found["captions.num_beams"], found["captions.min_length"]) == (5, 8)
    assert found["captions.max_length"] == before + 30
    captions = resolve(options={**options, **found}).captions
    load_captioner(str(folder), captions, seed=0, device="cpu")  # it has positions for so many
