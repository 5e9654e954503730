"""Opening datasets: what lies at a path, whether it can be trained on, and how much of it there is.

Everything that is wrong with a dataset as a whole is said here, before training starts.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from capfilt.data.config import DatasetConfig
from capfilt.data.dataset import Dataset, Volume
from capfilt.data.parquetrange import ParquetRange
from capfilt.data.reader import LIMITS, read_numbers
from capfilt.data.tarrange import TarRange
from capfilt.errors import ConfigError, InputError
from capfilt.io import commits, files, outputs
from capfilt.io.commits import Commit
from capfilt.io.inputs import find_shards
from capfilt.io.ledger import read_ledger
from capfilt.io.members import web_text
from capfilt.io.pairs import captions_of, missing_images, slice_pairs
from capfilt.record import Source, Verdict
from capfilt.shard import Form, InputShard

log = logging.getLogger("capfilt")

_REQUESTS = 32  # in flight; each is waiting for the store
_PROBED = 16  # samples that are read to see whether there are images and texts at all
_FORMS = {"tar": Form.TAR, "parquet": Form.PARQUET}


def open_datasets(configs: Sequence[DatasetConfig]) -> list[Dataset]:
    """Open every dataset, under names of their own.

    Raises:
        ConfigError: There is none, or one asks for texts of a source that it cannot have.
        InputError: One is missing, empty, unfinished, or lacks images or texts.
    """
    if not configs:
        raise ConfigError("data.datasets: is empty; give at least one with a `path`")
    datasets: dict[str, Dataset] = {}
    for config in configs:
        stem = config.path.rstrip("/").rpartition("/")[2].removesuffix(".json") or "data"
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        # Images whose keys are alike would be one.
        name = next(name for name in itertools.chain([stem], numbered) if name not in datasets)
        datasets[name] = open_dataset(name, config)
    return list(datasets.values())


def open_dataset(name: str, config: DatasetConfig) -> Dataset:
    """Find a dataset's shards and count their examples. Raises as `open_datasets`."""
    place = files.absolute(config.path)
    if place.endswith(".json"):
        dataset = _captions_file(name, config)
    elif config.images:
        raise ConfigError(f"{config.path}: `images` is for captions files (.json) only")
    elif all(files.exists(files.join(place, part)) for part in ("data", outputs.COMMITS)):
        dataset = _output(name, config, place)
    else:
        dataset = _raw(name, config)
    if not dataset.stock.size:
        raise InputError(f"{config.path}: has no texts of the sources {_listed(config.sources)}")
    _probe(dataset)
    return dataset


def _captions_file(name: str, config: DatasetConfig) -> Dataset:
    if Source.HUMAN not in config.sources:
        raise ConfigError(f"{config.path}: a captions file has human texts; sources lacks `human`")
    shards = slice_pairs(config.path, config.images or None)
    missing = missing_images(shards)
    if missing:
        raise InputError(
            f"{shards[0].images}: lacks {len(missing)} of the images of {config.path}, "
            f"e.g. {missing[0]}; is `images` the folder that their paths start from?"
        )
    volumes = []
    for shard in shards:
        counts = [sum(_is_text(c) for c in captions) for _, captions in captions_of(shard)]
        volumes.append(Volume(shard, len(counts), _as_texts(counts)))
    return Dataset(name, config, volumes, is_output=False)


def _is_text(caption: Any) -> bool:
    return web_text(caption).reason is None


def _as_texts(counts: Sequence[int]) -> npt.NDArray[np.uint8]:
    return np.minimum(counts, 255).astype(np.uint8)


def _output(name: str, config: DatasetConfig, place: str) -> Dataset:
    found = [c for c in commits.list_commits(place).values() if c.counts["kept"]]
    if not found:
        raise InputError(f"{config.path}: no finished shard with a kept image in it")
    kept = {s: sum(_kept(c, s) for c in found) for s in Source}
    if not any(kept[Source(source)] for source in config.sources):
        there = [source for source in Source if kept[source]]
        raise InputError(
            f"{config.path}: has no kept texts of the sources {_listed(config.sources)}, "
            f"only of {_listed(there)}"
        )
    # One text is drawn of each image: how many there are is of no importance if all count.
    all_count = all(source in config.sources for source in Source if kept[source])
    with ThreadPoolExecutor(_REQUESTS) as pool:
        if config.texts == "one" and all_count:
            texts: list[npt.NDArray[np.uint8] | None] = [None] * len(found)
        else:
            texts = list(pool.map(lambda c: _kept_texts(place, c, config.sources), found))
    volumes = [
        Volume(_data_shard(place, commit), commit.counts["kept"], counts)
        for commit, counts in zip(found, texts, strict=True)
    ]
    return Dataset(name, config, volumes, is_output=True, grain=_grain(volumes[0]))


