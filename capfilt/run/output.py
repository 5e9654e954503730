"""OUTPUT before a run: it may not hold what is somebody else's."""

from __future__ import annotations

from capfilt.errors import ConfigError
from capfilt.io import files, outputs

_OURS = frozenset({*outputs.FOLDERS, outputs.MANIFEST, outputs.LEASE})


def check_output(output_url: str) -> None:
    """Look whether a run may write there; one listing, of the top level.

    It may where there is nothing, where a run has written, and in a folder that holds nothing but
    what a run makes. Hidden files count as nothing.

    Raises:
        ConfigError: It is a file, or holds something else: shards, where INPUT was meant.
        InputError: The store cannot be reached or denies access.
    """
    entry = files.info(output_url)
    if entry is None:
        return
    if not entry.is_folder:
        raise ConfigError(f"OUTPUT {output_url} is a file: give a folder")
    names = [found.name for found in files.list_folder(output_url)]
    if outputs.MANIFEST in names:
        return
    others = [name for name in names if name not in _OURS and not name.startswith(".")]
    if others:
        raise ConfigError(
            f"OUTPUT {output_url} holds {others[0]} and no run ({outputs.MANIFEST}): give the new "
            "dataset a folder of its own (INPUT comes first, then OUTPUT)"
        )
