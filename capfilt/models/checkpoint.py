"""Checkpoint folders: found, checked, identified, read and written. Safetensors only.

A folder is what transformers' `save_pretrained` leaves: config.json, weights, tokenizer files and
the image processor's. Nothing in it is ever executed: pickled weights and remote code are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from capfilt.errors import ModelError
from capfilt.models.harmless import QUERY_TOKENIZER, open_folder, read_json
from capfilt.models.vit import PIXEL_MEAN, PIXEL_STD
from capfilt.record import ModelIdentity

Role = Literal["captioner", "filter"]

CAPTIONER = "BlipForConditionalGeneration"
MATCH_FILTER = "BlipForImageTextRetrieval"
CLIP_FILTER = "CLIPModel"
SIMILARITY_FILTER = "BlipModel"  # ITC alone: it has no ITM head
BLIP2_CAPTIONER = "Blip2ForConditionalGeneration"
INSTRUCTED_CAPTIONER = "InstructBlipForConditionalGeneration"  # its Q-Former reads the prompt
BLIP2_FILTER = "Blip2ForImageTextRetrieval"
BLIP2_QFORMER = "Blip2QFormerModel"
CLASSES: Mapping[Role, tuple[str, ...]] = {
    "captioner": (CAPTIONER, BLIP2_CAPTIONER, INSTRUCTED_CAPTIONER),
    "filter": (MATCH_FILTER, BLIP2_FILTER, CLIP_FILTER, SIMILARITY_FILTER),
}
# What a caption starts from, where the config leaves it open.
# Source: BLIP's code (`configs/caption_coco.yaml`), BLIP-2's (`blip2_caption_*.yaml`); of the
# prompts that InstructBLIP was trained with the one that it is evaluated with (arXiv:2305.06500,
# appendix).
PROMPTS: Mapping[str, str] = {
    CAPTIONER: "a picture of ",
    BLIP2_CAPTIONER: "a photo of",
    INSTRUCTED_CAPTIONER: "A short image description:",
}

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NONE = re.compile(r"(?!)")  # so that only the headers are read
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")
_CONVERT = "make a folder of a .bin or .pth once with capfilt convert"
# Whatever else than weights decides a result. README, generation_config.json and the like do not.
_OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DECISIVE = (
    "config.json",
    *_OF_TOKENIZER,
    "preprocessor_config.json",
    "processor_config.json",
    *(f"{QUERY_TOKENIZER}/{name}" for name in _OF_TOKENIZER),
)


@dataclass(frozen=True)
class PixelStatistics:
    """How pixels in [0, 1] are normalised, per channel."""

    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD


def inspect(source: str, role: Role) -> ModelIdentity:
    """Say which model a checkpoint is, without loading its weights.

    Args:
        source: Folder or hub id.
        role: What it is given as.

    Raises:
        ModelError: See `open_folder`; it is of another class, or its safetensors are missing or
            damaged.
    """
    folder = open_folder(source)
    if not (folder / "config.json").exists() and (folder / role / "config.json").exists():
        raise ModelError(f"{source}: holds a {role}, and is none itself: give {folder / role}")
    architecture = architecture_of(folder, role)
    weights = weight_files(folder)
    read_tensors(folder, _NONE)
    decisive = [folder / name for name in _DECISIVE if (folder / name).is_file()]
    digest = hashlib.sha256()
    named = {path.relative_to(folder).as_posix(): path for path in (*weights, *decisive)}
    for name, path in sorted(named.items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return ModelIdentity(architecture, digest.hexdigest(), source)


def architecture_of(folder: Path, role: Role) -> str:
    """The class in config.json, which must be one that can serve as `role`.

    Raises:
        ModelError: It cannot.
    """
    architectures = read_json(folder / "config.json").get("architectures")
    name = "nothing"
    if isinstance(architectures, list) and architectures:
        name = str(architectures[0])
    if name in CLASSES[role]:
        return name
    other = next((r for r, classes in CLASSES.items() if name in classes), None)
    is_other = f", a {other}" if other else ""
    raise ModelError(
        f"{folder}: is a {name}{is_other}; a {role} is a {' or a '.join(CLASSES[role])}"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        ModelError: There are none, or a part is missing.
    """
    if (folder / _INDEX).is_file():
        parts = read_json(folder / _INDEX).get("weight_map")
        names = sorted({str(name) for name in parts.values()} if isinstance(parts, dict) else ())
    else:
        names = [_WEIGHTS]
    for name in names:
        # A name in the index comes from outside and must not leave the folder.
        if Path(name).name == name and (folder / name).is_file():
            continue
        pickles = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
        only = f", only {pickles[0]}, a pickle, which could run any code" if pickles else ""
        raise ModelError(f"{folder}: has no {name}{only}: {_CONVERT}")
    return [folder / name for name in names]


def read_tensors(folder: Path, only: re.Pattern[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Args:
        folder: Of the checkpoint.
        only: What their names start with; None for all.

    Raises:
        ModelError: A file is damaged.
    """
    tensors = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if only is None or only.match(name)]  # noqa: SIM118
                tensors.update({name: file.get_tensor(name) for name in names})
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: cannot be read ({error}): download or copy it again"
            ) from None
    return tensors


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a model made on the meta device its parameters, by our names.

    Raises:
        ModelError: Names the first tensor whose shape is not what config.json says.
    """
    for name, parameter in model.named_parameters():
        if state[name].shape != parameter.shape:
            raise ModelError(
                f"{where}: tensor for {name} has shape {list(state[name].shape)} but config.json "
                f"makes it {list(parameter.shape)}"
            )
    model.load_state_dict(dict(state), assign=True)


def pixel_statistics(folder: Path) -> PixelStatistics:
    """Read the image processor's mean and standard deviation; BLIP's where it has none.

    Raises:
        ModelError: The file does not hold three numbers for each.
    """
    processor = image_processor(folder)
    try:
        mean, std = (
            tuple(float(x) for x in processor.get(name, default))
            for name, default in (("image_mean", PIXEL_MEAN), ("image_std", PIXEL_STD))
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ModelError(f"{folder}: image_mean and image_std must be three numbers each") from None
    return PixelStatistics(mean, std)


def image_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings, from whichever file holds them; empty where none does."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name)
            nested = settings.get("image_processor", settings)
            if isinstance(nested, dict):
                return nested
    return {}
