"""The forms that existing trainers read; one writer each takes a shard's kept samples.

Source: what BLIP's `pretrain_dataset.py`, LAVIS's `laion_dataset.py` and open_clip's WebDataset
loader ask of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.parquet import ParquetWriter
from capfilt.io.tar import TarWriter, tar_key
from capfilt.record import Annotated


class Form(Protocol):
    """Writes one shard, whole or not at all."""

    def path(self, shard_id: str) -> str:
        """Of the file that is there when the shard is, relative to the target."""
        ...

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None: ...


@dataclass(frozen=True)
class BlipList:
    """BLIP: image files, and a JSON list of `{"image": path, "caption": text}`, a pair each.

    A list for each shard, which BLIP's `train_file` takes as a list of files.
    """

    def path(self, shard_id: str) -> str:
        return f"pairs/{shard_id}.json"

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None:
        pairs = []
        for annotated in samples:
            image, ext = _image(annotated)
            url = files.join(target, "images", shard_id, f"{tar_key(annotated.sample.key)}.{ext}")
            publish.write_bytes(url, image)
            pairs += [{"image": url, "caption": text} for text in _texts(annotated)]
        content = json.dumps(pairs, indent=0, ensure_ascii=False).encode()
        publish.write_bytes(files.join(target, self.path(shard_id)), content)


@dataclass(frozen=True)
class LavisTars:
    """LAVIS's BLIP-2: tars of `jpg` and `json`, `{"caption": text}` for an image with one text.

    With several texts the json is their list, best first, of whose first two BLIP-2 draws one.
    Every image is called `jpg`, as LAVIS asks for; its bytes stay what they are, and Pillow, which
    LAVIS decodes with, goes by the bytes.
    """

    def path(self, shard_id: str) -> str:
        return f"{shard_id}.tar"

    def write(self, samples: Iterable[Annotated], target: str, shard_id: str) -> None:
        with (
            publish.publishing(files.join(target, self.path(shard_id))) as file,
            TarWriter(file.path) as tar,
        ):
            for annotated in samples:
                texts = _texts(annotated)
                tree: Any = {"caption": texts[0]} if len(texts) == 1 else texts
                name = tar_key(annotated.sample.key)
                tar.add(f"{name}.jpg", _image(annotated)[0])
                tar.add(f"{name}.json", json.dumps(tree, ensure_ascii=False).encode())


@dataclass(frozen=True)
class OpenClipTars:
    """open_clip: tars of image, `txt` and `json`, one sample for each pair of image and text."""

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
                    content = text.content or ""
                    score = text.score
                    tree = {
                        "key": annotated.sample.key,
                        "caption": content,
                        "source": str(text.source),
                        "match_prob": score.match_prob,
                        "similarity": score.similarity,
                    }
                    tar.add(f"{name}.{ext}", image)
                    tar.add(f"{name}.json", json.dumps(tree, ensure_ascii=False).encode())
                    tar.add(f"{name}.txt", content.encode())


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
    "lavis": LavisTars(),
    "open_clip": OpenClipTars(),
    "huggingface": HuggingFace(),
}


def _texts(annotated: Annotated) -> list[str]:
    return [text.content for text in annotated.kept if text.content is not None]


def _image(annotated: Annotated) -> tuple[bytes, str]:
    sample = annotated.sample
    if sample.image is None:
        raise InputError("this OUTPUT has texts only: export one with images")
    return sample.image, sample.image_ext
