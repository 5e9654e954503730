"""`manifest.json`: what made this output. The first file of a run and the key to resuming it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from capfilt import __version__
from capfilt.errors import CommitError
from capfilt.io import files, outputs, publish
from capfilt.run.plan import Plan
from capfilt.run.task import Task
from capfilt.run.where import Where
from capfilt.schema import differences, to_dict
from capfilt.shard import root_of
from capfilt.text import some

# Other versions of these may write other bytes from the same input.
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
)

log = logging.getLogger("capfilt")


@dataclass(frozen=True)
class Manifest:
    """The resolved config, the models' identities and the library versions of an output."""

    input: str
    human: str | None
    human_images: str | None
    fingerprint: str
    decisive: dict[str, Any]  # what the fingerprint is made of
    config: dict[str, Any]
    models: dict[str, dict[str, str]]
    versions: dict[str, str]
    allow_unfinished: bool = False  # whether the last call took shards without `_stats.json`

    @property
    def measures_noise(self) -> bool:
        """Whether a threshold on match_prob alone decides, so that what is dropped is noise."""
        return self.rules().keys() - {"by", "ranked_by"} == {"min_match_prob"}

    def rules(self) -> dict[str, Any]:
        """What of the selection is on."""
        return {
            name: value
            for name, value in self.config["selection"].items()
            if value is not None and value is not False and value not in ([], (), "both")
        }

    @classmethod
    def of(cls, task: Task, where: Where) -> Manifest:
        return cls(
            input=where.input,
            human=where.human,
            human_images=where.human_images,
            fingerprint=task.fingerprint,
            decisive=task.decisive,
            config=to_dict(task.config),
            models={
                role: {
                    "source": identity.source,
                    "architecture": identity.architecture,
                    "sha256": identity.sha256,
                }
                for role, identity in task.models.items()
            },
            # Of the code that runs, which may have come with a job and not be the one installed.
            versions={"capfilt": __version__, **{n: metadata.version(n) for n in LIBRARIES}},
            allow_unfinished=where.allow_unfinished,
        )

    @classmethod
    def read(cls, output_url: str) -> Manifest | None:
        """The manifest of an output; None where there is none yet.

        Raises:
            CommitError: The file is there but is not a manifest.
        """
        url = files.join(output_url, outputs.MANIFEST)
        if not files.exists(url):
            return None
        try:
            return cls(**json.loads(files.read_bytes(url)))
        except (ValueError, TypeError) as error:
            raise CommitError(f"{url}: not a manifest of capfilt ({error})") from None

    def write(self, output_url: str) -> None:
        content = json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n"
        publish.write_bytes(files.join(output_url, outputs.MANIFEST), content.encode())

    def settle(self, output_url: str, plan: Plan, *, overwrite: bool) -> None:
        """Write it, unless OUTPUT belongs to another run and may not be overwritten.

        Raises:
            CommitError: It does; names what differs.
        """
        old = Manifest.read(output_url)
        if not overwrite:
            self._check_same(old, output_url, plan)
        is_same_run = old is not None and old.fingerprint == self.fingerprint
        if old is not None and is_same_run and old.versions != self.versions:
            changed = "; ".join(differences(old.versions, self.versions))
            log.warning(
                "library versions differ from the first run's (%s): bytes may differ", changed
            )
        if old != self:
            self.write(output_url)

    def _check_same(self, old: Manifest | None, output_url: str, plan: Plan) -> None:
        if plan.stale:
            changed = differences(old.decisive, self.decisive) if old else []
            if plan.changed_inputs:
                changed.append(f"the input of {some(plan.changed_inputs)}")
            raise CommitError(
                f"{output_url} holds another run; {len(plan.stale)} of its shards would be redone "
                f"because of a change of {'; '.join(changed) or 'the fingerprint'}. "
                "Use --overwrite, or a new OUTPUT"
            )
        if old is None or not plan.is_begun:
            return
        if old.fingerprint != self.fingerprint:
            raise CommitError(
                f"{output_url} belongs to another run: "
                f"{'; '.join(differences(old.decisive, self.decisive))}. "
                "Use --overwrite, or a new OUTPUT"
            )
        before, now = root_of(old.input), root_of(self.input)
        if before != now:
            raise CommitError(
                f"{output_url} holds a run over {before}. Use --overwrite to go on with {now} "
                "(shards that are the same stay), or a new OUTPUT"
            )
