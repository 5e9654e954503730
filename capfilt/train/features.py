"""What a frozen image encoder makes of images, computed once where there is a cache.

    <cache>/<what decides features>/<rank>-<random>.safetensors     ids [S], features [S, T, D]

Features are those before the encoder's last norm, which learns. They are kept in the dtype that the
encoder works in, so that a training with a cache is one without it. An image has to look alike each
time (`data.augment.fixed`). A shard appears when 256 MB are together, or when a batch had nothing
new; ranks see each other's. What a killed process had not written is computed again, and what it
had half written is removed.

Shapes: N images, T image tokens, D width, S images of a shard.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from capfilt.data.batch import Batch
from capfilt.errors import InputError
from capfilt.io.publish import clean_temporary, write_bytes
from capfilt.models.vit import ViT
from capfilt.train.gather import rank

_SHARD_BYTES = 2**28


class Features:
    """A frozen image encoder at work."""

    def __init__(self, vit: ViT) -> None:
        self._vit = vit
        self._cache: FeatureCache | None = None

    def keep(self, folder: Path, *what: object) -> None:
        """Keep them from now on; see `open_cache`."""
        self._cache = open_cache(folder, self._vit, *what)

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """What the encoder's last norm gets of a batch's images, [N, T, D], without gradient."""
        if self._cache is None:
            return self._vit.features(batch.images)
        return self._cache.of(batch, self._vit.features)


class FeatureCache:
    """Features by image, in a folder and, until they are written, in memory."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; made if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        clean_temporary(str(folder))
        self._folder = folder
        self._shards: list[Any] = []
        self._known: set[str] = set()  # names of their files
        self._places: dict[int, tuple[int, int]] = {}  # shard and row of an image
        self._new: dict[int, Tensor] = {}  # not written yet

    def of(self, batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of a batch's images, [N, T, D] on its device.

        Args:
            batch: Equal images have equal ids.
            encode: Makes the features of images uint8 [n, 3, S, S].

        Raises:
            InputError: A shard of the cache is damaged.
            CommitError: A shard cannot be written.
        """
        ids = batch.image_ids.tolist()
        if any(self._is_new(i) for i in ids):
            self._look()
        if missing := [row for row, i in enumerate(ids) if self._is_new(i)]:
            made = encode(batch.images[missing]).cpu()
            self._new |= {ids[row]: x.clone() for row, x in zip(missing, made, strict=True)}
        if sum(x.nbytes for x in self._new.values()) >= (_SHARD_BYTES if missing else 1):
            self._write()
        return torch.stack([self._read(i) for i in ids]).to(batch.images.device)

    def _is_new(self, image: int) -> bool:
        return image not in self._places and image not in self._new

    def _read(self, image: int) -> Tensor:
        if (new := self._new.get(image)) is not None:
            return new
        shard, row = self._places[image]
        return self._shards[shard].get_slice("features")[row]  # type: ignore[no-any-return]

    def _look(self) -> None:
        """Take up the shards that are new in the folder."""
        for path in sorted(self._folder.glob("*.safetensors")):
            if path.name not in self._known:
                self._take_up(path)

    def _take_up(self, path: Path) -> None:
        self._known.add(path.name)
        try:
            shard: Any = safe_open(path, framework="pt")
            ids = shard.get_tensor("ids").tolist()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}): remove it") from None
        self._places |= {image: (len(self._shards), row) for row, image in enumerate(ids)}
        self._shards.append(shard)

    def _write(self) -> None:
        path = self._folder / f"{rank():05d}-{uuid.uuid4().hex[:8]}.safetensors"
        tensors = {
            "ids": torch.tensor(list(self._new)),
            "features": torch.stack(list(self._new.values())),
        }
        # Not safetensors' own writer: its temporary file would be nobody's after a kill.
        write_bytes(str(path), save(tensors))
        self._take_up(path)
        self._new.clear()


def open_cache(folder: Path, vit: ViT, *what: object) -> FeatureCache:
    """The cache of an encoder, of images as `what` varies them.

    Args:
        folder: Holds the caches of any encoders and data.
        vit: In the dtype that it works in; its last norm does not count.
        what: Everything else that decides what it sees.
    """
    digest = hashlib.sha256(repr((vit.config, vit.pixel_mean, vit.pixel_std, what)).encode())
    for name, parameter in vit.named_parameters():
        if not name.startswith("norm."):
            digest.update(f"{name} {parameter.dtype}".encode())
            numbers = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
            digest.update(numbers.data)
    return FeatureCache(folder / digest.hexdigest()[:16])
