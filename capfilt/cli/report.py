"""`capfilt report`."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import GpuHourPrice, Json, app, print_result


@app.command()
def report(
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of a run or of a select.")
    ],
    target: Annotated[
        str | None, typer.Option("--out", help="The page; default: report.html in OUTPUT.")
    ] = None,
    gpu_hour_price: GpuHourPrice = None,
    samples: Annotated[int, typer.Option(help="Pictures of each contact sheet, up to 50.")] = 12,
    as_json: Json = False,
) -> None:
    """Write a page of figures and pictures: what was kept, and where to put the threshold."""
    from capfilt.report.report import report as write_report

    found = write_report(output_url, target=target, price_per_hour=gpu_hour_price, samples=samples)
    print_result(found.to_dict() if as_json else found.url)
