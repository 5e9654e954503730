from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.models.conftest import (
    _one_thread,
    captioner_folder,
    clip_folder,
    filter_folder,
    hf_captioner,
    hf_filter,
    make_images,
)

__all__ = [
    "_one_thread",
    "captioner_folder",
    "clip_folder",
    "filter_folder",
    "hf_captioner",
    "hf_filter",
]

PICTURES = 12


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `PICTURES` images `<i>.png`, each of 32 x 32 pixels: no resize, no loss."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(make_images(PICTURES)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def put_lines(path: Path, rows: Sequence[Any]) -> str:
    """Write a JSONL."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
