"""`capfilt plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import GpuHourPrice, Json, app, print_result
from capfilt.cli.options import WorkOptions, with_run_options


@app.command()
@with_run_options
def plan(
    options: WorkOptions,
    gpu_hour_price: GpuHourPrice = None,
    probe_images: Annotated[
        int, typer.Option(help="Images of two shards that go through the models here.")
    ] = 512,
    as_json: Json = False,
) -> None:
    """Say what a run over INPUT would take and keep, from a look at two of its shards."""
    from capfilt.estimate import estimate
    from capfilt.show.estimate import estimate_text

    found = estimate(
        options.config(),
        options.input_url,
        allow_unfinished=options.allow_unfinished,
        images=probe_images,
        price_per_hour=gpu_hour_price,
    )
    print_result(found.to_dict() if as_json else estimate_text(found))
