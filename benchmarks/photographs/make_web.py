"""Makes a noisy web, a small human set and an evaluation set of Flickr8k's photographs.

    python benchmarks/photographs/make_web.py FOLDER [--data ../shared/data]

Of the 6,000 training photographs, 2,000 with their five captions are the human set (`human.json`).
The others are the web (`web.json`): each caption is replaced with probability one half, by a
caption of another photograph or by a text of the real web. What was replaced is known, so
`web_labelled.jsonl` measures a filter on the very texts that it is to filter. The development
split stays as it is (`dev.jsonl`, labelled pairs in `dev_pairs.jsonl`). `vocab.txt` is a vocabulary
of 4,000 word pieces of these texts: BERT's 30,522 would take most of a small model's time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from tokenizers import BertWordPieceTokenizer

HUMAN = 2000  # photographs
WORDS = 4000
REPLACED = 0.5  # of the web's captions, half by other captions, half by web texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args(arguments)
    photographs = read_lines(options.data / "flickr8k/captions.jsonl")
    train = [one for one in photographs if one["split"] == "train"]
    web_texts = pyarrow.parquet.read_table(options.data / "web_text/laion_sample.parquet")
    chance = random.Random(0)
    chance.shuffle(train)
    human, web = train[:HUMAN], train[HUMAN:]
    labelled = replace(web, web_texts["TEXT"].to_pylist(), chance)
    options.folder.mkdir(parents=True, exist_ok=True)
    images = options.folder / "images"
    if not images.exists():
        images.symlink_to((options.data / "flickr8k/images").resolve())
    dump(options.folder / "human.json", [pair for one in human for pair in pairs(one)])
    dump(options.folder / "web.json", [keep(pair, "image", "caption") for pair in labelled])
    dump_lines(options.folder / "web_labelled.jsonl", labelled)
    texts = [pair["caption"] for pair in labelled]
    texts += [text for one in human for text in one["captions"]]
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(texts, vocab_size=WORDS, show_progress=False)
    words.save_model(str(options.folder))
    pairs_of_dev = read_lines(options.data / "flickr8k/itm_pairs.jsonl")
    dump_lines(
        options.folder / "dev_pairs.jsonl", [one for one in pairs_of_dev if one["split"] == "dev"]
    )
    dump_lines(options.folder / "dev.jsonl", [one for one in photographs if one["split"] == "dev"])


def replace(
    photographs: Sequence[dict[str, Any]], web_texts: Sequence[str], chance: random.Random
) -> list[dict[str, Any]]:
    """Every pair with its label: 1 as it was, 0 with another text."""
    labelled = []
    for one in photographs:
        for pair in pairs(one):
            label = int(chance.random() >= REPLACED)
            if not label and chance.random() < 0.5:
                other = chance.choice(photographs)
                while other is one:
                    other = chance.choice(photographs)
                pair["caption"] = chance.choice(other["captions"])
            elif not label:
                pair["caption"] = chance.choice(web_texts)
            labelled.append(pair | {"label": label})
    return labelled


def pairs(photograph: dict[str, Any]) -> list[dict[str, Any]]:
    """One image and caption each."""
    return [{"image": photograph["image"], "caption": text} for text in photograph["captions"]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(pair: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: pair[name] for name in names}


def dump(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def dump_lines(path: Path, trees: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(tree) + "\n" for tree in trees), encoding="utf-8")


if __name__ == "__main__":
    main()
