"""Results as people read them on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from capfilt.duration import duration
from capfilt.ingest import Ingested
from capfilt.record import Source, Verdict
from capfilt.run.job import Summary
from capfilt.run.status import Status
from capfilt.run.verify import Verification
from capfilt.tally import Tally

# Source: BLIP, arXiv:2201.12086, Table 2.
PAPER_NOISE_RATIO = "BLIP: 25 % with nucleus sampling, 19 % with beams"


def summary_text(summary: Summary) -> RenderableType:
    """What came of a run."""
    shards = f"{summary.shards_done:,} done"
    if summary.shards_before:
        shards += f", {summary.shards_before:,} before"
    if summary.shards_failed:
        shards += f", {len(summary.shards_failed):,} failed"
    if summary.left_by_limit:
        shards += f", {summary.left_by_limit:,} left by --limit"
    facts = {"shards": shards}
    if summary.images:
        facts["this call"] = (
            f"{summary.images:,} images in {duration(summary.seconds)}, "
            f"{summary.images / summary.seconds:,.1f} images/s"
        )
    failed = [f"failed shard {f.shard.id}: {f.error}" for f in summary.shards_failed]
    return _page(summary.output, facts, summary.tally, summary.noise_ratio, failed)


def status_text(status: Status) -> RenderableType:
    """How far a run is."""
    shards = f"{status.done:,} done"
    for count, name in (
        (status.pending, "pending"),
        (status.stale, "of another config, model or input"),
        (len(status.failures), "failed"),
        (status.unfinished, "unfinished by img2dataset"),
    ):
        if count:
            shards += f", {count:,} {name}"
    if status.pending is None:
        shards += " (the input cannot be listed from here)"
    facts = {"shards": shards, "worker time": duration(status.seconds)}
    for role, identity in status.manifest.models.items():
        facts[role] = f"{identity['source']} (sha256 {identity['sha256'][:12]})"
    failed = [f"failed shard {f.shard}: {f.error}" for f in status.failures]
    return _page(status.output, facts, status.tally, status.noise_ratio, failed)


def ingested_text(found: Ingested) -> RenderableType:
    """What came of a download."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("output", escape(found.output))
    table.add_row("shards", f"{found.shards:,}")
    table.add_row(
        "images", f"{found.succeeded:,} of {found.rows:,} URLs, {found.failed:,} failures"
    )
    for reason, count in sorted(found.failures.items(), key=lambda item: -item[1]):
        table.add_row("", escape(f"{count:,} {reason}"))
    lines = [
        f"shard {name} failed as a whole; run the same command again"
        for name in found.shards_failed
    ]
    return Group(table, *map(escape, lines))


def verification_text(found: Verification) -> RenderableType:
    """What `verify` found."""
    lines = [escape(problem) for problem in found.problems]
    if found.uncommitted:
        lines.append(
            f"{len(found.uncommitted)} files belong to no commit (left by a killed run; "
            f"harmless): {escape(', '.join(found.uncommitted[:3]))}"
        )
    if found.problems:
        lines.append(
            "to repair: the same `capfilt run` makes missing and cut files again; for others "
            "remove commits/<shard>.json first; --overwrite redoes shards of another config"
        )
    count = len(found.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "all as committed"
    lines.append(
        f"{escape(found.output)}: {found.shards:,} shards, "
        f"{found.size_bytes / 1e6:,.1f} MB read again: {verdict}"
    )
    return Group(*lines)


def _page(
    title: str,
    facts: dict[str, str],
    tally: Tally,
    noise_ratio: float | None,
    lines: list[str],
) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("output", escape(title))
    for name, value in (facts | _counts(tally, noise_ratio)).items():
        table.add_row(name, escape(value))
    return Group(table, *map(escape, lines))


def _counts(tally: Tally, noise_ratio: float | None) -> dict[str, str]:
    samples = tally.samples
    facts = {
        "images": f"{tally.read:,} read = {samples[Verdict.KEPT]:,} kept "
        f"+ {samples[Verdict.DROPPED]:,} dropped + {samples[Verdict.FAILED]:,} failed"
    }
    for source in Source:
        share = tally.kept_share(source)
        if share is not None:
            kept = tally.texts[source, Verdict.KEPT]
            facts[f"{source} texts"] = f"{kept:,} of {tally.judged(source):,} kept ({share:.1%})"
    if noise_ratio is not None:
        facts["noise ratio"] = f"{noise_ratio:.1%} ({PAPER_NOISE_RATIO})"
    for title, reasons in (
        ("texts dropped", tally.dropped_texts),
        ("images failed", tally.failed_samples),
    ):
        if reasons:
            facts[title] = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
    return facts
