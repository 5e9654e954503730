"""`capfilt demo`: every part at work, from a web site on loopback to a better dataset.

    pictures --serve--> ingest --> <folder>/web --run--> <folder>/dataset --> held against the truth

The web is the emoji world's (`capfilt.demo.world`): every picture is of a scene that the bundled
models have not seen, and what is true of it is known. `checkpoint/README.md` says how these were
trained.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from capfilt.config import NONE, resolve
from capfilt.demo.checker import is_true
from capfilt.demo.dataset import write_images, write_list
from capfilt.demo.serve import serve
from capfilt.demo.truth import CAPTION_FALSE, CAPTION_TRUE, Found, judge
from capfilt.demo.world import EVALUATION, Picture, draw_pictures
from capfilt.errors import ConfigError
from capfilt.evaluate.captions import write_captions
from capfilt.evaluate.pictures import Pictures
from capfilt.ingest.ingest import check_installed, ingest
from capfilt.ingest.stats import Ingested
from capfilt.models.load import load_captioner
from capfilt.report.charts import load_matplotlib
from capfilt.report.report import report
from capfilt.run.job import run
from capfilt.run.summary import Summary
from capfilt.run.verify import verify
from capfilt.run.where import Where

CHECKPOINT = Path(__file__).parent / "checkpoint"
CAPTIONER, FILTER = CHECKPOINT / "captioner", CHECKPOINT / "filter"
SIDE = 128  # pixels, of the pictures

_SHARDS = 4
# What every crawl has besides pictures: a page in place of an image, nothing, and a dead link.
_FAULTS = {"moved.jpg": b"<!DOCTYPE html><title>Moved</title>", "empty.jpg": b"", "gone.jpg": None}
_KINDS = {  # of texts, as the table has them
    "true": "web: true",
    "lie": "web: one word wrong",
    "other": "web: another picture's",
    "junk": "web: junk",
    "empty": "web: empty",
    CAPTION_TRUE: "captioner's: true",
    CAPTION_FALSE: "captioner's: false",
}

Say = Callable[..., None]


@dataclass(frozen=True)
class Demonstration:
    """What came of a demo."""

    run: Summary
    found: Found
    captions_true: float  # share of greedy captions of the pictures that the checker finds true
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rounded = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in self.found.to_dict().items()
        }
        captions_true, seconds = round(self.captions_true, 4), round(self.seconds, 1)
        return {**rounded, "captions_true": captions_true, "seconds": seconds}


def demo(
    folder: str | Path, pictures: int = 300, *, seed: int = 0, quiet: bool = False
) -> Demonstration:
    """Make a web of pictures in a folder, run everything over it, and hold it against the truth.

    The same call again finds the finished parts and goes on.

    Args:
        folder: Made if absent. It must be empty, or of an earlier call with the same arguments.
        pictures: How many.
        seed: Of the pictures and the run.
        quiet: Print nothing.

    Raises:
        ConfigError: Too few pictures, the folder is another demo's or somebody else's, or
            img2dataset or matplotlib is not installed.
        CapfiltError: A part of the run failed.
    """
    if pictures < 20:
        raise ConfigError(f"demo: pictures must be at least 20, is {pictures}")
    check_installed()
    load_matplotlib()
    began = time.monotonic()
    folder = Path(folder)
    _claim(folder, {"pictures": pictures, "seed": seed})
    transformers_logging.disable_progress_bar()
    say = Console(highlight=False, soft_wrap=True, quiet=quiet).print

    drawn = _draw(folder, pictures, seed)
    say(f"[bold]1[/bold]  Drew {pictures} pictures and wrote a web text for each as a web would: "
        "true, false or junk.")  # fmt: skip
    ingested = _ingest(folder, drawn)
    failures = ", ".join(f"{count} {escape(name)}" for name, count in ingested.failures.items())
    say(f"[bold]2[/bold]  Served them on 127.0.0.1 with three URLs broken on purpose; img2dataset "
        f"fetched {ingested.succeeded} ({failures}).")  # fmt: skip
    summary = _run(folder, seed)
    say("[bold]3[/bold]  Wrote a caption for each and dropped what does not match, on Ray with the "
        "bundled BLIP.")  # fmt: skip
    checked = verify(str(folder / "dataset"))
    state = f"{len(checked.problems)} problems" if checked.problems else "all as committed"
    say(f"[bold]4[/bold]  Read all files of the dataset again: {state}.")
    found = Found.of(judge(folder / "web", folder / "dataset", drawn))
    captions_true = greedy_captions_true(CAPTIONER, folder / "pictures", drawn)
    say("[bold]5[/bold]  Held every text against what the pictures really show:\n")
    result = Demonstration(summary, found, captions_true, time.monotonic() - began)
    for part in _shown(result):
        say(part)
    page = report(str(folder / "dataset")).url
    say(f"\nLook at it: {escape(page)}\nYour own data: [bold]capfilt run WEB OUTPUT "
        "--captioner Salesforce/blip-image-captioning-base "
        "--filter Salesforce/blip-itm-base-coco[/bold]")  # fmt: skip
    return result


def greedy_captions_true(captioner: Path, images: Path, pictures: Sequence[Picture]) -> float:
    """The share of pictures of which a captioner's likeliest words say something true."""
    options = {"captioner": str(captioner), "filter": NONE, "captions.method": "greedy"}
    config = resolve(options=options)
    model = load_captioner(str(captioner), config.captions, seed=0, precision="fp32")
    names = [picture.file for picture in pictures]
    written = write_captions(model, names, Pictures(str(images), compute=config.compute))
    return sum(is_true(written[p.file], p.scene) for p in pictures) / len(pictures)


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
    drawn = list(draw_pictures(count, EVALUATION, seed=seed))
    write_images(folder / "pictures", drawn, SIDE)
    for name, content in _FAULTS.items():
        if content is not None:
            (folder / "pictures" / name).write_bytes(content)
    return drawn


