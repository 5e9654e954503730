"""Results as people read them on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape as without_markup
from rich.table import Table

from capfilt.duration import duration
from capfilt.ingest import Ingested
from capfilt.record import Source, Verdict
from capfilt.report.diff import Change, Difference
from capfilt.run.status import Status
from capfilt.run.summary import Summary
from capfilt.run.verify import Verification
from capfilt.select.select import Forecast
from capfilt.service.job import Job
from capfilt.tally import Tally
from capfilt.text import printable

if TYPE_CHECKING:  # they bring torch, which the other commands do without
    from capfilt.estimate import Estimate, Share
    from capfilt.evaluate.captions import Captions
    from capfilt.evaluate.filter_quality import FilterQuality, Quality
    from capfilt.evaluate.noise import Noise
    from capfilt.evaluate.retrieval import Retrieval
    from capfilt.evaluate.vqa import Vqa
    from capfilt.train.training import Summary as Trained

# Source: BLIP, arXiv:2201.12086, Table 2.
PAPER_NOISE_RATIO = "BLIP: 25 % with nucleus sampling, 19 % with beams"
WELL_FED = 0.8  # of the time, in which models that need not wait for images compute


def escape(text: str) -> str:
    """A stranger's words: neither rich's markup in them is obeyed nor the terminal's."""
    return without_markup(printable(text))


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


def jobs_text(jobs: Sequence[Job]) -> RenderableType:
    """A cluster's jobs, the latest last."""
    table = _figures("job", "status", "began (UTC)", "took", "output")
    for job in jobs:
        began = took = ""
        if job.began is not None:
            began = datetime.fromtimestamp(job.began, UTC).strftime("%Y-%m-%d %H:%M:%S")
        if job.began is not None and job.ended is not None:
            took = duration(job.ended - job.began)
        table.add_row(job.id, job.status.lower(), began, took, escape(job.output))
    return table


def estimate_text(found: Estimate) -> RenderableType:
    """What a run would take and give, and how sure that is."""
    census, probe = found.census, found.probe
    about = "" if census.is_exact else "about "
    source = "_stats.json" if census.has_stats else "counted"
    if not census.is_exact:
        source = f"{census.counted:,} shards: {source}; the others by their size"
    facts = {
        "shards": f"{census.shards:,}, {_size(census.size_bytes)}",
        "images": f"{about}{census.images:,} ({source})",
        "machine": f"{probe.device}, models loaded in {duration(probe.load_s)}",
        "batch": f"{probe.batch_size:,} images fit, {_size(probe.peak_bytes)} of memory at most",
        "speed": f"{probe.images_per_s:,.1f} images/s of one {found.speed.unit}, "
        f"its models busy {probe.busy_share:.0%} of the time",
        "takes": f"{found.hours:,.2f} {found.speed.unit} hours "
        f"({duration(found.hours * 3600)} on one, {duration(found.hours * 450)} on eight)",
    }
    if found.price is not None:
        facts["price"] = f"{found.price:,.2f} at {found.price_per_hour:g} an hour"
    facts["output"] = f"about {_size(found.output_bytes)}"
    facts["images kept"] = _interval(found.kept)
    facts |= {f"{source} texts kept": _interval(share) for source, share in found.texts.items()}
    lines = [
        f"intervals: 95 %, from the first {probe.tally.read:,} images of "
        f"{', '.join(shard.id for shard in probe.shards)}; wider where shards differ"
    ]
    if found.ignores:
        lines.append(
            f"{' and '.join(found.ignores)}: not looked for here, which takes all of INPUT; a run "
            "drops copies before the models, so it takes and keeps less"
        )
    if found.unfinished:
        lines.append(f"left out: {found.unfinished:,} shards that img2dataset has not finished")
    if probe.busy_share < WELL_FED:
        lines.append("the models waited for images: more CPU cores or a nearer INPUT would help")
    return _table("input", found.input, facts, lines)


def _interval(share: Share) -> str:
    """A share with its 95 % interval, in percent."""
    if share.low == share.high:
        return f"{share.share:.1%} (of all)"
    return f"{share.share:.1%} ({share.low:.1%} to {share.high:.1%})"


def _size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.1f} {unit}"
    return f"{count / 1000:,.1f} TB"


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
        counts = _counts(tally, None)
        for name in ("images", "images dropped", *(f"{source} texts" for source in Source)):
            if name in counts:
                table.add_row(title, "", f"{name}: {counts[name]}")
    return Group(escape(found.origin), table)


def difference_text(found: Difference) -> RenderableType:
    """Counts by source, then a few texts of each kind."""
    kinds = list(dict.fromkeys(kind for _, kind in found.counts))
    table = _figures("", *kinds)
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


