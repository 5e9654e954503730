"""`capfilt retry-failed`: a run again as its manifest says, for the shards that it has given up."""

from __future__ import annotations

from typing import Any

from capfilt.config import RunConfig
from capfilt.errors import ConfigError, InputError
from capfilt.run.manifest import Manifest
from capfilt.run.where import Where
from capfilt.schema import build


def retry_of(output_url: str, **hardware: Any) -> tuple[RunConfig, Where]:
    """What `capfilt.run.job.run` takes to do an output's failed shards again.

    Args:
        output_url: OUTPUT of a run.
        hardware: Fields of `Where` that say where to compute.

    Raises:
        InputError: There is no run at the URL.
    """
    manifest = Manifest.read(output_url)
    if manifest is None:
        raise InputError(f"{output_url}: no run here (no manifest.json)")
    try:
        config = build(RunConfig, manifest.config)
    except ConfigError as error:  # of `capfilt select`, or of another version
        raise InputError(
            f"{output_url}: its config is none of this version's `capfilt run` ({error}); "
            "give the command that made it once more"
        ) from None
    places = Where(
        input=manifest.input,
        output=output_url,
        human=manifest.human,
        human_images=manifest.human_images,
        allow_unfinished=manifest.allow_unfinished,
        only_failed=True,
        **hardware,
    )
    return config, places
