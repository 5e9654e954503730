"""The forms that existing trainers read; one writer each takes a shard's kept samples.

Source: what BLIP's `pretrain_dataset.py`, LAVIS's `laion_dataset.py` and open_clip's `data.py` ask
of a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.fields import plain_caption, to_json
from capfilt.io.parquet import ParquetWriter
from capfilt.io.tar import TarWriter, tar_key
from capfilt.record import Annotated

_MOST_NAME_BYTES = 200  # of the 255 that file systems have room for
_LEGIBLE = 32  # characters of a longer name


class Form(Protocol):
    """Writes one shard, whole or not at all."""

    def path(self, shard_id: str) -> str:
        """Of the file that is there when the shard is, relative to the target."""
        ...

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None: ...


@dataclass(frozen=True)
class BlipList:
    """BLIP: image files, and a JSON list of `{"image": path, "caption": text}`, a pair each.

    A list for each shard, which BLIP's `train_file` takes as a list of files. BLIP opens the paths
    from wherever it runs, so they are absolute: a folder that moves is to be exported again.
    """

    def path(self, shard_id: str) -> str:
        return f"pairs/{shard_id}.json"

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None:
        pairs = []
        folder = files.join(target, "images", _file_name(shard_id))
        for entry in files.find(folder):  # of an earlier try, perhaps of other images
            files.remove(entry.url)
        for annotated in samples:
            image, ext = _image(annotated)
            url = files.join(folder, f"{_file_name(annotated.sample.key)}.{ext}")
            publish.write_bytes(url, image)
            pairs += [{"image": url, "caption": text} for text in _texts(annotated)]
        content = json.dumps(pairs, indent=0, ensure_ascii=False).encode()
        publish.write_bytes(files.join(target, self.path(shard_id)), content)


@dataclass(frozen=True)
class PairTars:
    """LAVIS and open_clip: tars of image, `txt` and `json`, a sample for each pair.

    LAVIS reads `jpg` and the json's `caption`, open_clip the image and `txt`. Neither takes several
    texts of one image: a list of them as json, LAVIS would pass over with a warning. An image whose
    extension the loader does not ask for is called `jpg`: its bytes stay what they are, and Pillow,
    which both decode with, goes by the bytes.
    """

    exts: frozenset[str]  # of images, by which their loader knows them

    def path(self, shard_id: str) -> str:
        return f"{shard_id}.tar"

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None:
        with (
            publish.publishing(files.join(target, self.path(shard_id))) as file,
            TarWriter(file.path) as tar,
        ):
            for annotated in samples:
                image, ext = _image(annotated)
                for number, text in enumerate(annotated.kept):
                    name = f"{tar_key(annotated.sample.key)}_{number}"
                    told = plain_caption(text)
                    tree = {"key": annotated.sample.key, "caption": told.pop("text"), **told}
                    tar.add(f"{name}.{ext if ext in self.exts else 'jpg'}", image)
                    tar.add(f"{name}.json", to_json(tree).encode())
                    tar.add(f"{name}.txt", (text.content or "").encode())


@dataclass(frozen=True)
class HuggingFace:
    """A folder that `datasets` loads: Parquet with images, which the hub's viewer shows."""

    def path(self, shard_id: str) -> str:
        return f"data/{shard_id}.parquet"

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None:
        with (
            publish.publishing(files.join(target, self.path(shard_id))) as file,
            ParquetWriter(file.path) as parquet,
        ):
            for annotated in samples:
                _image(annotated)
                parquet.write(annotated)


FORMS: Mapping[str, Form] = {
    "blip": BlipList(),
    "lavis": PairTars(frozenset({"jpg"})),
    "open_clip": PairTars(frozenset({"jpg", "jpeg", "png"})),  # webp: its older loaders do not
    "huggingface": HuggingFace(),
}


def _file_name(text: str) -> str:
    """A name for a file or folder that is no other text's: without slashes, and not too long."""
    name = re.sub("%(?=2F|25)", "%25", text).replace("/", "%2F")
    if len(name.encode()) <= _MOST_NAME_BYTES:
        return name
    return f"{name[:_LEGIBLE]}-{hashlib.sha256(text.encode()).hexdigest()}"


def _texts(annotated: Annotated) -> list[str]:
    return [text.content for text in annotated.kept if text.content is not None]


def _image(annotated: Annotated) -> tuple[bytes, str]:
    sample = annotated.sample
    if sample.image is None:
        raise InputError("this OUTPUT has texts only: export one with images")
    return sample.image, sample.image_ext
