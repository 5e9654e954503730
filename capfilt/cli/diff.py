"""`capfilt diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result


@app.command()
def diff(
    a_url: Annotated[str, typer.Argument(metavar="A", help="Folder of a run or of a select.")],
    b_url: Annotated[str, typer.Argument(metavar="B", help="Another, of the same input.")],
    samples: Annotated[int, typer.Option(help="Texts to show of each kind.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what two runs or selections decided differently: counts, and some of the texts."""
    from capfilt.report.diff import diff as compare
    from capfilt.show.datasets import difference_text

    found = compare(a_url, b_url, samples=samples)
    print_result(found.to_dict() if as_json else difference_text(found))
