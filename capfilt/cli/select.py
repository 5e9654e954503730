"""`capfilt select`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from capfilt.cli.app import Json, app, print_result
from capfilt.errors import ConfigError


@app.command()
def select(
    origin_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of a run, or of an earlier select.")
    ],
    output_url: Annotated[
        str | None, typer.Argument(metavar="NEW_OUTPUT", help="Folder of the new dataset.")
    ] = None,
    min_match: Annotated[
        float | None, typer.Option(help="Keep texts from this match probability on.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Keep texts from this similarity on.")
    ] = None,
    drop_repetitive: Annotated[
        bool, typer.Option("--drop-repetitive", help='Drop texts like "a dog and a dog and a".')
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(help="Keep images by metadata: 'width >= 256 and license in [\"cc0\"]'."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Drop images of an evaluation set: folder or list of hashes; repeatable"),
    ] = None,
    dedupe_images: Annotated[
        str | None, typer.Option(help="Drop later copies of an image: exact or perceptual.")
    ] = None,
    keep_fraction: Annotated[
        float | None,
        typer.Option(help="Keep this share of the texts that are left, the best by --by."),
    ] = None,
    mix: Annotated[
        str, typer.Option(help="Texts of an image: both, web-first, synthetic-first, best.")
    ] = "both",
    top_k: Annotated[
        int | None, typer.Option(help="Keep at most so many texts of an image, the best by --by.")
    ] = None,
    dedupe_captions: Annotated[
        bool, typer.Option("--dedupe-captions", help="Let one image alone keep a caption.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="match_prob or similarity; default: similarity, if scored.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Write texts and scores only, joined by key.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what each rule would keep; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo shards that another select made.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose texts of OUTPUT anew by their scores, without a GPU; run it again to resume.

    With --min-match, --min-similarity, --keep-fraction or --top-k every text is judged anew;
    without them, the run's verdicts hold. Other rules come on top.
    """
    from capfilt.cut import CutConfig
    from capfilt.schema import build
    from capfilt.select.select import forecast
    from capfilt.select.select import select as cut
    from capfilt.show.datasets import forecast_text, summary_text

    tree: dict[str, Any] = {
        "min_match_prob": min_match,
        "min_similarity": min_similarity,
        "drop_repetitive": drop_repetitive,
        "where": where,
        "exclude": exclude or [],
        "dedupe_images": dedupe_images,
        "keep_fraction": keep_fraction,
        "mix": mix,
        "top_k": top_k,
        "dedupe_captions": dedupe_captions,
        "by": by,
    }
    config = build(CutConfig, tree)
    if dry_run:
        found = forecast(origin_url, config)
        print_result(found.to_dict() if as_json else forecast_text(found))
        return
    if output_url is None:
        raise ConfigError("NEW_OUTPUT is missing: give a folder, or --dry-run to count only")
    live = sys.stdout.isatty() and sys.stderr.isatty()
    summary = cut(
        origin_url, output_url, config, images=not no_images, overwrite=overwrite, live=live
    )
    print_result(summary.to_dict() if as_json else summary_text(summary))
    if summary.shards_failed:
        raise typer.Exit(1)
