"""Command lines of `capfilt` in texts, and what the real command line says of them."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

from capfilt.cli import app
from capfilt.cli.options import RunOptions, WorkOptions

_SHELLS = {">", ">>", "|", "&&", "&", ";"}
_START = re.compile(r"^\$? *(?:torchrun .*-m )?capfilt(?= )")
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Written:
    """A command of a page: the words after `capfilt`, and whether all of them are there."""

    words: list[str]
    is_whole: bool

    def __str__(self) -> str:
        return f"capfilt {shlex.join(self.words)}"


def commands_of_page(markdown: str) -> Iterator[Written]:
    """The commands in a page's code blocks, and those within its lines, of which some are names."""
    for block in _FENCED.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            if _START.match(line.strip()):
                yield _written(line.strip(), is_whole=True)
    for code in re.findall(r"`([^`]+)`", _FENCED.sub("", markdown)):
        line = " ".join(code.split())
        if _START.match(line):
            yield _written(line, is_whole=False)


def _written(line: str, *, is_whole: bool) -> Written:
    words = shlex.split(_START.sub("", line), comments=True)
    words = list(takewhile(lambda word: word not in _SHELLS, words))
    return Written([word for word in words if word != "..."], is_whole and "..." not in words)


def parse(words: Sequence[str], *, is_whole: bool = True) -> str:
    """Parse a command as `capfilt` does, and give its name.

    Args:
        words: What follows `capfilt`.
        is_whole: Else arguments may be missing, and the command of a group.

    Raises:
        Exception: As typer does when it is used wrongly: an unknown command or option, a value of
            the wrong type, an argument too few or too many.
    """
    return _parsed(words, is_whole=is_whole)[0]


def resolve(words: Sequence[str]) -> Any:
    """The config that a whole command comes to; None where it is of a command without.

    Raises:
        ConfigError: A key that `--set` or the file names is none, or its value is of another kind.
    """
    name, context = _parsed(words, is_whole=True)
    values = context.params
    if name in ("run", "watch", "submit", "plan"):
        kind = WorkOptions if name == "plan" else RunOptions
        options = {field.name: values[field.name] for field in dataclasses.fields(kind)}
        return kind(**options).config()
    if name == "train":
        return context.command.callback(**{**values, "show": not values["list_"]})
    return None


def _parsed(words: Sequence[str], *, is_whole: bool) -> tuple[str, Any]:
    command, rest = typer.main.get_command(app), list(words)
    context = command.make_context("capfilt", rest)
    names: list[str] = []
    while isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        if not rest and names and not is_whole:
            break
        found, command, rest = command.resolve_command(context, rest)
        assert found is not None
        assert command is not None
        names.append(found)
        try:
            context = command.make_context(found, rest, parent=context)
        except Exception as error:
            if is_whole or type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):
                raise
            break
    return " ".join(names), context


def recorded(
    script: Path,
    *arguments: str,
    beside: Path,
    programs: Sequence[str] = ("capfilt",),
    **env: str,
) -> list[list[str]]:
    """The command lines that a script makes; by what stands in for its programs in the PATH.

    Args:
        script: Run by bash.
        arguments: Of the script.
        beside: A folder for the stand-ins and what they are called with.
        programs: What to put in place of; `capfilt submit` prints an id, as the real one does.
        env: Its environment, besides the PATH.
    """
    bin_, calls = beside / "bin", beside / "calls"
    bin_.mkdir(exist_ok=True)
    calls.unlink(missing_ok=True)
    for name in programs:
        stand_in = bin_ / name
        stand_in.write_text(
            # One write: commands that run side by side must not tell into each other.
            f"#!/bin/sh\nprintf '%s\\n' {name} \"$@\" '' >> '{calls}'\n"
            'if [ "$1" = submit ]; then echo dataset-1; fi\n'
        )
        stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env={"PATH": f"{bin_}:/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [call.split("\n") for call in calls.read_text().split("\n\n") if call]
