"""Command lines of `capfilt` in texts, and what the real command line says of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import takewhile

import typer

from capfilt.cli import app

_SHELLS = {">", ">>", "|", "&&", "&", ";"}
_START = re.compile(r"^\$? *(?:torchrun .*-m )?capfilt(?= )")


def commands_of_page(markdown: str) -> Iterator[list[str]]:
    """The words after `capfilt` of each command in a page's code blocks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if _START.match(line.strip()):
                words = shlex.split(_START.sub("", line.strip()), comments=True)
                if "..." not in words:
                    yield list(takewhile(lambda word: word not in _SHELLS, words))


def parse(words: Sequence[str]) -> str:
    """Parse a command as `capfilt` does, and give its name.

    Raises:
        Exception: As typer does when it is used wrongly: an unknown command or option, a value of
            the wrong type, an argument too few or too many.
    """
    command, name, rest = typer.main.get_command(app), "capfilt", list(words)
    context = command.make_context(name, rest)
    names = []
    while isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        found, command, rest = command.resolve_command(context, rest)
        assert found is not None
        assert command is not None
        context = command.make_context(found, rest, parent=context)
        names.append(found)
    return " ".join(names)
