"""`capfilt copy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli.app import app, print_result


@app.command()
def copy(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="E.g. jobs/nightly_capfilt, or pipelines/bootstrap.yaml."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Gets the copy.")] = Path(),
) -> None:
    """Copy a job or a stage that travels with capfilt, to fill in and change; never overwrites."""
    from capfilt.catalog import copy as copy_bundled

    print_result(str(copy_bundled(name, folder)))
