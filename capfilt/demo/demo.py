"""`capfilt demo`: every part at work, from a web site on loopback to a filtered dataset.

    pictures --serve--> ingest --> <folder>/web --run--> <folder>/dataset --verify

The models are made on the spot and untrained, so what they write and score is without meaning: a
demonstration of the machinery, in a minute and without a download.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from transformers.utils import logging as transformers_logging

from capfilt.config import resolve
from capfilt.demo.dataset import write_images, write_list
from capfilt.demo.grammar import words
from capfilt.demo.serve import serve
from capfilt.demo.tiny import make_captioner, make_filter, tokenizer
from capfilt.demo.world import WEB, Picture, draw_pictures
from capfilt.errors import ConfigError
from capfilt.ingest import Ingested, ingest
from capfilt.run.job import Summary, Where, run
from capfilt.run.verify import Verification, verify
from capfilt.show import summary_text, verification_text

_IMAGE_SIZE = 96  # pixels, of the models
_SIDE = 192  # pixels, of the pictures
_SHARDS = 4
# What every crawl has besides pictures: a page in place of an image, nothing, and a dead link.
_FAULTS = {"moved.jpg": b"<!DOCTYPE html><title>Moved</title>", "empty.jpg": b"", "gone.jpg": None}


def demo(folder: str | Path, pictures: int = 200, *, seed: int = 0) -> Summary:
    """Make pictures and models in a folder, run everything over them, and say what came of it.

    The same call again finds the finished parts and goes on.

    Args:
        folder: Made if absent. It must be empty, or of an earlier call with the same arguments.
        pictures: How many.
        seed: Of the pictures and the run.

    Raises:
        ConfigError: Too few pictures, or the folder is another demo's or somebody else's.
        CapfiltError: A part of the run failed.
    """
    if pictures < 4:
        raise ConfigError(f"demo: pictures must be at least 4, is {pictures}")
    folder = Path(folder)
    _claim(folder, {"pictures": pictures, "seed": seed})
    transformers_logging.disable_progress_bar()
    say = Console(highlight=False, soft_wrap=True).print
    say("[bold]capfilt demo[/bold]: the models are made on the spot and [bold]untrained[/bold].")
    say("Their captions are nonsense and their scores mean nothing: only the machinery is real.\n")

    drawn = _draw(folder, pictures, seed)
    kinds = Counter(picture.web.kind for picture in drawn)
    say(f"1. Drew {pictures} pictures. Of their web texts {kinds['true']} are true, "
        f"{kinds['lie']} wrong in one word, {kinds['other']} of another picture, "
        f"{kinds['junk']} junk, {kinds['empty']} empty.")  # fmt: skip

    names = tokenizer(words())
    sizes = {"image_size": _IMAGE_SIZE, "patch_size": 16}
    if not (folder / "captioner" / "config.json").exists():
        make_captioner(folder / "captioner", names=names, **sizes)
    if not (folder / "filter" / "config.json").exists():
        # This seed is one of those with which the scores lie on both sides of one half.
        make_filter(folder / "filter", seed=1, names=names, **sizes)
    say("2. Made an untrained captioner and filter.")

    say("3. Serving them on 127.0.0.1, with three URLs broken on purpose. img2dataset downloads,")
    say("   then capfilt captions and filters on Ray:")
    found, summary, verified = _bootstrap(folder, drawn, seed)
    failures = ", ".join(f"{count} {name}" for name, count in found.failures.items())
    say(f"   Downloaded {found.rows} URLs into {found.shards} shards: "
        f"{found.succeeded} images, {found.failed} failures ({escape(failures)}).")  # fmt: skip
    say(summary_text(summary))
    say("4. Read everything again:")
    say(verification_text(verified))
    say(f"\nThe dataset is {folder / 'dataset' / 'data'}, the score of every text beside it in "
        f"{folder / 'dataset' / 'ledger'}.\nWith trained models: capfilt run {folder / 'web'} OUT "
        "--captioner Salesforce/blip-image-captioning-base --filter Salesforce/blip-itm-base-coco"
    )  # fmt: skip
    return summary


def _claim(folder: Path, arguments: dict[str, int]) -> None:
    """Make the folder this demo's: finished parts are kept, so they have to be of the same one."""
    record = folder / "demo.json"
    if record.exists():
        if json.loads(record.read_text()) != arguments:
            raise ConfigError(f"demo: {folder} is of a demo with other arguments; give another")
        return
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"demo: {folder} is not empty and not a demo's; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(arguments))


def _draw(folder: Path, count: int, seed: int) -> list[Picture]:
    drawn = list(draw_pictures(count, WEB, seed=seed))
    write_images(folder / "pictures", drawn, _SIDE)
    for name, content in _FAULTS.items():
        if content is not None:
            (folder / "pictures" / name).write_bytes(content)
    return drawn


def _bootstrap(
    folder: Path, drawn: list[Picture], seed: int
) -> tuple[Ingested, Summary, Verification]:
    config = resolve(
        options={
            "captioner": str(folder / "captioner"),
            "filter": str(folder / "filter"),
            "seed": seed,
        }
    )
    rows = len(drawn) + len(_FAULTS)
    per_shard = math.ceil(rows / _SHARDS)
    web, dataset = str(folder / "web"), str(folder / "dataset")
    with serve(folder / "pictures") as base_url:
        # Another port each time, so another list: what is whole stays, what is not starts anew.
        if len(list((folder / "web").glob("*_stats.json"))) < math.ceil(rows / per_shard):
            for made in ("web", "dataset"):
                shutil.rmtree(folder / made, ignore_errors=True)
            faults = dict.fromkeys(_FAULTS, "not a picture")
            write_list(folder / "urls.parquet", drawn, base_url, faults)
        ingested = ingest(
            str(folder / "urls.parquet"),
            web,
            allow_private_hosts=["127.0.0.1"],
            samples_per_shard=per_shard,
        )
    summary = run(config, Where(input=web, output=dataset))
    return ingested, summary, verify(dataset)
