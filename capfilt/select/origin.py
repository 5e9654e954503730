"""What a cut is made from: the OUTPUT of a run or of another cut, with its ledgers and images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config import ImageConfig, OutputConfig
from capfilt.cut import Mask, Rows, ScoreName
from capfilt.errors import ConfigError, InputError
from capfilt.io import files, outputs
from capfilt.io.commits import Commit, OutputRecord, list_commits
from capfilt.io.fields import OURS
from capfilt.io.inputs import is_unchanged
from capfilt.io.ledger import read_ledger_columns
from capfilt.io.members import MAX_TEXT_BYTES
from capfilt.io.parquet import read_text_rows
from capfilt.io.reader import read_samples
from capfilt.io.store import local_path
from capfilt.io.tar import tar_key
from capfilt.record import Sample, Source
from capfilt.run.manifest import Manifest
from capfilt.select.rows import read_rows
from capfilt.shard import Form, InputShard, place_of

CUT_OF = "cut_of"  # in a manifest's `decisive`: the fingerprint of what a cut was made from
RULES_ON_IMAGES = ("where", "exclude", "dedupe_images")  # of a manifest's selection
_OTHER = "but that is another file now"
_FORMS = {"tar": Form.TAR, "parquet": Form.PARQUET}


@dataclass(frozen=True)
class Origin:
    """An OUTPUT and its commits by shard id, sorted. What has no commit does not exist."""

    url: str
    manifest: Manifest
    commits: Mapping[str, Commit]
    sizes: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # of data, with versions

    @classmethod
    def open(cls, url: str) -> Origin:
        """Read the manifest and the commits.

        Raises:
            InputError: There is no run at the URL, or no shard of it is committed.
        """
        place = files.absolute(url)
        manifest = Manifest.read(place)
        if manifest is None:
            raise InputError(f"{url}: no run here (no {outputs.MANIFEST})")
        commits = list_commits(place)
        if not commits:
            raise InputError(f"{url}: no shard is committed yet")
        found = files.find(files.join(place, "data"))
        sizes = {f"data/{entry.name}": (entry.size_bytes, entry.version) for entry in found}
        return cls(place, manifest, commits, sizes)

    @property
    def output(self) -> OutputConfig:
        """The form of its data shards."""
        return OutputConfig(**self.manifest.config["output"])

    @property
    def ranked_by(self) -> ScoreName | None:
        """The score in whose order an image's kept texts stand; None: as they came."""
        selection = self.manifest.config["selection"]
        if "ranked_by" in selection:
            return cast(ScoreName | None, selection["ranked_by"])
        return "similarity" if selection["top_k"] is not None else None  # a run's

    @property
    def judged_images(self) -> bool:
        """Whether it is a cut by a rule on images, which looked at those that still had a text."""
        rules = self.manifest.rules()
        return CUT_OF in self.manifest.decisive and not rules.keys().isdisjoint(RULES_ON_IMAGES)

    @cached_property
    def parent(self) -> Origin | None:
        """What it was cut from; None for a run's OUTPUT.

        Raises:
            InputError: It is not there any more.
        """
        if CUT_OF not in self.manifest.decisive:
            return None
        return Origin.open(self.manifest.input)

    def check_apart(self, url: str, name: str) -> None:
        """See that a place to write to is not what is read: not even --overwrite may mean that.

        Raises:
            ConfigError: It lies here, or in what this was made from.
        """
        place = _real(url)
        for what, other in (
            ("OUTPUT", self.url),
            ("what OUTPUT was made from", self.manifest.input),
        ):
            if f"{place}/".startswith(f"{_real(other)}/"):
                raise ConfigError(
                    f"{name} {url} lies in {what} ({other}): give it a folder of its own"
                )

    def shards(self) -> tuple[InputShard, ...]:
        """Its data shards as the input of a cut.

        Raises:
            InputError: One is missing.
        """
        return tuple(self.shard(shard_id) for shard_id in self.commits)

    def shard(self, shard_id: str) -> InputShard:
        """One of its data shards."""
        path = self.data_path(shard_id)
        if path not in self.sizes:
            raise InputError(
                f"{files.join(self.url, path)}: not found, but committed; run `verify`"
            )
        size_bytes, version = self.sizes[path]
        form = _FORMS[path.rpartition(".")[2]]
        place = place_of(files.join(self.url, path), shard_id)
        return InputShard(shard_id, form, place, size_bytes, version)

    def data_path(self, shard_id: str) -> str:
        """Where a shard's data lie, relative to the OUTPUT."""
        return next(p for p in self.commits[shard_id].outputs if p.startswith("data/"))

    def data_record(self, shard_id: str) -> OutputRecord:
        """Size and checksum of a shard's data, as they were committed."""
        return self.commits[shard_id].outputs[self.data_path(shard_id)]

    def ledger_url(self, shard_id: str) -> str:
        """Of a shard's ledger."""
        return files.join(self.url, outputs.ledger_path(shard_id))

    def rows(self, shard_id: str) -> Rows:
        """A shard's texts with their verdicts.

        Raises:
            InputError: The ledger cannot be read.
        """
        return read_rows(self.ledger_url(shard_id))

    def texts(self, shard_id: str) -> Any:
        """What a shard's texts say, as an Arrow column.

        Raises:
            InputError: The ledger cannot be read.
        """
        return read_ledger_columns(self.ledger_url(shard_id), ["text"])["text"]

    def samples(
        self, shard_id: str, needed: Mask, *, images: bool = True
    ) -> Iterator[tuple[int, Sample]]:
        """The samples of some images, with their numbers in the ledger, in its order.

        From its own data where they are all there, else from what it was made from. Metadata is
        what the run's input had; texts are those of the file that was read.

        Args:
            shard_id: Of a shard.
            needed: One flag per image of its ledger.
            images: Whether to read more than texts and metadata.

        Raises:
            InputError: They cannot be read, or are not those of the ledger.
        """
        present = self.rows(shard_id).with_kept()
        if not (needed & ~present).any():
            found = self._own(shard_id, present, images=images)
        elif self.parent is not None:
            found = self.parent.samples(shard_id, needed, images=images)
        else:
            found = self._of_input(shard_id, int((needed & ~present).sum()), images=images)
        for number, sample in found:
            if needed[number]:
                yield number, sample

    def _own(self, shard_id: str, present: Mask, *, images: bool) -> Iterator[tuple[int, Sample]]:
        shard = self.shard(shard_id)
        is_row = shard.form is Form.PARQUET
        if is_row and not self.output.images:
            found = read_text_rows(shard)
        else:
            found = read_samples(shard, _no_limits(), images=images)
        keys = self.keys(shard_id)
        numbers = iter(np.nonzero(present)[0].tolist())
        for sample in found:
            number = next(numbers, None)
            key = None if number is None else keys[number]
            expected = key if key is None or is_row else tar_key(key)
            if number is None or key is None or sample.key != expected:
                raise InputError(f"{shard.url}: {sample.key!r} where its ledger has {key!r}")
            yield (
                number,
                replace(sample, key=key, metadata=original(sample.metadata, is_row=is_row)),
            )
        if next(numbers, None) is not None:
            raise InputError(f"{shard.url}: fewer samples than its ledger says")

    def _of_input(
        self, shard_id: str, missing: int, *, images: bool
    ) -> Iterator[tuple[int, Sample]]:
        """From INPUT: what the run dropped is nowhere else."""
        why = f"{missing:,} images that {self.url} does not hold"
        shard = self.input_shard(shard_id, why)
        keys, texts = (self._of_images(shard_id, column) for column in ("key", "text"))
        limits = ImageConfig(**self.manifest.config["images"])
        number = -1
        for number, sample in enumerate(read_samples(shard, limits, images=images)):
            is_there = number < len(keys)
            if not is_there or (sample.key, sample.texts[0].content) != (
                keys[number],
                texts[number],
            ):
                raise InputError(f"shard {shard_id}: {why} should be in {shard.url}, {_OTHER}")
            yield number, sample
        if number + 1 != len(keys):
            raise InputError(f"shard {shard_id}: {why} should be in {shard.url}, {_OTHER}")

    def input_shard(self, shard_id: str, what: str = "its images") -> InputShard:
        """What a run made a shard from, as it was then.

        Args:
            shard_id: Of a shard.
            what: That is wanted of it, for a message.

        Raises:
            InputError: It is gone, or another one now, whose images are not those of the ledger.
        """
        record = self.commits[shard_id].input
        form, why = Form(record.form), f"shard {shard_id}: {what}"
        if form is Form.PAIRS:
            raise InputError(f"{why} are of a captions file: run again with its images in the data")
        source = Source.HUMAN if shard_id.startswith("human-") else Source.WEB
        shard = InputShard(shard_id, form, record.url, record.size_bytes, record.version, source)
        if not files.exists(shard.url):
            raise InputError(f"{why} were in {shard.url}, which is not there any more")
        if not is_unchanged(shard):
            raise InputError(f"{why} were in {shard.url}, which has changed since the run")
        return shard

    def keys(self, shard_id: str) -> list[str]:
        """The key of each image in a shard's ledger."""
        return self._of_images(shard_id, "key")

    def _of_images(self, shard_id: str, column: str) -> list[Any]:
        """A column of a shard's ledger, from the first row of each image: its web or human text."""
        columns = list(dict.fromkeys((column, "source", "index")))
        table = read_ledger_columns(self.ledger_url(shard_id), columns)
        is_first = pc.and_(
            pc.not_equal(table["source"].cast(pa.string()), str(Source.SYNTHETIC)),
            pc.equal(table["index"], 0),
        )
        return list(table[column].filter(is_first).to_pylist())


def original(fields: Mapping[str, Any], *, is_row: bool = False) -> Mapping[str, Any]:
    """The fields that a sample had before a run added its own (`capfilt.io.fields`).

    A web text that was too long for the ledger comes back as `caption`, since nothing else has it.

    Args:
        fields: Of a tar's json, or of a Parquet shard's row.
        is_row: The latter, whose column `json` has them.
    """
    web = fields.get("web_text") or ""
    stored = json.loads(fields["json"]) if is_row else fields
    found = {name: value for name, value in stored.items() if is_row or name not in OURS}
    too_long = len(web.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES
    return {**found, "caption": web} if too_long and "caption" not in found else found


def _real(url: str) -> str:
    """The place itself, where a local path goes through links."""
    local = local_path(url)
    return url if local is None else str(local.resolve())


def _no_limits() -> ImageConfig:
    """What was written once may be read."""
    return ImageConfig(max_bytes=2**62)
