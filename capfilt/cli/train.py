"""`capfilt train`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt import sigterm
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
    cache_features: Annotated[
        Path | None,
        typer.Option(help="BLIP-2: folder for what the frozen image encoder makes of images."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="bootstrap: further ones begin with the model that was bootstrapped."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the stages.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the stage's config as YAML; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train STAGE; run it again to resume.

    One process by itself, several by torchrun (`torchrun --nproc-per-node 8 -m capfilt train ...`),
    or a Ray cluster's when one of the options marked "Ray" is given. `bootstrap`, the whole loop
    with its ablations, is one process.
    """
    if list_:
        from capfilt.catalog import trainings

        print_result(trainings() if as_json else table_of(trainings()))
        return
    if stage is None:
        raise ConfigError("STAGE is missing: capfilt train --list names them")
    on_ray = (num_workers, gpus_per_worker, address) != (None, None, None)
    if stage == "bootstrap":
        if on_ray or "RANK" in os.environ:
            raise ConfigError("bootstrap is one process: no torchrun, no options for Ray")
        if cache_features is not None:
            raise ConfigError(
                "--cache-features is for frozen image encoders: those of bootstrap learn"
            )
        more = [] if rounds is None else [f"rounds={rounds}"]
        _bootstrap(config, [*(overrides or ()), *more], out, show=show, as_json=as_json)
        return
    if rounds is not None:
        raise ConfigError(f"--rounds is for bootstrap; {stage} has loop.epochs and loop.steps")
    from capfilt.train.stage import Stage

    more = []
    if cache_features is not None:
        more = [f"cache_features={cache_features}", "data.augment.fixed=true"]
    found = Stage.load(stage)
    resolved = found.resolve(
        yaml_text=read_config(config),
        yaml_name=str(config),
        overrides=[*(overrides or ()), *more],
    )
    if show:
        _show(resolved, as_json=as_json)
        return
    place = _place(out)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
        if not on_ray:
            summary = found.train(resolved, place, live=_live())
        else:
            try:
                from capfilt.train.cluster import Cluster
            except ImportError:
                need = "training on Ray needs more packages: pip install 'capfilt[train]'"
                raise ConfigError(need) from None
            cluster = Cluster(num_workers, gpus_per_worker, address)
            summary = cluster.train(found, resolved, place, live=_live())
    if not speaker():
        from capfilt.show.training import trained_text

        print_result(summary.to_dict() if as_json else trained_text(summary))


def _bootstrap(
    config: Path | None, overrides: list[str], out: Path | None, *, show: bool, as_json: bool
) -> None:
    from capfilt.bootstrap.experiment import Experiment
    from capfilt.bootstrap.page import page

    experiment = Experiment.load()
    resolved = experiment.resolve(
        yaml_text=read_config(config), yaml_name=str(config), overrides=overrides
    )
    if show:
        _show(resolved, as_json=as_json)
        return
    sigterm.as_interrupt()  # between trainings
    with contextlib.redirect_stdout(sys.stderr):
        results = experiment.run(resolved, _place(out), live=_live())
    if as_json:
        print_result(results.to_dict())
    else:
        typer.echo(page(results), nl=False)


def _show(resolved: Any, *, as_json: bool) -> None:
    from capfilt.schema import to_dict, to_yaml

    print_result(to_dict(resolved)) if as_json else typer.echo(to_yaml(resolved), nl=False)


def _place(out: Path | None) -> Path:
    if out is None:
        raise ConfigError("--out is missing: a folder for checkpoints, log and models")
    return out.expanduser().absolute()


def _live() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


def table_of(facts: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table
