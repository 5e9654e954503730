"""`capfilt demo`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; made if absent.")] = Path(
        "demo-output"
    ),
    pictures: Annotated[int, typer.Option(help="How many.")] = 300,
    as_json: Json = False,
) -> None:
    """Make a web of pictures, ingest, caption and filter it, and hold it against the truth."""
    from capfilt.demo.demo import demo as run_demo

    if isinstance(sys.stdout, io.TextIOWrapper):  # a folder's name may be more than it can say
        sys.stdout.reconfigure(errors="backslashreplace")
    result = run_demo(folder, pictures, quiet=as_json)
    if as_json:
        print_result(result.to_dict())
