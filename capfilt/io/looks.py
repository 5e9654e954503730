"""What a shard's images look like, as columns, kept in an OUTPUT so that none is hashed twice."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.errors import InputError
from capfilt.io import files, outputs, publish
from capfilt.io.likeness import EvaluationSet, Likeness, near_any, near_earlier
from capfilt.record import Reason

_COLUMNS = ("numbers", "sha256", "phash", "visible")


@dataclass(frozen=True)
class Looks:
    """The hashes of a shard's images as columns, 33 bytes an image."""

    numbers: npt.NDArray[np.int64]  # of the images in their shard, rising
    sha256: npt.NDArray[np.uint64]  # shape [N, 2]: its first 128 bits
    phash: npt.NDArray[np.uint64]
    visible: npt.NDArray[np.bool_]  # has a phash

    @classmethod
    def of(cls, numbers: Sequence[int], likes: Sequence[Likeness]) -> Looks:
        """Columns of some images."""
        halves = b"".join(like.sha256[:16] for like in likes)
        return cls(
            np.array(numbers, dtype=np.int64),
            np.frombuffer(halves, dtype=np.uint64).reshape(-1, 2),
            np.array([like.phash or 0 for like in likes], dtype=np.uint64),
            np.array([like.phash is not None for like in likes], dtype=bool),
        )

    @classmethod
    def recall(cls, output_url: str, shard_id: str, of: str) -> Looks | None:
        """What `keep` has left; None where that is nothing, of something else, or damaged."""
        try:
            content = files.read_bytes(files.join(output_url, outputs.looks_path(shard_id)))
            with np.load(io.BytesIO(content)) as columns:
                if str(columns["of"]) == of:
                    return cls(*(columns[name] for name in _COLUMNS))
        except (InputError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        return None

    def keep(self, output_url: str, shard_id: str, of: str) -> None:
        """Leave the hashes in an OUTPUT.

        Args:
            output_url: The OUTPUT.
            shard_id: Of the shard.
            of: What they are of and how they were made; `recall` asks for the same.

        Raises:
            CommitError: They cannot be written.
        """
        url = files.join(output_url, outputs.looks_path(shard_id))
        with publish.publishing(url) as file, file.path.open("wb") as out:
            np.savez(out, of=np.array(of), **{name: getattr(self, name) for name in _COLUMNS})

    def only(self, chosen: npt.NDArray[np.bool_]) -> Looks:
        """The images of a mask, shape [N]."""
        return Looks(*(getattr(self, name)[chosen] for name in _COLUMNS))

    def held_by(self, excluded: EvaluationSet) -> npt.NDArray[np.bool_]:
        """Which images are of an evaluation set, or look like one of it; shape [N]."""
        known = {sha256[:16] for sha256 in excluded.sha256}
        held = np.array([halves.tobytes() in known for halves in self.sha256], dtype=bool)
        held[self.visible] |= near_any(self.phash[self.visible], excluded.phash)
        return held


def find_duplicates(looks: Mapping[str, Looks], how: str) -> dict[str, dict[int, Reason]]:
    """What an earlier image is already, by shard and number, with the reason to drop it.

    Args:
        looks: By shard, in the order in which an image comes first.
        how: "exact" goes by bytes, "perceptual" by looks, too.
    """
    columns = list(looks.values())
    halves = np.concatenate([np.zeros((0, 2), np.uint64), *(of.sha256 for of in columns)])
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable, so the earlier comes first
    same = np.zeros(len(halves), dtype=bool)
    same[order[1:]] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    near = np.zeros(len(halves), dtype=bool)
    if how == "perceptual" and columns:
        visible = np.concatenate([of.visible for of in columns])
        near[visible] = near_earlier(np.concatenate([of.phash for of in columns])[visible])
    found: dict[str, dict[int, Reason]] = {}
    at = 0
    for shard_id, of_shard in looks.items():
        part = slice(at, at + len(of_shard.numbers))
        at = part.stop
        found[shard_id] = dict.fromkeys(
            of_shard.numbers[near[part]].tolist(), Reason.NEAR_DUPLICATE_IMAGE
        )
        found[shard_id] |= dict.fromkeys(
            of_shard.numbers[same[part]].tolist(), Reason.DUPLICATE_IMAGE
        )
    return found
