"""`capfilt convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from capfilt.cli.app import app, print_result
from capfilt.errors import ConfigError


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .pth of BLIP's authors, or transformers' pytorch_model.bin or its folder.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Gets the checkpoint.")],
    role: Annotated[str, typer.Option("--as", help="captioner or filter: the half to take.")],
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="BERT's vocab.txt or a tokenizer's folder; default: SOURCE, if a folder."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Interpolate positions to this side in pixels.")
    ] = None,
) -> None:
    """Make a pickled BLIP checkpoint a folder that run and transformers load."""
    if role not in ("captioner", "filter"):
        raise ConfigError(f"--as is captioner or filter, not {role}")
    from capfilt.models.checkpoint import Role
    from capfilt.models.convert import convert as make_folder

    half = cast(Role, role)
    print_result(
        str(make_folder(source, folder, half, vocabulary=vocabulary, image_size=image_size))
    )
