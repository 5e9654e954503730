"""Copies a captioner's and a filter's folder, their weights in half precision, half the size.

python benchmarks/emoji/bundle.py CAPTIONER FILTER FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write FOLDER/captioner and FOLDER/filter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("captioner", "filter", "folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(arguments)
    for source, role in ((given.captioner, "captioner"), (given.filter, "filter")):
        shutil.copytree(source, given.folder / role, dirs_exist_ok=True)
        halve(given.folder / role / WEIGHTS)


def halve(file: Path) -> None:
    """Round a file's fp32 tensors to fp16: eleven bits of precision, ample for a small model."""
    tensors = load_file(file)
    halved = {n: t.half() if t.dtype == torch.float32 else t for n, t in tensors.items()}
    save_file(halved, file, metadata={"format": "pt"})
    shutil.copymode(file.with_name("config.json"), file)  # safetensors lets the writer alone read


if __name__ == "__main__":
    main()
