"""Turns a pickled BLIP checkpoint into a folder that `capfilt run` and transformers load.

The original `.pth` files of BLIP's authors and folders with only `pytorch_model.bin` are pickles.
They are read here, once and on purpose, with torch's weights-only unpickler, never during a run.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipImageProcessorPil, BlipProcessor

from capfilt.errors import ModelError
from capfilt.models import checkpoint, med_layout
from capfilt.models.harmless import made_from, open_folder
from capfilt.models.layout import Layout
from capfilt.models.load import blip_settings, med_config
from capfilt.models.med import CaptionModel, MatchModel, MedConfig
from capfilt.models.vit import resize_positions

# The published sizes, by the width of the image tower: (layers, heads).
_TOWERS = {768: (12, 12), 1024: (24, 16)}


def convert(
    source: Path,
    folder: Path,
    role: checkpoint.Role,
    *,
    vocabulary: Path | None = None,
    image_size: int | None = None,
    config: BlipConfig | None = None,
) -> Path:
    """Convert a pickled checkpoint.

    Args:
        source: A `.pth` of BLIP's authors, or transformers' `pytorch_model.bin`, or the folder of
            one with its config.json.
        folder: Where the new checkpoint goes; made if absent.
        role: Which half of BLIP to take: a pre-training checkpoint has both.
        vocabulary: BERT's `vocab.txt` (bert-base-uncased), or a folder with a tokenizer; None takes
            the source's folder.
        image_size: Resolution to interpolate the position embeddings to; None keeps the file's.
        config: The model's sizes; None takes those of a source folder, else finds a published size
            from the tensors.

    Returns:
        The folder.

    Raises:
        ModelError: The file is no such checkpoint, or a tensor is missing, surplus or misshapen.
    """
    if folder.is_file():
        raise ModelError(f"{folder}: is a file; the new checkpoint is a folder")
    if not source.exists():
        raise ModelError(f"{source}: no such file or folder")
    if source.is_dir():
        open_folder(str(source))
        config, vocabulary = config or blip_settings(source), vocabulary or source
        source = source / "pytorch_model.bin"
    if vocabulary is None:
        raise ModelError(f"{source}: comes without a vocabulary: give --vocabulary vocab.txt")
    tensors = _read_pickle(source)
    original = "visual_encoder.pos_embed" in tensors
    name = "visual_encoder.pos_embed" if original else "vision_model.embeddings.position_embedding"
    if name not in tensors:
        raise ModelError(f"{source}: has neither visual_encoder nor vision_model: not a BLIP file")
    settings = config or _published_config(tensors[name], source)
    if image_size is not None:
        patch = settings.vision_config.patch_size
        if image_size < patch or image_size % patch:
            raise ModelError(
                f"--image-size {image_size}: must be a multiple of the patch size {patch}"
            )
        settings.vision_config.image_size = image_size
        tensors[name] = resize_positions(tensors[name], image_size // patch)
    if original and "temp" in tensors:  # of ITC: transformers' class has no tensor for it
        settings.logit_scale_init_value = -math.log(tensors["temp"].item())
    sizes = med_config(settings)
    model = _empty(sizes, role)
    state = _names(model, original=original).collect(tensors, str(source))
    checkpoint.fill(model, state, str(source))
    save(model, folder, settings, tokenizer=blip_tokenizer(vocabulary))
    return folder


def save(
    model: CaptionModel | MatchModel,
    folder: Path,
    settings: BlipConfig,
    *,
    tokenizer: BertTokenizer,
) -> None:
    """Save a model as transformers does, with config, tokenizer and image processor.

    Args:
        model: Any device and dtype; saved as it is.
        folder: Made if absent.
        settings: The model's config.
        tokenizer: With `[DEC]` and `[ENC]`.
    """
    state = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(_names(model).release(state), weights, metadata={"format": "pt"})
    is_captioner = isinstance(model, CaptionModel)
    architecture = checkpoint.CAPTIONER if is_captioner else checkpoint.MATCH_FILTER
    text = json.dumps({**settings.to_dict(), "architectures": [architecture]}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    shutil.copymode(folder / "config.json", weights)  # safetensors lets the writer alone read
    side = {"height": model.config.image.image_size, "width": model.config.image.image_size}
    statistics = {"image_mean": list(model.vit.pixel_mean), "image_std": list(model.vit.pixel_std)}
    processor = BlipImageProcessorPil(size=side, **statistics)
    BlipProcessor(processor, tokenizer).save_pretrained(folder)


def _read_pickle(source: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{source}: no such file") from None
    except (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise ModelError(f"{source}: is not a file of tensors alone ({why})") from None
    # BLIP's training loop keeps the optimizer and more beside the model.
    tensors = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise ModelError(f"{source}: holds no tensors by name")
    return dict(tensors)


def _published_config(positions: Tensor, source: Path) -> BlipConfig:
    width, patches = positions.shape[2], positions.shape[1] - 1
    if width not in _TOWERS:
        raise ModelError(
            f"{source}: the image tower is {width} wide, no published size "
            f"({', '.join(map(str, _TOWERS))}): give a folder with the file and its config.json"
        )
    layers, heads = _TOWERS[width]
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": round(patches**0.5) * 16,
            "layer_norm_eps": 1e-6,  # of BLIP's code; transformers' default is 1e-5
        },
        text_config={"num_attention_heads": 12, "encoder_hidden_size": width},
    )


def _empty(sizes: MedConfig, role: checkpoint.Role) -> CaptionModel | MatchModel:
    with torch.device("meta"):
        return CaptionModel(sizes) if role == "captioner" else MatchModel(sizes)


def _names(model: CaptionModel | MatchModel, *, original: bool = False) -> Layout:
    names = med_layout.captioner if isinstance(model, CaptionModel) else med_layout.filter_
    sizes = model.config
    return names(image_layers=sizes.image.layers, text_layers=sizes.text.layers, original=original)


def blip_tokenizer(vocabulary: Path) -> BertTokenizer:
    """BERT's tokenizer with `[DEC]` and `[ENC]`; see `blip2_tokenizer`."""
    tokenizer = blip2_tokenizer(vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


def blip2_tokenizer(vocabulary: Path) -> BertTokenizer:
    """BERT's tokenizer with `[DEC]`, from its `vocab.txt` or a tokenizer's folder.

    Raises:
        ModelError: There is no such file or folder, or it holds no BERT vocabulary.
    """
    if vocabulary.is_dir():
        # Without these files transformers makes an empty vocabulary.
        if not any((vocabulary / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
            raise ModelError(f"vocabulary {vocabulary}: has neither vocab.txt nor tokenizer.json")
        with made_from(open_folder(str(vocabulary))):
            tokenizer = BertTokenizer.from_pretrained(vocabulary, local_files_only=True)
    elif vocabulary.is_file():
        tokenizer = BertTokenizer(vocab=str(vocabulary))
    else:
        raise ModelError(f"vocabulary {vocabulary}: not found; give BERT's vocab.txt")
    try:
        tokenizer.tokenize("\N{SNOWMAN}")  # an unknown word needs the file's own [UNK]
        words = tokenizer.vocab_size - len(tokenizer.all_special_tokens)
    except Exception as error:  # noqa: BLE001 - the tokenizers library has no other
        raise ModelError(f"vocabulary {vocabulary}: not a BERT vocabulary ({error})") from None
    if words <= 0:
        raise ModelError(f"vocabulary {vocabulary}: has no words")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
