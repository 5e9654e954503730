"""What was measured of a model."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from capfilt.duration import duration
from capfilt.evaluate.captions import Captions
from capfilt.evaluate.filter_quality import FilterQuality, Quality
from capfilt.evaluate.noise import Noise
from capfilt.evaluate.retrieval import Retrieval
from capfilt.evaluate.vqa import Vqa
from capfilt.show.layout import PAPER_NOISE_RATIO, escape, figures


def retrieval_text(found: Retrieval) -> RenderableType:
    """Recalls in percent, as papers print them."""
    table = figures("", "R@1", "R@5", "R@10")
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
    table = figures(*(f"BLEU-{n}" for n in orders), "CIDEr")
    table.add_row(*(f"{100 * figure:.1f}" for figure in (*found.bleu, found.cider)))
    return Group(
        f"{found.images:,} images, {found.references:,} human captions, {duration(found.seconds)}",
        f"captioner {escape(found.captioner.source)}",
        table,
    )


def vqa_text(found: Vqa) -> RenderableType:
    """Accuracy in percent, as papers print it."""
    table = figures("VQA accuracy")
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
    table = figures("", *columns)
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns.values()))
    return Group(
        f"{found.pairs:,} pairs of {found.images:,} images, {found.matching:,} match, "
        f"{duration(found.seconds)}",
        f"filter {escape(found.filter.source)}",
        table,
    )


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
