"""Makes the emoji world that the bundled checkpoint is trained and measured on.

    python benchmarks/emoji/make_world.py FOLDER

20,000 pictures with five human captions each; 10,000 with one alt text of the web each, of which
only the true ones were kept, as if people had read them; 1,000 pictures of unseen scenes to measure
on; and `vocab.txt`, the words of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from capfilt.demo.dataset import make_world
from capfilt.demo.demo import SIDE
from capfilt.demo.grammar import words
from capfilt.demo.tiny import vocabulary
from capfilt.demo.web import WebMix
from capfilt.demo.web import words as web_words

ALL_TRUE = WebMix(true=1.0, lie=0.0, other=0.0, junk=0.0, empty=0.0)
PROMPT = "a picture of"
SEED = 1  # the demo's pictures are of another world


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    make_world(
        folder, web=10_000, human=20_000, evaluation=1_000, seed=SEED, side=SIDE, mix=ALL_TRUE
    )
    lines = vocabulary([*words(), *web_words(), *PROMPT.split()])
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
