"""`capfilt export`: a dataset in the form of somebody else's loader."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from capfilt.errors import CommitError, ConfigError
from capfilt.export.card import croissant, dataset_card
from capfilt.export.forms import FORMS
from capfilt.io import files, publish
from capfilt.record import Verdict
from capfilt.select.missing import warn_of_missing
from capfilt.select.origin import Origin
from capfilt.select.survey import each
from capfilt.select.texts import kept_samples
from capfilt.tally import Tally

RECORD = "export.json"  # what the folder was made from, and each shard's data; written first


@dataclass(frozen=True)
class Exported:
    """What lies in the target now."""

    target: str
    form: str
    shards: int  # written by this call
    shards_before: int
    images: int
    texts: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def export(output_url: str, target: str, form: str) -> Exported:
    """Write the kept samples of an OUTPUT in another form; go on where an earlier call stopped.

    Args:
        output_url: OUTPUT of a run or of a cut.
        target: A folder of its own.
        form: A name in `FORMS`.

    Raises:
        ConfigError, InputError, CommitError: One line: what, where, what to do.
    """
    if form not in FORMS:
        raise ConfigError(f"--form {form!r} is none of {', '.join(FORMS)}")
    writer = FORMS[form]
    origin = Origin.open(output_url)
    warn_of_missing(origin)
    if not origin.output.images:
        raise ConfigError(f"{origin.url} has texts only: export a dataset with its images")
    tally = Tally()
    for commit in origin.commits.values():
        tally.merge(Tally.from_dict(commit.counts))
    if not tally.samples[Verdict.KEPT]:
        raise ConfigError(f"{origin.url} keeps no image: there is nothing to export")
    target = files.absolute(target)
    origin.check_apart(target, "FOLDER")
    _claim(target, origin, form)
    present = {entry.name for entry in files.find(target)}
    todo = [shard_id for shard_id in origin.commits if writer.path(shard_id) not in present]

    def write(shard_id: str) -> None:
        writer.write(kept_samples(origin, shard_id), target, shard_id)

    console = Console(stderr=True)
    hidden = not sys.stderr.isatty()
    for _ in track(each(todo, write), "export", len(todo), console=console, disable=hidden):
        pass
    if form == "huggingface":
        _describe(origin, target, tally)
    return Exported(
        target=target,
        form=form,
        shards=len(todo),
        shards_before=len(origin.commits) - len(todo),
        images=tally.samples[Verdict.KEPT],
        texts=sum(n for (_, verdict), n in tally.texts.items() if verdict is Verdict.KEPT),
    )


def _claim(target: str, origin: Origin, form: str) -> None:
    """See that the folder is empty, or of an earlier call of the same; its stale shards go."""
    made_of = {
        shard_id: commit.outputs[origin.data_path(shard_id)].sha256
        for shard_id, commit in origin.commits.items()
    }
    record = {"form": form, "origin": origin.manifest.fingerprint, "shards": made_of}
    url = files.join(target, RECORD)
    if files.exists(url):
        before = json.loads(files.read_bytes(url))
        if {**before, "shards": made_of} != record:
            raise CommitError(f"{target} holds another export: give this one a new folder")
        for shard_id, sha256 in before["shards"].items():
            if made_of.get(shard_id) != sha256:
                files.remove(files.join(target, FORMS[form].path(shard_id)))
    elif files.exists(target) and files.list_folder(target):
        raise ConfigError(f"{target} holds something else: give the export a folder of its own")
    publish.write_bytes(url, (json.dumps(record, indent=1) + "\n").encode())


def _describe(origin: Origin, target: str, tally: Tally) -> None:
    name = target.rstrip("/").rpartition("/")[2]
    card = dataset_card(name, origin.manifest, tally)
    publish.write_bytes(files.join(target, "README.md"), card.encode())
    publish.write_bytes(files.join(target, "croissant.json"), croissant(name).encode())
