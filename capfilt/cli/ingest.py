"""`capfilt ingest`."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result
from capfilt.errors import InputError


@app.command()
def ingest(
    urls: Annotated[
        str, typer.Argument(metavar="URLS", help="A parquet, csv or tsv of URLs and captions.")
    ],
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of the img2dataset shards.")
    ],
    url_column: Annotated[
        str | None, typer.Option(help="Column of the URLs; default: url, URL.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the texts; default: caption, TEXT, text, ...")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="webdataset, parquet or files.")
    ] = "webdataset",
    image_size: Annotated[
        int, typer.Option(help="Larger images are shrunk until their shorter edge is this.")
    ] = 384,
    samples_per_shard: Annotated[int, typer.Option(help="URLs per shard.")] = 10_000,
    processes: Annotated[int | None, typer.Option(help="Default: one per core.")] = None,
    threads: Annotated[int, typer.Option(help="Downloads at once, per process.")] = 32,
    timeout_s: Annotated[int, typer.Option("--timeout", help="Seconds per request.")] = 10,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            help="Also fetch from private, loopback and link-local hosts (your own lists only).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Download URLS with img2dataset, with defaults that suit CapFilt; run it again to resume."""
    from capfilt.ingest import ingest as download
    from capfilt.show.datasets import ingested_text

    found = download(
        urls,
        output_url,
        url_column=url_column,
        caption_column=caption_column,
        format=format_,
        image_size=image_size,
        samples_per_shard=samples_per_shard,
        processes=processes,
        threads=threads,
        timeout_s=timeout_s,
        allow_private_hosts=allow_private_hosts,
    )
    print_result(found.to_dict() if as_json else ingested_text(found))
    if found.rows and not found.succeeded:
        hint = "" if allow_private_hosts else " (--allow-private-hosts for hosts of your own)"
        raise InputError(
            f"{output_url}: none of {found.rows:,} URLs gave an image{hint}; finished shards are "
            "not tried again, so remove the folder before the next try"
        )
    if found.shards_failed:
        raise typer.Exit(1)
