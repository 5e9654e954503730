"""What came of a training."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.table import Table

from capfilt.duration import duration
from capfilt.show.layout import escape
from capfilt.train.training import Summary


def trained_text(summary: Summary) -> RenderableType:
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


def _next_commands(summary: Summary) -> list[str]:
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


def _next_stage(summary: Summary) -> list[str]:
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
