"""What is known of a shard before its commit: what became of its first samples.

A worker that dies in the middle of a shard of 10,000 images takes hours of captions with it. So the
judged texts of every few thousand samples are put aside, `partial/<id>/<first>-<next>.json`, and a
later try reads them in place of asking the models. They go when the shard is committed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from capfilt.io import files, outputs, publish
from capfilt.io.entry import Entry
from capfilt.jsontree import parse_json
from capfilt.record import Annotated, Reason, Sample, Score, Source, Text, Verdict

Known = dict[str, Any]  # of one sample: key, problem, unwanted, verdict, texts, kept


class Partial:
    """Of one shard, made by one config from one version of its input."""

    def __init__(
        self, output: str, shard_id: str, made_by: Mapping[str, Any], *, every: int
    ) -> None:
        """Begin; nothing is read or written yet.

        Args:
            output: The output.
            shard_id: Of the shard.
            made_by: What decides a sample's texts; what was put aside by another is not used.
            every: Images after which they are put aside; 0 for never.
        """
        self._folder = files.join(output, outputs.partial_path(shard_id))
        self._made_by = dict(made_by)
        self._every = every
        self._stored = 0  # samples that are put aside
        self._waiting: list[Known] = []
        self._seen = 0

    def recall(self) -> list[Known]:
        """What earlier tries have put aside, from the shard's first sample on without a gap.

        Raises:
            InputError: The store cannot be reached.
        """
        known: list[Known] = []
        for entry in self._files():
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                found = self._samples(files.read_bytes(entry.url), len(known))
                known += found
        self._stored = len(known)
        return known

    def add(self, batch: Sequence[Annotated]) -> None:
        """Take a batch of the shard, in order; put aside what has gathered when it is enough.

        Raises:
            CommitError: It cannot be written.
        """
        if not self._every:
            return
        for annotated in batch:
            if self._seen >= self._stored:
                self._waiting.append(_known(annotated))
            self._seen += 1
        if len(self._waiting) >= self._every:
            first, self._stored = self._stored, self._seen
            tree = {"made_by": self._made_by, "first": first, "samples": self._waiting}
            name = f"{first:09d}-{self._seen:09d}.json"
            publish.write_bytes(files.join(self._folder, name), json.dumps(tree).encode())
            self._waiting = []

    def remove(self) -> None:
        """Take away what was put aside: the shard has its commit."""
        for entry in self._files():
            files.remove(entry.url)
        files.remove_folder(self._folder)

    def _files(self) -> list[Entry]:
        """What lies directly in its folder; further below are other shards, as `a/b` is of `a`."""
        return [entry for entry in files.find(self._folder) if "/" not in entry.name]

    def _samples(self, data: bytes, first: int) -> list[Known]:
        try:
            tree = parse_json(data)
            if tree["made_by"] != self._made_by or tree["first"] != first:
                return []
            samples = tree["samples"]
            for known in samples:
                recalled(known, _NOBODY)
        except (ValueError, KeyError, TypeError, IndexError):
            return []  # nobody's, or damaged: then the models are asked
        return list(samples)


_NOBODY = Sample("", None, "", ())


def recalled(known: Known, sample: Sample) -> Annotated:
    """The sample as it was judged."""
    texts = tuple(
        Text(
            Source(source),
            index,
            content,
            Score(match_prob, similarity),
            Verdict(verdict),
            None if reason is None else Reason(reason),
        )
        for source, index, content, match_prob, similarity, verdict, reason in known["texts"]
    )
    problem, unwanted = known["problem"], known.get("unwanted")
    if problem is not None:
        sample = replace(sample, image=None, problem=Reason(problem))
    if unwanted is not None:  # so that it counts as little for its batch as it did
        sample = replace(sample, image=None, unwanted=Reason(unwanted))
    kept = tuple(texts[place] for place in known["kept"])
    return Annotated(sample, texts, kept, Verdict(known["verdict"]))


def _known(annotated: Annotated) -> Known:
    sample, texts = annotated.sample, annotated.texts
    return {
        "key": sample.key,
        "problem": sample.problem,
        "unwanted": sample.unwanted,
        "verdict": annotated.verdict,
        "texts": [_fields(text) for text in texts],
        "kept": [next(i for i, t in enumerate(texts) if t is kept) for kept in annotated.kept],
    }


def _fields(text: Text) -> list[Any]:
    score = (text.score.match_prob, text.score.similarity)
    return [text.source, text.index, text.content, *score, text.verdict, text.reason]
