"""`capfilt verify`: re-read every file of an output and hold it against its commit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from capfilt.errors import CapfiltError, InputError
from capfilt.io import files, outputs
from capfilt.io.commits import Commit, list_commits, list_outputs
from capfilt.io.ledger import read_ledger
from capfilt.io.writer import count_samples
from capfilt.record import Source, Verdict
from capfilt.run.manifest import Manifest
from capfilt.tally import Tally, dropped_for

THREADS = 8  # reading and hashing; object stores want several at once


@dataclass(frozen=True)
class Verification:
    """What was read and what disagrees; `uncommitted` files are the remains of a killed run."""

    output: str
    shards: int
    size_bytes: int
    problems: tuple[str, ...]
    uncommitted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return vars(self)


def verify(output_url: str) -> Verification:
    """Check hashes, sizes and counts of every committed shard.

    Raises:
        InputError: There is no run at the URL.
    """
    manifest = Manifest.read(output_url)
    if manifest is None:
        raise InputError(f"{output_url}: no run here (no manifest.json)")
    commits = list_commits(output_url)
    problems: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(
            lambda commit: list(_check(output_url, commit, manifest.fingerprint)), commits.values()
        )
        console = Console(stderr=True)
        for of_shard in track(
            found, "verify", len(commits), console=console, disable=not console.is_terminal
        ):
            problems.extend(of_shard)
    committed = {path for commit in commits.values() for path in commit.outputs}
    present = set(list_outputs(output_url))
    return Verification(
        output=output_url,
        shards=len(commits),
        size_bytes=sum(
            f.size_bytes for commit in commits.values() for f in commit.outputs.values()
        ),
        problems=tuple(problems),
        uncommitted=tuple(sorted(present - committed)),
    )


def _check(output_url: str, commit: Commit, fingerprint: str) -> Iterator[str]:
    if commit.fingerprint != fingerprint:
        yield f"shard {commit.shard}: made by another config or model than the manifest's"
    for path, output in commit.outputs.items():
        url = files.join(output_url, path)
        try:
            size_bytes, sha256 = files.digest(url)
        except CapfiltError as error:
            yield str(error)
            return
        if (size_bytes, sha256) != (output.size_bytes, output.sha256):
            yield (
                f"{url}: {size_bytes} bytes, sha256 {sha256[:12]}, but its commit says "
                f"{output.size_bytes} bytes, sha256 {output.sha256[:12]}"
            )
            return  # its counts would only repeat the news
    try:
        promised = Tally.from_dict(commit.counts)
        yield from _check_counts(output_url, commit, promised)
    except (CapfiltError, ValueError, KeyError) as error:
        yield f"shard {commit.shard}: {error}"


def _check_counts(output_url: str, commit: Commit, promised: Tally) -> Iterator[str]:
    counted = count_ledger(files.join(output_url, outputs.ledger_path(commit.shard)))
    for name in ("samples", "texts", "dropped_texts", "dropped_samples", "failed_samples"):
        if name == "dropped_samples" and name not in commit.counts:
            continue  # of before it was counted
        in_ledger, in_commit = getattr(counted, name), getattr(promised, name)
        if +in_ledger != +in_commit:
            yield (
                f"shard {commit.shard}: {name} are {dict(in_ledger)} in the ledger, "
                f"{dict(in_commit)} in the commit"
            )
    [data_path] = [path for path in commit.outputs if path.startswith("data/")]
    in_data = count_samples(files.join(output_url, data_path))
    if in_data != promised.samples[Verdict.KEPT]:
        yield (
            f"shard {commit.shard}: {in_data} samples in its data, "
            f"{promised.samples[Verdict.KEPT]} kept in its commit"
        )


def count_ledger(url: str) -> Tally:
    """Count a ledger's samples and texts anew.

    A sample's rows are adjacent and start with its first web or human text.
    """
    tally = Tally()
    verdicts: set[Verdict] = set()
    reasons: list[str | None] = []

    def end_sample() -> None:
        if Verdict.FAILED in verdicts:
            tally.samples[Verdict.FAILED] += 1
            tally.failed_samples[str(reasons[0])] += 1
        elif Verdict.KEPT in verdicts:
            tally.samples[Verdict.KEPT] += 1
        elif verdicts:
            tally.samples[Verdict.DROPPED] += 1
            tally.dropped_samples[dropped_for(reasons)] += 1

    for batch in read_ledger(url):
        for row in batch.select(["source", "index", "verdict", "reason"]).to_pylist():
            source, verdict = Source(row["source"]), Verdict(row["verdict"])
            if source is not Source.SYNTHETIC and row["index"] == 0:
                end_sample()
                verdicts.clear()
                reasons.clear()
            verdicts.add(verdict)
            reasons.append(row["reason"])
            tally.texts[source, verdict] += 1
            if verdict is Verdict.DROPPED:
                tally.dropped_texts[row["reason"]] += 1
    end_sample()
    return tally
