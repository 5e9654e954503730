"""The application that commands register with, and what they share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt import __version__, logs
from capfilt.errors import ConfigError
from capfilt.text import printable

app = typer.Typer(
    name="capfilt",
    help="CapFilt as a service: caption and filter web image-text shards with BLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
GpuHourPrice = Annotated[
    float | None, typer.Option(help="Of a GPU, or of a machine without; tells what it costs.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"capfilt {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    log_format: Annotated[
        str, typer.Option(envvar=logs.ENVIRONMENT, help="text, or json: a JSON object per line.")
    ] = "text",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logs.set_up(log_format, debug=debug)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def say(message: str) -> None:
    """The last line of a command that ends with an error."""
    if logs.is_json():
        logs.log.error(message)
    else:
        print(printable(f"capfilt: {speaker()}{message}"), file=sys.stderr)


def speaker() -> str:
    """Which process speaks, where torchrun has started several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"[rank {rank}] "


def read_config(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"-c {path}: cannot be read ({error})") from None


def print_piece(text: str) -> None:
    """Part of a log to stdout, as it is."""
    for line in text.splitlines(keepends=True):
        ending = "\n" if line.endswith("\n") else ""
        print(printable(line.rstrip("\r\n")), end=ending, flush=True)


def print_result(result: Any) -> None:
    """To stdout: a dict as JSON, anything else as text."""
    if isinstance(result, dict):
        print(printable(json.dumps(result, indent=1, ensure_ascii=False)))
    else:
        from rich.console import Console

        # In a pipe or a file, lines are not broken: they are for grep.
        Console(width=None if sys.stdout.isatty() else 1000).print(result)
