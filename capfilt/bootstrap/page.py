"""The results as Markdown: tables in the layout of the paper's Table 1, beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capfilt.bootstrap.results import (
    ORDER,
    PAPER_NOISE_RATIO,
    PAPER_SHARED_NOISE_RATIO,
    Results,
    Row,
    Spread,
)

# Which texts' maker and judge an arm has.
_USES = {"raw": "--", "repeat": "--", "filter": "-F", "captioner": "C-"}
# Source: BLIP, arXiv:2201.12086, Table 1, of the controls Tables 12, 13 and 4 (14 million images,
# ViT-B): zero-shot R@1 on Flickr30k; BLEU-4 and CIDEr on COCO after finetuning.
_PAPER = {
    "raw": (93.9, 82.1, 38.0, 127.8),
    "filter": (94.1, 82.8, 38.1, 128.2),
    "captioner": (94.4, 83.6, 38.4, 128.9),
    "both": (94.8, 84.9, 38.6, 129.7),
    "repeat": (93.7, 82.2, 37.9, 127.7),
    "continue": (94.5, 84.6, 38.5, 129.9),
    "shared": (94.3, 83.7, 38.4, 129.0),
}
TITLES = {
    "tr_r1": "TR@1",
    "ir_r1": "IR@1",
    "captions_true": "captions true",
    "bleu4": "B@4",
    "cider": "CIDEr",
    "finetuned_captions_true": "finetuned: captions true",
    "finetuned_bleu4": "finetuned: B@4",
    "finetuned_cider": "finetuned: CIDEr",
}
_MODULE_TITLES = {
    "texts": "texts kept",
    "noise_ratio": "noise ratio",
    "auc": "AUC",
    "captions_true": "captions true",
    "cider": "CIDEr",
    "web_true": "web texts true",
    "web_things": "with the right things",
    "web_kept": "web texts kept",
    "web_kept_true": "kept web texts true",
    "web_kept_things": "with the right things",
    "synthetic_true": "captions of the web true",
    "synthetic_things": "with the right things",
    "synthetic_kept_true": "kept captions true",
    "synthetic_kept_things": "with the right things",
}


def page(results: Results) -> str:
    """All tables, percent with standard deviation over seeds."""
    seeds = ", ".join(map(str, results.seeds))
    parts = [
        f"Mean and standard deviation over seeds {seeds}, in percent (CIDEr times 100).",
        "## New models, by the texts that they were pre-trained on\n\n"
        "TR and IR: texts found for images and images for texts, zero-shot. The last four columns "
        "are the paper's Tables 1, 4, 12 and 13 (14M, ViT-B: Flickr30k zero-shot, COCO finetuned)."
        "\n\n" + _arms(results),
    ]
    if results.differences:
        parts.append(
            "## Differences\n\nOf models with the same seed. Table 1 has the order "
            f"{' > '.join(ORDER)}.\n\n" + _plain(results.differences, TITLES, signed=True)
        )
    if results.modules:
        parts.append(
            "## Captioners and filters\n\nNumbers are rounds, `shared` has one model for both. "
            f"The paper's noise ratio is {PAPER_NOISE_RATIO:.0%}, with shared weights "
            f"{PAPER_SHARED_NOISE_RATIO:.0%}.\n\n"
            + _plain(results.modules, _with_kinds(results.modules))
        )
    parts += [f"**Warning**: {warning}." for warning in results.warnings]
    return "\n\n".join(parts) + "\n"


def _arms(results: Results) -> str:
    titles = _shown(results.arms, TITLES)
    paper = ("BLIP TR@1", "BLIP IR@1", "BLIP B@4", "BLIP CIDEr")
    rows = []
    for name, row in results.arms.items():
        uses = _USES.get(name, "CF")
        marks = ["✓" if letter in uses else "-" for letter in "CF"]
        published = [f"{figure:.1f}" for figure in _PAPER.get(name, ())] or ["-"] * len(paper)
        rows.append([name, *marks, *(_cell(row.get(key)) for key in titles), *published])
    return _table(["texts", "C", "F", *titles.values(), *paper], rows)


def _plain(rows: Mapping[str, Row], titles: Mapping[str, str], *, signed: bool = False) -> str:
    titles = _shown(rows, titles)
    cells = [
        [name, *(_cell(row.get(key), signed=signed, count=key == "texts") for key in titles)]
        for name, row in rows.items()
    ]
    return _table(["", *titles.values()], cells)


def _with_kinds(modules: Mapping[str, Row]) -> dict[str, str]:
    """The modules' titles, with the AUC of each kind of text that does not match."""
    kinds = sorted({key for row in modules.values() for key in row if key.startswith("auc_")})
    titles = dict(_MODULE_TITLES)
    return titles | {kind: f"AUC, {kind.removeprefix('auc_')}" for kind in kinds}


def _shown(rows: Mapping[str, Row], titles: Mapping[str, str]) -> dict[str, str]:
    """Titles of what any row has."""
    return {k: title for k, title in titles.items() if any(k in row for row in rows.values())}


def _cell(spread: Spread | None, *, signed: bool = False, count: bool = False) -> str:
    if spread is None:
        return "-"
    if count:
        return f"{spread.mean:,.0f}"
    text = f"{100 * spread.mean:{'+' if signed else ''}.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
