"""`capfilt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli.app import app


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; made if absent.")] = Path(
        "demo-output"
    ),
    pictures: Annotated[int, typer.Option(help="How many.")] = 200,
) -> None:
    """Make pictures, serve them, ingest, caption and filter them: every part at work, untrained."""
    from capfilt.demo.demo import demo as run_demo

    run_demo(folder, pictures)
