"""`capfilt train`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt.cli.app import Json, app, print_result, read_config, speaker
from capfilt.errors import ConfigError


@app.command()
def train(
    stage: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="What to train; --list names them.")
    ] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one config key; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints, log and models; the same one resumes."),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(help="Ray: how many; default: one per GPU, or one per CPU node."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Ray: whole ones; 0 uses CPUs. Default: 1 if any.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray: a cluster; default: start Ray on this machine.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the stages.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the stage's config as YAML; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train STAGE; run it again to resume.

    One process by itself, several by torchrun (`torchrun --nproc-per-node 8 -m capfilt train ...`),
    or a Ray cluster's when one of the options marked "Ray" is given.
    """
    if list_:
        from capfilt.catalog import trainings

        print_result(trainings() if as_json else table_of(trainings()))
        return
    if stage is None:
        raise ConfigError("STAGE is missing: capfilt train --list names them")
    from capfilt.train.stage import Stage

    chosen = Stage.load(stage)
    resolved = chosen.resolve(
        yaml_text=read_config(config), yaml_name=str(config), overrides=overrides or ()
    )
    if show:
        from capfilt.schema import to_dict, to_yaml

        print_result(to_dict(resolved)) if as_json else typer.echo(to_yaml(resolved), nl=False)
        return
    if out is None:
        raise ConfigError("--out is missing: a folder for checkpoints, log and models")
    live = sys.stdout.isatty() and sys.stderr.isatty()
    place = out.expanduser().absolute()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
        if (num_workers, gpus_per_worker, address) == (None, None, None):
            summary = chosen.train(resolved, place, live=live)
        else:
            try:
                from capfilt.train.cluster import Cluster
            except ImportError:
                need = "training on Ray needs more packages: pip install 'capfilt[train]'"
                raise ConfigError(need) from None
            cluster = Cluster(num_workers, gpus_per_worker, address)
            summary = cluster.train(chosen, resolved, place, live=live)
    if not speaker():
        from capfilt.show import trained_text

        print_result(summary.to_dict() if as_json else trained_text(summary))


def table_of(facts: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table
