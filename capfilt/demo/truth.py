"""What a run made of the emoji world, held against the truth.

Every text of the ledger gets a kind: that of the web text (`web.KINDS`), or for a caption whether
the checker finds it true, a shop's words aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from capfilt.demo.checker import is_true
from capfilt.demo.web import KINDS, statement
from capfilt.demo.world import Picture
from capfilt.evaluate.labels import Curve
from capfilt.io.ledger import read_ledger
from capfilt.record import Source, Verdict

CAPTION_TRUE, CAPTION_FALSE = "caption, true", "caption, false"
WRITTEN = (CAPTION_TRUE, CAPTION_FALSE)


@dataclass(frozen=True)
class Judged:
    """A text of a run, and the truth about it."""

    file: str  # the picture's
    kind: str  # one of `web.KINDS` or of `WRITTEN`
    match_prob: float | None  # None: not scored, such as an empty text
    is_kept: bool

    @property
    def is_true(self) -> bool:
        """Whether it describes the picture."""
        return self.kind in ("true", CAPTION_TRUE)


@dataclass(frozen=True)
class Found:
    """Figures of a run; shares are in [0, 1]."""

    images: int
    texts: Mapping[str, int]  # by kind
    kept: Mapping[str, int]  # by kind
    # Of the web's true texts against all its other scored ones, and against those that are wrong
    # in one word; None where a few pictures have no such texts.
    itm_auc: float | None
    itm_auc_hard_lies: float | None
    noise_ratio: float  # share of captions that the filter drops
    captions_written_true: float  # of those that the run wrote
    captions_kept_true: float  # of those that the filter kept
    filter_precision: float  # share of kept texts, web and written, that are true
    filter_recall: float  # share of true texts that are kept

    @classmethod
    def of(cls, judged: Iterable[Judged]) -> Found:
        """Count."""
        rows = list(judged)
        kinds = [*KINDS, *WRITTEN]
        texts = {kind: sum(row.kind == kind for row in rows) for kind in kinds}
        kept = {kind: sum(row.kind == kind and row.is_kept for row in rows) for kind in kinds}
        right_kept = kept["true"] + kept[CAPTION_TRUE]
        written, written_kept = (sum(n[kind] for kind in WRITTEN) for n in (texts, kept))
        return cls(
            images=len({row.file for row in rows}),
            texts=texts,
            kept=kept,
            itm_auc=_auc(rows, [kind for kind in KINDS if kind != "true"]),
            itm_auc_hard_lies=_auc(rows, ["lie"]),
            noise_ratio=1 - _share(written_kept, written),
            captions_written_true=_share(texts[CAPTION_TRUE], written),
            captions_kept_true=_share(kept[CAPTION_TRUE], written_kept),
            filter_precision=_share(right_kept, sum(kept.values())),
            filter_recall=_share(right_kept, texts["true"] + texts[CAPTION_TRUE]),
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "texts": dict(self.texts), "kept": dict(self.kept)}


def judge(web: Path, dataset: Path, pictures: Iterable[Picture]) -> list[Judged]:
    """Every text of a run's ledger with the truth about it.

    Args:
        web: img2dataset's shards with their tables, which say which URL a key is of.
        dataset: The run's output over them.
        pictures: Those that were served, each as `Picture.file`.
    """
    by_file = {picture.file: picture for picture in pictures}
    judged = []
    for table in sorted(web.glob("*.parquet")):
        urls = pq.read_table(table, columns=["key", "url"]).to_pydict()
        files = {k: u.rpartition("/")[2] for k, u in zip(urls["key"], urls["url"], strict=True)}
        ledger = dataset / "ledger" / table.name
        for batch in read_ledger(str(ledger)) if ledger.exists() else ():
            judged += [_judge(row, by_file[files[row["key"]]]) for row in batch.to_pylist()]
    return judged


def _judge(row: Mapping[str, Any], picture: Picture) -> Judged:
    kind = picture.web.kind
    if row["source"] == Source.SYNTHETIC:
        kind = CAPTION_TRUE if is_true(statement(row["text"]), picture.scene) else CAPTION_FALSE
    is_kept = row["verdict"] == Verdict.KEPT
    return Judged(picture.file, kind, row["match_prob"], is_kept)


def _auc(rows: Iterable[Judged], false_kinds: Iterable[str]) -> float | None:
    kinds = {"true", *false_kinds}
    scored = [
        (row.match_prob, row.is_true)
        for row in rows
        if row.kind in kinds and row.match_prob is not None
    ]
    labels = [label for _, label in scored]
    if len(set(labels)) < 2:
        return None
    return Curve.of([score for score, _ in scored], labels).roc_auc


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