def _kept(commit: Commit, source: Source) -> int:
    return int(commit.counts["texts"].get(source.value, {}).get(Verdict.KEPT.value, 0))


def _data_shard(place: str, commit: Commit) -> InputShard:
    path = next((path for path in commit.outputs if path.startswith("data/")), None)
    if path is None:
        raise InputError(f"{place}: the commit of {commit.shard} names no data shard")
    record = commit.outputs[path]
    form = _FORMS[path.rpartition(".")[2]]
    url = files.join(place, path)
    return InputShard(commit.shard, form, url, record.size_bytes, f"sha256:{record.sha256}")


def _kept_texts(place: str, commit: Commit, sources: Sequence[str]) -> npt.NDArray[np.uint8]:
    """How many kept texts of some sources each image has that kept any text."""
    counts: list[int] = []
    last = None
    for batch in read_ledger(files.join(place, outputs.ledger_path(commit.shard))):
        columns = (batch.column(name).to_pylist() for name in ("key", "source", "verdict"))
        for key, source, verdict in zip(*columns, strict=True):
            if verdict != Verdict.KEPT:
                continue
            if key != last:
                counts.append(0)
                last = key
            counts[-1] += source in sources
    if len(counts) != commit.counts["kept"]:
        raise InputError(
            f"{place}: the ledger of {commit.shard} has {len(counts)} kept images and its commit "
            f"{commit.counts['kept']}: run `capfilt verify`"
        )
    return _as_texts(counts)


def _raw(name: str, config: DatasetConfig) -> Dataset:
    if Source.WEB not in config.sources:
        raise ConfigError(f"{config.path}: raw shards have web texts; sources lacks `web`")
    found = find_shards(config.path)
    if found.unfinished:
        log.warning(
            "%s: %d unfinished shards are left out, e.g. %s",
            config.path,
            len(found.unfinished),
            found.unfinished[0],
        )
    with ThreadPoolExecutor(_REQUESTS) as pool:
        volumes = [volume for volume in pool.map(_counted, found.shards) if volume.samples]
    if not volumes:
        raise InputError(f"{config.path}: has no images in its {len(found.shards)} finished shards")
    return Dataset(name, config, volumes, is_output=False, grain=_grain(volumes[0]))


def _counted(shard: InputShard) -> Volume:
    if shard.form is Form.PARQUET:
        usable = ParquetRange(shard, LIMITS).usable()
        texts = None if all(usable) else _as_texts(usable)
        return Volume(shard, len(usable), texts)
    if shard.form is Form.TAR:
        count = TarRange(shard, LIMITS).count() if shard.expected is None else shard.expected
        return Volume(shard, count)
    raise ConfigError(
        f"{shard.url}: a folder of images and texts is not read for training; "
        "use img2dataset's `webdataset` or `parquet` form, or a captions file"
    )


def _grain(volume: Volume) -> int:
    """A row group is read whole; those of capfilt and img2dataset have about a hundred rows."""
    if volume.shard.form is not Form.PARQUET:
        return 16
    return max(1, min(ParquetRange(volume.shard, LIMITS).rows_per_group, 1024))


def _probe(dataset: Dataset) -> None:
    """Look at the first samples: a dataset without images or texts has none there.

    Raises:
        InputError: So it is.
    """
    path = dataset.config.path
    strand = int(np.flatnonzero(dataset.stock.lengths)[0])
    numbers = dataset.numbers(strand, 0, _PROBED)
    volume = dataset.volumes[dataset.strands[strand][0]]
    samples = read_numbers(volume.shard, numbers, metadata=dataset.is_output)
    if not any(sample.image for sample in samples):
        raise InputError(f"{path}: has no images; write them with `output.images: true`")
    texts = itertools.chain.from_iterable(dataset.texts_of(sample) for sample in samples)
    if not any(text.strip() for text in texts):
        raise InputError(f"{path}: has no texts of the sources {_listed(dataset.config.sources)}")


def _listed(sources: Sequence[str]) -> str:
    return ", ".join(sources)
