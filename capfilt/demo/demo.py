"""`capfilt demo`: every part at work, from a web site on loopback to a better dataset.

    pictures --serve--> ingest --> <folder>/web --run--> <folder>/dataset --> held against the truth

The web is the emoji world's (`capfilt.demo.world`): every picture is of a scene that the bundled
models have not seen, and what is true of it is known. `checkpoint/README.md` says how these were
trained.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from capfilt.config import NONE, RunConfig, resolve
from capfilt.demo.checker import is_true
from capfilt.demo.dataset import write_images, write_list
from capfilt.demo.folder import claim, digest
from capfilt.demo.screen import Screen, warnings_only
from capfilt.demo.serve import serve
from capfilt.demo.truth import Found, judge
from capfilt.demo.world import EVALUATION, Picture, draw_pictures
from capfilt.errors import CapfiltError, CommitError, ConfigError, InputError
from capfilt.evaluate.captions import write_captions
from capfilt.evaluate.pictures import Pictures
from capfilt.ingest.ingest import check_installed, ingest
from capfilt.ingest.stats import Ingested, read_stats
from capfilt.io.store import storage_errors
from capfilt.models.load import load_captioner
from capfilt.report.charts import load_matplotlib
from capfilt.report.report import report
from capfilt.run.job import run
from capfilt.run.request import task_of
from capfilt.run.summary import Summary
from capfilt.run.verify import Verification, verify
from capfilt.run.where import Where
from capfilt.text import some

CHECKPOINT = Path(__file__).parent / "checkpoint"
CAPTIONER, FILTER = CHECKPOINT / "captioner", CHECKPOINT / "filter"
SIDE = 128  # pixels, of the pictures

_SHARDS = 4
# What every crawl has besides pictures: a page in place of an image, nothing, and a dead link.
_FAULTS = {"moved.jpg": b"<!DOCTYPE html><title>Moved</title>", "empty.jpg": b"", "gone.jpg": None}
_LOG = "demo.log"  # in the folder: what img2dataset and other libraries say


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
        folder: Made if absent. It must be empty, or of an earlier call of the same version with
            the same arguments.
        pictures: How many.
        seed: Of the pictures and the run.
        quiet: Print nothing.

    Raises:
        ConfigError: Too few pictures, the folder is another demo's or somebody else's, or
            img2dataset or matplotlib is not installed.
        CapfiltError: A part of it failed, be it a single shard.
    """
    if pictures < 20:
        raise ConfigError(f"demo: pictures must be at least 20, is {pictures}")
    check_installed()
    load_matplotlib()
    began = time.monotonic()
    folder = Path(folder)
    config = _config(seed)
    drawn = list(draw_pictures(pictures, EVALUATION, seed=seed))
    claim(folder, _identity(config, drawn, seed))
    transformers_logging.disable_progress_bar()
    screen, log = Screen(quiet=quiet), folder / _LOG

    with storage_errors(f"demo: {folder}", ConfigError):
        _write_site(folder / "pictures", drawn)
    screen.step(f"Drew {pictures} pictures and wrote a web text for each as a web would: true, "
        "false or junk.")  # fmt: skip
    with screen.working("fetching them with img2dataset", log):
        ingested = _ingest(folder, drawn)
    failures = ", ".join(f"{count} {name}" for name, count in ingested.failures.items())
    screen.step(f"Served them on 127.0.0.1 with {len(_FAULTS)} URLs broken on purpose; img2dataset "
        f"fetched {ingested.succeeded} ({failures}).")  # fmt: skip
    summary = _run(config, folder, live=screen.is_live)
    screen.step("Wrote a caption for each and dropped what does not match, on Ray with the bundled "
        "BLIP.")  # fmt: skip
    with screen.working("reading the dataset again", log):
        checked = _verify(folder)
    screen.step(f"Read all files of the dataset again: {checked.shards} shards, all as committed.")
    with screen.working("holding the texts against the truth", log):
        found = Found.of(judge(folder / "web", folder / "dataset", drawn))
        captions_true = greedy_captions_true(CAPTIONER, folder / "pictures", drawn)
        page = report(str(folder / "dataset")).url
    screen.step("Held every text against what the pictures really show:")
    screen.show(found, captions_true)
    screen.end(page)
    return Demonstration(summary, found, captions_true, time.monotonic() - began)