def _ingest(folder: Path, drawn: Sequence[Picture]) -> Ingested:
    rows = len(drawn) + len(_FAULTS)
    per_shard = math.ceil(rows / _SHARDS)
    with serve(folder / "pictures") as base_url:
        # Another port each time, so another list: what is whole stays, what is not starts anew.
        if len(list((folder / "web").glob("*_stats.json"))) < math.ceil(rows / per_shard):
            for made in ("web", "dataset"):
                shutil.rmtree(folder / made, ignore_errors=True)
            faults = dict.fromkeys(_FAULTS, "not a picture")
            write_list(folder / "urls.parquet", drawn, base_url, faults)
        return ingest(
            str(folder / "urls.parquet"),
            str(folder / "web"),
            allow_private_hosts=["127.0.0.1"],
            samples_per_shard=per_shard,
        )


def _run(folder: Path, seed: int) -> Summary:
    options = {"captioner": str(CAPTIONER), "filter": str(FILTER), "seed": seed}
    where = Where(input=str(folder / "web"), output=str(folder / "dataset"))
    return run(resolve(options=options), where)


def _shown(result: Demonstration) -> list[RenderableType]:
    """The texts by kind, and what they come to."""
    found = result.found
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("text", "is true", "texts", "kept", ""):
        table.add_column(name, justify="right" if name in ("texts", "kept") else "left")
    for kind, name in _KINDS.items():
        texts, kept = found.texts[kind], found.kept[kind]
        is_good = kind in ("true", CAPTION_TRUE)
        share = kept / texts if texts else 0.0
        bar = "█" * round(20 * share)
        colour = "green" if is_good else "red"
        table.add_row(
            name, "yes" if is_good else "no", str(texts), f"{share:.0%}", f"[{colour}]{bar}[/]"
        )
    return [
        table,
        f"Of the texts kept [bold]{found.filter_precision:.1%}[/bold] are true, and "
        f"{found.filter_recall:.1%} of the true ones are kept.",
        f"Of the captions {found.captions_written_true:.0%} were true when written (nucleus "
        f"sampling) and {found.captions_kept_true:.0%} of those kept; noise ratio "
        f"{found.noise_ratio:.0%}. Greedy ones: {result.captions_true:.0%}.",
        f"The filter tells true from false web texts with an AUC of {found.itm_auc:.3f}, from "
        f"those with one word wrong {found.itm_auc_hard_lies:.3f}.",
    ]
