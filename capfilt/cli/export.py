"""`capfilt export`."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result


@app.command()
def export(
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of a run or of a select.")
    ],
    target: Annotated[str, typer.Argument(metavar="FOLDER", help="Gets the files; its own.")],
    form: Annotated[str, typer.Option(help="blip, lavis, open_clip or huggingface.")],
    as_json: Json = False,
) -> None:
    """Write OUTPUT's kept samples in the form of another loader; run it again to resume."""
    from capfilt.export.export import export as write_export

    found = write_export(output_url, target, form)
    counts = f"{found.images:,} images, {found.texts:,} texts"
    print_result(found.to_dict() if as_json else f"{found.target}: {counts}")
