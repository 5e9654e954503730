"""Checkpoint folders of strangers, looked at before anything in them is used.

A checkpoint is numbers and names. What else one may hold is refused here: code of its own, files
from elsewhere, and sizes of no model, which would be built until memory or patience ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from capfilt.errors import CapfiltError, ModelError
from capfilt.jsontree import parse_json

QUERY_TOKENIZER = "qformer_tokenizer"  # folder of the tokenizer of a Q-Former that reads prompts

_CONFIGS = ("config.json", "tokenizer_config.json", f"{QUERY_TOKENIZER}/tokenizer_config.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LARGEST_JSON = 2**26
_MOST = 2**24  # the longest context of any model has 10 million tokens
_MOST_PARTS = 1000  # modules are made one by one: 10**9 would take days
_OF_PARTS = re.compile(r"(?!.*(size|dim|width|capacity|_id))(.*layer|.*block|.*expert|.*depth)")
_NO_SIZE = re.compile(r".*(theta|freq|factor|scale|seed)")


def open_folder(source: str) -> Path:
    """The local folder of a checkpoint, found harmless; a hub id is downloaded, or in its cache.

    Raises:
        ModelError: There is none; it asks for code of its own, reads files from elsewhere, or
            its config has sizes of no model.
    """
    folder = _resolve(source)
    _check_files(folder)
    for name in _CONFIGS:
        if (folder / name).is_file():
            _check_settings(folder / name)
    return folder


@contextmanager
def made_from(folder: Path) -> Iterator[None]:
    """Name the folder in whatever goes wrong where a model is made from its settings.

    A config may say anything, and libraries that make models of it fail in any way they like.
    Memory that ends, or a device that fails, is no fault of the folder's and passes.

    Raises:
        ModelError: Anything did.
    """
    try:
        yield
    except (CapfiltError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: no model can be made from its config.json and tokenizer "
            f"({type(error).__name__}: {why})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: It is missing or not one.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"larger than {_LARGEST_JSON >> 20} MiB")
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: has no {path.name}: not a checkpoint folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return content


def _resolve(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(
            f"{source}: is a file, not a checkpoint folder: make a folder of a .bin or .pth once "
            "with capfilt convert"
        )
    if not _HUB_ID.fullmatch(source):
        raise ModelError(f"{source}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{source}: no such folder, and the Hugging Face hub has none of that name, or is "
            f"out of reach ({type(error).__name__})"
        ) from None


def _check_files(folder: Path) -> None:
    """Refuse a folder that reads files from elsewhere, or at which a reader would wait."""
    root = folder.resolve()
    for above in root.parents:
        if above.name == "snapshots" and (above.parent / "blobs").is_dir():
            root = above.parent  # the hub's cache links to `blobs` beside it
    for path in sorted([*folder.iterdir(), *folder.glob(f"{QUERY_TOKENIZER}/*")]):
        if not path.resolve().is_relative_to(root):
            raise ModelError(f"{path}: links to {path.resolve()}, outside the folder: copy it here")
        if path.name == "adapter_config.json":
            raise ModelError(
                f"{path}: is of an adapter to another model: merge and save them first"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path}: is neither a file nor a folder")


def _check_settings(path: Path) -> None:
    """Refuse settings that ask for code, or for more than any model has."""
    waiting: list[tuple[str, Any]] = list(read_json(path).items())
    while waiting:
        key, value = waiting.pop()
        name = key.rpartition(".")[2]
        if name == "auto_map":
            raise ModelError(f"{path}: asks for code of its own (auto_map), never run here")
        if name.endswith("_implementation") and "/" in str(value):
            raise ModelError(f"{path}: asks for code of its own ({key}: {value}), never run here")
        if isinstance(value, dict):
            waiting += [(f"{key}.{inner}", each) for inner, each in value.items()]
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]
        elif isinstance(value, int) and path.name == "config.json" and value > _most(name):
            raise ModelError(f"{path}: {key} is {value}, more than any model has")


def _most(name: str) -> float:
    if _NO_SIZE.match(name):
        return float("inf")
    return _MOST_PARTS if _OF_PARTS.match(name) else _MOST
