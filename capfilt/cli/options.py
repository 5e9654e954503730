"""The options that `run`, `submit`, `watch` and `plan` share, as one value."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from capfilt.cli.app import read_config

if TYPE_CHECKING:  # they take their time
    from capfilt.config import RunConfig
    from capfilt.run.where import Where

Workers = Annotated[
    int | None, typer.Option(help="How many; default: one per GPU, or one per CPU node.")
]
GpusPerWorker = Annotated[
    float | None, typer.Option(help="Fractions allowed; 0 uses CPUs. Default: 1 if any.")
]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster; default: start Ray on this machine.")
]
UntilIdle = Annotated[
    str | None, typer.Option(metavar="30m", help="End a watch after so long without work.")
]
Webhook = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="CAPFILT_WEBHOOK", help="Is told by POST how the run ended."
    ),
]
Local = Annotated[bool, typer.Option("--local", help="One worker in this process, without Ray.")]


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """What to do, on what."""

    input_url: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Shards: a folder, a glob or a brace range, local or any fsspec URL.",
        ),
    ]
    captioner: Annotated[
        str | None, typer.Option(help="BLIP or BLIP-2 captioner: folder or hub id, or `none`.")
    ] = None
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help="BLIP, BLIP-2 or CLIP filter: folder or hub id, or `none`."),
    ] = None
    preset: Annotated[str | None, typer.Option(help="blip (default) or blip2.")] = None
    config_file: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file.")] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one config key; repeatable."),
    ] = None
    format_: Annotated[
        str | None, typer.Option("--format", help="webdataset (default) or parquet.")
    ] = None
    no_images: Annotated[bool, typer.Option("--no-images", help="Write texts and scores only.")] = (
        False
    )
    memory_limit: Annotated[
        float | None, typer.Option(metavar="GB", help="Of each worker's own process, on CPUs.")
    ] = None
    allow_unfinished: Annotated[
        bool,
        typer.Option("--allow-unfinished", help="Take img2dataset shards without _stats.json."),
    ] = False

    def config(self) -> RunConfig:
        """The one config of all its sources."""
        from capfilt.config import resolve

        return resolve(
            yaml_text=read_config(self.config_file),
            yaml_name=str(self.config_file),
            preset=self.preset,
            options={
                "captioner": self.captioner,
                "filter": self.filter_,
                "output.format": self.format_,
                "output.images": False if self.no_images else None,
                "compute.memory_limit_gb": self.memory_limit,
            },
            overrides=self.overrides or (),
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions(WorkOptions):
    """What to do, on what, into what; where it is computed is each command's own."""

    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of the new dataset, any fsspec URL.")
    ]
    human: Annotated[
        str | None,
        typer.Option(help="Human-annotated pairs that join unfiltered: COCO-style JSON or shards."),
    ] = None
    human_images: Annotated[
        str | None,
        typer.Option(help="Image folder of the JSON; default: the JSON's own folder."),
    ] = None
    workers: Workers = None
    gpus_per_worker: GpusPerWorker = None
    limit: Annotated[int | None, typer.Option(help="Process at most this many shards.")] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo shards that another config or model made.")
    ] = False
    webhook: Webhook = None

    def where(self, **own: Any) -> Where:
        """The places and hardware, with what is the command's own."""
        from capfilt.run.where import Where

        return Where(
            input=self.input_url,
            output=self.output_url,
            human=self.human,
            human_images=self.human_images,
            allow_unfinished=self.allow_unfinished,
            overwrite=self.overwrite,
            limit=self.limit,
            workers=self.workers,
            gpus_per_worker=self.gpus_per_worker,
            **own,
        )


def until_idle_s(text: str | None) -> float | None:
    """`UntilIdle` in seconds."""
    from capfilt.duration import seconds

    return None if text is None else seconds(text)


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options, which it takes as its first parameter."""
    first, *own = inspect.signature(command, eval_str=True).parameters.values()
    kind: type[WorkOptions] = first.annotation
    hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
        )
        for field in dataclasses.fields(kind)
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    def with_options(**values: Any) -> None:
        options = kind(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(options, **values)

    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__annotations__ = {p.name: p.annotation for p in (*shared, *own)}
    with_options.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    return with_options
