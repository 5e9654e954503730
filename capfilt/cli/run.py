"""`capfilt run`, and what looks at its OUTPUT: `status`, `verify`."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result, read_config


@app.command()
def run(
    input_url: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Shards: a folder, a glob or a brace range, local or any fsspec URL.",
        ),
    ],
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of the new dataset, any fsspec URL.")
    ],
    captioner: Annotated[
        str | None, typer.Option(help="BLIP or BLIP-2 captioner: folder or hub id, or `none`.")
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help="BLIP, BLIP-2 or CLIP filter: folder or hub id, or `none`."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="blip (default) or blip2.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one config key; repeatable."),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="webdataset (default) or parquet.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Write texts and scores only.")
    ] = False,
    human: Annotated[
        str | None,
        typer.Option(help="Human-annotated pairs that join unfiltered: COCO-style JSON or shards."),
    ] = None,
    human_images: Annotated[
        str | None,
        typer.Option(help="Image folder of the JSON; default: the JSON's own folder."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many; default: one per GPU, or one per CPU node.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Fractions allowed; 0 uses CPUs. Default: 1 if any.")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(metavar="GB", help="Of each worker's own process, on CPUs.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default: start Ray on this machine.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="One worker in this process, without Ray.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Process at most this many shards.")] = None,
    allow_unfinished: Annotated[
        bool,
        typer.Option("--allow-unfinished", help="Take img2dataset shards without _stats.json."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo shards that another config or model made.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Caption and filter every shard of INPUT into OUTPUT; run it again to resume."""
    from capfilt.config import resolve
    from capfilt.run.job import Where
    from capfilt.run.job import run as run_job
    from capfilt.show import summary_text

    resolved = resolve(
        yaml_text=read_config(config),
        yaml_name=str(config),
        preset=preset,
        options={
            "captioner": captioner,
            "filter": filter_,
            "output.format": format_,
            "output.images": False if no_images else None,
            "compute.memory_limit_gb": memory_limit,
        },
        overrides=overrides or (),
    )
    where = Where(
        input=input_url,
        output=output_url,
        human=human,
        human_images=human_images,
        allow_unfinished=allow_unfinished,
        overwrite=overwrite,
        limit=limit,
        local=local,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: give shards back
    live = sys.stdout.isatty() and sys.stderr.isatty()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
        summary = run_job(resolved, where, live=live)
    print_result(summary.to_dict() if as_json else summary_text(summary))
    if summary.shards_failed:
        raise typer.Exit(1)


@app.command()
def status(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Say how far a run is: shards by state, images and texts by verdict."""
    from capfilt.run.status import status as read_status
    from capfilt.show import status_text

    found = read_status(output_url)
    print_result(found.to_dict() if as_json else status_text(found))


@app.command()
def verify(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Read every file of a run again and compare it with its commit: hashes and counts."""
    from capfilt.run.verify import verify as verify_output
    from capfilt.show import verification_text

    found = verify_output(output_url)
    print_result(found.to_dict() if as_json else verification_text(found))
    if found.problems:
        raise typer.Exit(1)