def greedy_captions_true(captioner: Path, images: Path, pictures: Sequence[Picture]) -> float:
    """The share of pictures of which a captioner's likeliest words say something true."""
    options = {"captioner": str(captioner), "filter": NONE, "captions.method": "greedy"}
    config = resolve(options=options)
    model = load_captioner(str(captioner), config.captions, seed=0, precision="fp32")
    names = [picture.file for picture in pictures]
    written = write_captions(model, names, Pictures(str(images), compute=config.compute))
    return sum(is_true(written[p.file], p.scene) for p in pictures) / len(pictures)


def _config(seed: int) -> RunConfig:
    options = {"captioner": str(CAPTIONER), "filter": str(FILTER), "seed": seed}
    return resolve(options=options)


def _identity(config: RunConfig, drawn: Sequence[Picture], seed: int) -> dict[str, Any]:
    """What finished parts have to be of: the world's truth, the weights and what is done."""
    return {
        "arguments": {"pictures": len(drawn), "seed": seed},
        "truth": digest(drawn),
        "run": task_of(config, "").fingerprint,
    }


def _write_site(folder: Path, drawn: Sequence[Picture]) -> None:
    write_images(folder, drawn, SIDE)
    for name, content in _FAULTS.items():
        if content is not None:
            (folder / name).write_bytes(content)


def _ingest(folder: Path, drawn: Sequence[Picture]) -> Ingested:
    """Fetch everything, unless an earlier call has: another port each time is another list."""
    earlier = _ingested(folder / "web")
    if earlier is not None and _is_whole(earlier, drawn):
        return earlier
    for made in ("web", "dataset"):
        shutil.rmtree(folder / made, ignore_errors=True)
    with serve(folder / "pictures") as base_url:
        faults = dict.fromkeys(_FAULTS, "not a picture")
        write_list(folder / "urls.parquet", drawn, base_url, faults)
        ingested = ingest(
            str(folder / "urls.parquet"),
            str(folder / "web"),
            allow_private_hosts=["127.0.0.1"],
            samples_per_shard=math.ceil((len(drawn) + len(_FAULTS)) / _SHARDS),
            log_file=folder / _LOG,
        )
    if not _is_whole(ingested, drawn):
        failures = [f"shard {name} given up" for name in ingested.shards_failed]
        failures += [f"{count} {name}" for name, count in ingested.failures.items()]
        raise InputError(
            f"demo: img2dataset fetched {ingested.succeeded} of {len(drawn)} pictures "
            f"({some(failures)}); {folder / _LOG} says more, and the same command fetches all anew"
        )
    return ingested


def _ingested(web: Path) -> Ingested | None:
    """What an earlier call has fetched; None where it fetched nothing or was cut short."""
    try:
        return read_stats(str(web))
    except InputError:
        return None


def _is_whole(ingested: Ingested, drawn: Sequence[Picture]) -> bool:
    rows = len(drawn) + len(_FAULTS)
    return (ingested.rows, ingested.succeeded) == (rows, len(drawn))


def _run(config: RunConfig, folder: Path, *, live: bool) -> Summary:
    # What is there is of the same demo, wherever the folder lay then.
    where = Where(input=str(folder / "web"), output=str(folder / "dataset"), overwrite=True)
    # Ray prints to stdout when a worker dies.
    with redirect_stdout(sys.stderr), warnings_only():
        summary = run(config, where, live=live)
    if summary.shards_failed:
        first, count = summary.shards_failed[0], len(summary.shards_failed)
        raise CapfiltError(
            f"demo: {count} of {_SHARDS} shards failed, {first.shard.id} with: {first.error}; "
            "the same command tries them again"
        )
    return summary


def _verify(folder: Path) -> Verification:
    checked = verify(str(folder / "dataset"))
    if checked.problems:
        raise CommitError(
            f"demo: {some(checked.problems, 1)}; remove {folder / 'dataset'} and try again"
        )
    return checked
