"""Downloads, runs and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table

from capfilt.duration import duration
from capfilt.ingest import Ingested
from capfilt.record import Source
from capfilt.report.diff import Change, Difference
from capfilt.run.status import Status
from capfilt.run.summary import Summary
from capfilt.run.verify import Verification
from capfilt.select.select import Forecast
from capfilt.service.job import Job
from capfilt.show.layout import counts, escape, figures, page


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


def summary_text(summary: Summary) -> RenderableType:
    """What came of a run."""
    shards = f"{summary.shards_done:,} done"
    if summary.shards_before:
        shards += f", {summary.shards_before:,} before"
    if summary.shards_failed:
        shards += f", {len(summary.shards_failed):,} failed"
    if summary.left_by_limit:
        shards += f", {summary.left_by_limit:,} left by --limit"
    if summary.missing:
        shards += f", {len(summary.missing):,} failed ones not in INPUT"
    facts = {"shards": shards}
    if summary.images:
        facts["this call"] = (
            f"{summary.images:,} images in {duration(summary.seconds)}, "
            f"{summary.images / summary.seconds:,.1f} images/s"
        )
    failed = [f"failed shard {f.shard.id}: {f.error}" for f in summary.shards_failed]
    failed += [f"failed shard {name}: not in INPUT, or unfinished" for name in summary.missing]
    return page(summary.output, facts, summary.tally, summary.noise_ratio, failed)


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
    return page(status.output, facts, status.tally, status.noise_ratio, failed)


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


def forecast_text(found: Forecast) -> RenderableType:
    """What a cut would keep, rule by rule, beside what the OUTPUT keeps now."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_row("texts", f"{found.candidates:,}", "that the rules judge")
    for rule, left in found.left_after().items():
        dropped = found.after.dropped_texts[rule]
        table.add_row("", f"{left:,}", f"left after {rule} dropped {dropped:,}")
    if found.kept_from is not None:
        table.add_row("kept from", f"{found.kept_from:.4f}", f"of {found.by}")
    for title, tally in (("now", found.before), ("would be", found.after)):
        told = counts(tally, None)
        for name in ("images", "images dropped", *(f"{source} texts" for source in Source)):
            if name in told:
                table.add_row(title, "", f"{name}: {told[name]}")
    return Group(escape(found.origin), table)


def difference_text(found: Difference) -> RenderableType:
    """Counts by source, then a few texts of each kind."""
    kinds = list(dict.fromkeys(kind for _, kind in found.counts))
    table = figures("", *kinds)
    for source in dict.fromkeys(source for source, _ in sorted(found.counts)):
        table.add_row(source, *(f"{found.counts[source, kind]:,}" for kind in kinds))
    lines = [f"A {found.a}", f"B {found.b}", *(f"changed {line}" for line in found.config)]
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            lines.append(f"{len(only):,} shards of {name} alone, e.g. {only[0]}")
    for name, reasons in found.dropped_images.items():
        if reasons:
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            lines.append(f"images dropped by {name.upper()}: {told}")
    samples = [f"{kind}: {_told(change)}" for kind, of in found.samples.items() for change in of]
    return Group(*map(escape, lines), table, *map(escape, samples))


def _told(change: Change) -> str:
    """A text on one line, with its scores under A and B where they differ."""
    texts = dict.fromkeys(" ".join(text.split()) for text in change.text if text is not None)
    parts = [f"{change.shard} {change.key} {change.source}", " -> ".join(map(repr, texts))]
    for name in ("match_prob", "similarity"):
        scores = [f"{score:.3f}" for score in getattr(change, name) if score is not None]
        if scores:
            parts.append(f"{name} {' -> '.join(dict.fromkeys(scores))}")
    parts += [f"{side}: {why}" for side, why in zip("AB", change.reason, strict=True) if why]
    return ", ".join(parts)


def jobs_text(jobs: Sequence[Job]) -> RenderableType:
    """A cluster's jobs, the latest last."""
    table = figures("job", "status", "began (UTC)", "took", "output")
    for job in jobs:
        began = took = ""
        if job.began is not None:
            began = datetime.fromtimestamp(job.began, UTC).strftime("%Y-%m-%d %H:%M:%S")
        if job.began is not None and job.ended is not None:
            took = duration(job.ended - job.began)
        table.add_row(job.id, job.status.lower(), began, took, escape(job.output))
    return table
