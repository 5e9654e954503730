"""`capfilt diff`: what two runs or cuts of the same images decided differently."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import ConfigError
from capfilt.io.ledger import read_ledger_columns
from capfilt.schema import differences
from capfilt.select.origin import Origin
from capfilt.select.survey import each
from capfilt.tally import Tally

_ID = ["key", "source", "index"]
_COLUMNS = [*_ID, "text", "match_prob", "similarity", "verdict", "reason"]
KINDS = ("kept by A alone", "kept by B alone", "another text")


@dataclass(frozen=True)
class Change:
    """One text that the two decided differently; scores and reasons of A, then of B."""

    kind: str
    shard: str
    key: str
    source: str
    text: tuple[str | None, str | None]
    match_prob: tuple[float | None, float | None]
    similarity: tuple[float | None, float | None]
    reason: tuple[str | None, str | None]


@dataclass
class Difference:
    """Counts of texts by source and by what became of them, and a few of each kind."""

    a: str
    b: str
    config: list[str] = field(default_factory=list)  # what the two were told differently
    shards: int = 0  # that both have
    only_a: list[str] = field(default_factory=list)  # ids of shards
    only_b: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, kind)
    dropped_images: dict[str, dict[str, int]] = field(default_factory=dict)  # of a and b, by reason
    samples: dict[str, list[Change]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        counts: dict[str, dict[str, int]] = {}
        for (source, kind), count in sorted(self.counts.items()):
            counts.setdefault(source, {})[kind] = count
        return {
            "a": self.a,
            "b": self.b,
            "config": self.config,
            "shards": self.shards,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "texts": counts,
            "dropped_images": self.dropped_images,
            "samples": {
                kind: [asdict(change) for change in changes]
                for kind, changes in self.samples.items()
            },
        }


def diff(a_url: str, b_url: str, *, samples: int = 5) -> Difference:
    """Compare the ledgers of two OUTPUTs, shard by shard.

    Texts are the same when key, source and index are: "another text" counts those that say
    something else, whatever became of them. Samples are drawn by the ids of shards, so they are the
    same each time.

    Raises:
        ConfigError: They have no shard in common, or `samples` is negative.
        InputError: A ledger cannot be read.
    """
    if samples < 0:
        raise ConfigError(f"--samples must be 0 or more, is {samples}")
    a, b = Origin.open(a_url), Origin.open(b_url)
    both = [shard_id for shard_id in a.commits if shard_id in b.commits]
    if not both:
        raise ConfigError(f"{a.url} and {b.url} have no shard in common: are they of one input?")
    found = Difference(a.url, b.url, shards=len(both))
    found.config = differences(_told(a), _told(b))
    found.only_a = [shard_id for shard_id in a.commits if shard_id not in b.commits]
    found.only_b = [shard_id for shard_id in b.commits if shard_id not in a.commits]
    for name, side in (("a", a), ("b", b)):
        tally = Tally.sum(Tally.from_dict(side.commits[shard_id].counts) for shard_id in both)
        found.dropped_images[name] = dict(sorted(tally.dropped_samples.items()))
    drawn: dict[str, list[tuple[float, Change]]] = {kind: [] for kind in KINDS}

    def of_shard(shard_id: str) -> tuple[Counter[tuple[str, str]], dict[str, list[Any]]]:
        return _compare(shard_id, a.ledger_url(shard_id), b.ledger_url(shard_id), samples)

    for counts, changes in each(both, of_shard):
        found.counts.update(counts)
        for kind, of_kind in changes.items():
            best = sorted(drawn[kind] + of_kind, key=lambda pair: (pair[0], pair[1].key))
            drawn[kind] = best[:samples]
    found.samples = {kind: [change for _, change in drawn[kind]] for kind in KINDS if drawn[kind]}
    return found


def _told(origin: Origin) -> dict[str, Any]:
    """What decided about its texts: models by their weights, not by where they lie."""
    models = {role: model["sha256"] for role, model in origin.manifest.models.items()}
    sections = ("captions", "scoring", "selection", "images", "seed")
    told = {name: origin.manifest.config[name] for name in sections}
    return {**told, "selection": origin.manifest.rules(), **models}


def _compare(
    shard_id: str, a_url: str, b_url: str, samples: int
) -> tuple[Counter[tuple[str, str]], dict[str, list[tuple[float, Change]]]]:
    joined = _joined(a_url, b_url)
    in_a, in_b = (pc.equal(joined[f"verdict_{side}"], "kept").fill_null(False) for side in "ab")
    there = pc.and_(joined["verdict_a"].is_valid(), joined["verdict_b"].is_valid())
    other = pc.and_(there, pc.invert(_same(joined["text_a"], joined["text_b"])))
    masks = {
        "kept by both": pc.and_(in_a, in_b),
        "kept by neither": pc.invert(pc.or_(in_a, in_b)),
        "kept by A alone": pc.and_(in_a, pc.invert(in_b)),
        "kept by B alone": pc.and_(in_b, pc.invert(in_a)),
        "another text": other,
    }
    counts: Counter[tuple[str, str]] = Counter()
    changes: dict[str, list[tuple[float, Change]]] = {}
    generator = np.random.default_rng(zlib.crc32(shard_id.encode()))
    for kind, mask in masks.items():
        chosen = joined.filter(mask)
        for pair in chosen["source"].value_counts().to_pylist():
            counts[pair["values"], kind] += pair["counts"]
        if kind in KINDS:
            chances = generator.random(chosen.num_rows)
            first = np.argsort(chances)[:samples]
            rows = chosen.take(pa.array(first)).to_pylist()
            changes[kind] = [
                (chance, _change(kind, shard_id, row))
                for chance, row in zip(chances[first].tolist(), rows, strict=True)
            ]
    return counts, changes


def _joined(a_url: str, b_url: str) -> Any:
    """Both ledgers by key, source and index. A key that comes again is told by its place."""
    tables = []
    for url in (a_url, b_url):
        table = read_ledger_columns(url, _COLUMNS)
        for name in ("source", "verdict", "reason"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast(pa.string()))
        tables.append(_numbered(table))
    keys = [*_ID, "again"]
    return (
        tables[0]
        .join(tables[1], keys, join_type="full outer", left_suffix="_a", right_suffix="_b")
        .sort_by([(name, "ascending") for name in keys])
    )


def _numbered(table: Any) -> Any:
    """With `again`: how many rows before have the same key, source and index."""
    codes = np.zeros(table.num_rows, np.int64)
    for name in _ID:
        encoded = pc.dictionary_encode(table[name]).combine_chunks()
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.diff(codes[order], prepend=-1) != 0
    places = np.arange(len(codes))
    again = np.empty(len(codes), np.int32)
    again[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return table.append_column("again", pa.array(again))


def _same(one: Any, other: Any) -> Any:
    both_null = pc.and_(one.is_null(), other.is_null())
    return pc.or_(both_null, pc.equal(one, other).fill_null(False))


def _change(kind: str, shard_id: str, row: Mapping[str, Any]) -> Change:
    pairs = {
        name: (row[f"{name}_a"], row[f"{name}_b"])
        for name in ("text", "match_prob", "similarity", "reason")
    }
    return Change(kind, shard_id, row["key"], row["source"], **pairs)
