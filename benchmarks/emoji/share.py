"""Gives a filter what a captioner has learned: all that BLIP's two modules share.

python benchmarks/emoji/share.py CAPTIONER FILTER OUT

That is the image encoder, and of the text transformer all but self-attention (arXiv:2201.12086,
section 3.2). A captioner learns where things are from each other long before ITM does, which hears
of it only as one bit of a whole text; a filter that starts with what the captioner knows follows at
once.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
METADATA = {"format": "pt"}  # without it transformers does not read a file


def main() -> None:
    """Write the filter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("captioner", "filter", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    captioner, filter_ = load_file(given.captioner / WEIGHTS), load_file(given.filter / WEIGHTS)
    for name in filter_:
        source = name.replace("text_encoder.", "text_decoder.bert.")
        if source in captioner and not (source != name and ".attention." in name):
            filter_[name] = captioner[source].to(filter_[name].dtype).contiguous()
    shutil.copytree(given.filter, given.out, dirs_exist_ok=True)
    save_file(filter_, given.out / WEIGHTS, metadata=METADATA)


if __name__ == "__main__":
    main()