def trained_text(summary: Trained) -> RenderableType:
    """What came of a training, and what to do with it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    steps = f"{summary.steps:,} ({summary.epochs:.4g} epochs)"
    if summary.steps_before:
        steps += f", {summary.steps_before:,} before"
    table.add_row("output", escape(summary.out))
    table.add_row("steps", steps)
    if summary.images:
        table.add_row(
            "this call",
            f"{summary.images:,} images in {duration(summary.seconds)}, "
            f"{summary.images / summary.seconds:,.1f} images/s",
        )
        losses = ", ".join(f"{name} {value:.4f}" for name, value in summary.losses.items())
        table.add_row("last losses", losses)
    if summary.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.left_out.items())
        table.add_row("left out", f"{reasons}; other examples took their places")
    for role, folder in summary.exports.items():
        table.add_row(role, escape(folder))
    for command in _next_commands(summary):
        table.add_row("next", escape(command))
    return Group(table)


def _next_commands(summary: Trained) -> list[str]:
    roles = summary.exports.keys()
    if {"captioner", "filter"} <= roles:
        return [
            f"capfilt train blip_finetune_{role} --set model.start={shlex.quote(summary.out)} "
            f'--set data.datasets="[{{path: captions.json}}]" --out {role}'
            for role in ("captioner", "filter")
        ]
    other = {"captioner": "--filter FILTER", "filter": "--captioner CAPTIONER"}
    return [
        *_next_stage(summary),
        *(
            f"capfilt run INPUT OUTPUT --{role} {shlex.quote(folder)} {other[role]}"
            for role, folder in summary.exports.items()
            if role in other
        ),
    ]


def _next_stage(summary: Trained) -> list[str]:
    """Of BLIP-2's stages, each of which starts from the one before."""
    known = {
        "blip2_stage1": ("blip2_stage2", " --set model.language=LANGUAGE", "dataset", "stage2"),
        "blip2_stage2": ("blip2_finetune_captioner", "", "captions.json", "captioner"),
    }
    if summary.stage not in known:
        return []
    stage, more, path, out = known[summary.stage]
    return [
        f"capfilt train {stage} --set model.start={shlex.quote(summary.out)}{more} "
        f'--set data.datasets="[{{path: {path}}}]" --out {out}'
    ]


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


def retrieval_text(found: Retrieval) -> RenderableType:
    """Recalls in percent, as papers print them."""
    table = _figures("", "R@1", "R@5", "R@10")
    for way, candidates in (("text_to_image", found.images), ("image_to_text", found.texts)):
        stages = {"ITC": found.itc}
        if found.itm is not None:
            stages[f"ITM of the first {min(found.k_test, candidates)}"] = found.itm
        for stage, ranking in stages.items():
            recall = getattr(ranking, way)
            shares = (f"{100 * share:.1f}" for share in (recall.r1, recall.r5, recall.r10))
            table.add_row(f"{way.replace('_', ' ')}, {stage}", *shares)
    return Group(
        f"{found.images:,} images, {found.texts:,} texts, {duration(found.seconds)}",
        f"filter {escape(found.filter.source)}",
        table,
    )


def captions_text(found: Captions) -> RenderableType:
    """BLEU and CIDEr times 100, as papers print them."""
    orders = range(1, len(found.bleu) + 1)
    table = _figures(*(f"BLEU-{n}" for n in orders), "CIDEr")
    table.add_row(*(f"{100 * figure:.1f}" for figure in (*found.bleu, found.cider)))
    return Group(
        f"{found.images:,} images, {found.references:,} human captions, {duration(found.seconds)}",
        f"captioner {escape(found.captioner.source)}",
        table,
    )


def vqa_text(found: Vqa) -> RenderableType:
    """Accuracy in percent, as papers print it."""
    table = _figures("VQA accuracy")
    table.add_row(f"{100 * found.accuracy:.2f}")
    return Group(
        f"{found.images:,} images, {found.questions:,} questions, {duration(found.seconds)}",
        f"captioner {escape(found.captioner.source)}, asked {escape(repr(found.prompt))}",
        table,
    )


def filter_quality_text(found: FilterQuality) -> RenderableType:
    """One column for each score that the filter gives."""
    scores = {"match_prob": found.match_prob, "similarity": found.similarity}
    columns = {name: _quality(quality) for name, quality in scores.items() if quality is not None}
    table = _figures("", *columns)
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns.values()))
    return Group(
        f"{found.pairs:,} pairs of {found.images:,} images, {found.matching:,} match, "
        f"{duration(found.seconds)}",
        f"filter {escape(found.filter.source)}",
        table,
    )


def noise_text(found: Noise) -> RenderableType:
    """The noise ratio beside the paper's."""
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "noise ratio",
        f"{found.noise_ratio:.1%} ({found.synthetic_rejected:,} of {found.synthetic:,} synthetic "
        f"captions below {found.threshold:g})",
    )
    table.add_row("", PAPER_NOISE_RATIO)
    if found.web:
        share = found.web_rejected / found.web
        table.add_row(
            "web texts", f"{share:.1%} rejected ({found.web_rejected:,} of {found.web:,})"
        )
    return Group(escape(found.place), table)


def _quality(quality: Quality) -> dict[str, str]:
    rows = {
        "ROC AUC": f"{quality.roc_auc:.4f}",
        "average precision": f"{quality.average_precision:.4f}",
    }
    for title, at in (("threshold", quality.at_threshold), ("best threshold", quality.best)):
        if at is not None:
            precision = "-" if at.precision is None else f"{at.precision:.4f}"
            rows[title] = f"{at.threshold:.4f}"
            rows[f"  precision at {title}"] = precision
            rows[f"  recall at {title}"] = f"{at.recall:.4f}"
            rows[f"  F1 at {title}"] = f"{at.f1:.4f}"
    return rows


def _figures(*columns: str) -> Table:
    """An empty table whose first column is text where it has no title, all others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    return table


def _page(
    title: str,
    facts: dict[str, str],
    tally: Tally,
    noise_ratio: float | None,
    lines: list[str],
) -> RenderableType:
    return _table("output", title, facts | _counts(tally, noise_ratio), lines)


def _table(
    name: str, place: str, facts: dict[str, str], lines: Sequence[str] = ()
) -> RenderableType:
    """Facts about a place, then lines of their own."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for title, value in ({name: place} | facts).items():
        table.add_row(title, escape(value))
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
        ("images dropped", tally.dropped_samples),
        ("images failed", tally.failed_samples),
    ):
        if reasons:
            facts[title] = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
    return facts
