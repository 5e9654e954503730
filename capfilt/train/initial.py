"""What training starts from: random weights, ImageNet's and BERT's, or an earlier stage's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from capfilt.errors import ConfigError, ModelError
from capfilt.models import checkpoint, med_layout, qformer_layout, vit_layout
from capfilt.models.harmless import made_from, open_folder
from capfilt.models.load import blip_settings, load_caption_model, load_match_model, med_config
from capfilt.models.med import CaptionModel, MatchModel, MedConfig
from capfilt.models.qformer import QFormer
from capfilt.models.text_transformer import LanguageHead
from capfilt.models.vit import ViT, resize_positions, sine_positions
from capfilt.train.itc import COLDEST, WARMEST
from capfilt.train.towers import DropConfig, RecomputeConfig, resized, trained

_STD = 0.02


@torch.no_grad()
def from_scratch(*models: nn.Module) -> None:
    """Draw all weights as BERT and timm's ViT do: N(0, 0.02), cut at two units in the ViT.

    Its positions, which BLIP takes from ImageNet's ViT, start as sines and cosines.

    Source: `_init_weights` of BLIP's code (`models/med.py`, `models/vit.py`).
    """
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in model.modules():
            if isinstance(module, ViT):
                for parameter in module.parameters():
                    if parameter.dim() > 1:
                        nn.init.trunc_normal_(parameter, std=_STD, a=-2, b=2)
                grid = module.config.image_size // module.config.patch_size
                module.positions.copy_(sine_positions(grid, module.config.width))


def load_image_weights(vit: ViT, folder: str) -> None:
    """Take a ViT's weights from an ImageNet checkpoint; positions are interpolated.

    Args:
        vit: To be filled.
        folder: With safetensors in timm's names, or those of transformers' `ViTModel`,
            `ViTForImageClassification` or DeiT, whose distillation token is left out.

    Raises:
        ModelError: Names tensors that are missing, surplus or of another shape.
    """
    tensors = _tensors(folder, r"^(vit|deit)\.")
    timm = "pos_embed" in tensors
    token, positions = (
        ("dist_token", "pos_embed")
        if timm
        else ("embeddings.distillation_token", "embeddings.position_embeddings")
    )
    if tensors.pop(token, None) is not None and positions in tensors:
        rows = tensors[positions]
        tensors[positions] = torch.cat([rows[:, :1], rows[:, 2:]], dim=1)
    names = vit_layout.image_net(image_layers=vit.config.layers, timm=timm)
    state = names.collect(tensors, folder)
    grid = vit.config.image_size // vit.config.patch_size
    state["vit.positions"] = resize_positions(state["vit.positions"], grid)
    _copy(vit, {name.removeprefix("vit."): tensor for name, tensor in state.items()}, folder)


def load_text_weights(models: list[MatchModel | CaptionModel], folder: str) -> None:
    """Take text transformers' weights from a BERT; cross-attention and new tokens keep theirs.

    BLIP has no token types: the first one's embedding, which BERT adds to every token of a single
    text, goes into the positions.

    Args:
        models: To be filled; a decoder gets BERT's language head too, where there is one.
        folder: With the safetensors of a `BertModel`, `BertForMaskedLM` or `BertForPreTraining`.

    Raises:
        ModelError: Names tensors that are missing, surplus or of another shape; its vocabulary is
            not this one less `[DEC]` and `[ENC]`.
    """
    tensors = _bert_tensors(folder)
    config = models[0].config.text
    head = any(name.startswith("cls.predictions.") for name in tensors)
    names = med_layout.bert(text_layers=config.layers, head=head)
    state = names.collect(tensors, folder)
    missing = config.vocabulary - len(state["text.words.weight"])
    if missing not in (0, 2):
        raise ModelError(
            f"{folder}: has {len(state['text.words.weight'])} tokens, but the vocabulary has "
            f"{config.vocabulary} with [DEC] and [ENC]: they are of different checkpoints"
        )
    for model in models:
        taken = {n: x for n, x in state.items() if hasattr(model, n.split(".")[0])}
        _copy(model, taken, folder, grown=("text.words.weight", "head.bias"))


def load_query_weights(model: QFormer, folder: str, head: LanguageHead | None = None) -> None:
    """Take a Q-Former's weights from a BERT; queries, cross-attention and `[DEC]` keep theirs.

    Both feed-forwards start as BERT's one.

    Source: BLIP-2, arXiv:2301.12597, section 3.1, and its code (`init_Qformer`).

    Args:
        model: To be filled.
        folder: As in `load_text_weights`, which says what is raised, too.
        head: Gets BERT's language head where there is one.
    """
    tensors = _bert_tensors(folder)
    has_head = head is not None and any(name.startswith("cls.predictions.") for name in tensors)
    names = qformer_layout.bert_queries(text_layers=model.config.layers, head=has_head)
    state = names.collect(tensors, folder)
    found, wanted = len(state["words.weight"]), model.config.vocabulary
    if wanted - found not in (0, 1):
        raise ModelError(
            f"{folder}: has {found} tokens, but the vocabulary has {wanted} with [DEC]: they are "
            "of different checkpoints"
        )
    of_head = {n.removeprefix("head."): state.pop(n) for n in list(state) if n[:5] == "head."}
    _copy(model, state, folder, grown=("words.weight",))
    if head is not None:
        _copy(head, of_head, folder, grown=("bias",))


def load_pretrained(encoder: MatchModel, decoder: CaptionModel, folder: str) -> None:
    """Take all weights of an earlier pre-training; positions of the ViT are interpolated.

    Args:
        encoder: To be filled.
        decoder: To be filled; what it shares with the encoder must be the same in both.
        folder: With `filter` and `captioner`, as `blip_pretrain` leaves them.

    Raises:
        ModelError: There is no such checkpoint, its sizes are others, or the two do not share what
            encoder and decoder here share.
    """
    size, none = encoder.config.image.image_size, DropConfig(text=0.0)
    models = (
        start_filter(f"{folder}/filter", size, none, RecomputeConfig()),
        start_captioner(f"{folder}/captioner", size, none, RecomputeConfig()),
    )
    for model, started in zip((encoder, decoder), models, strict=True):
        try:
            model.load_state_dict(started.state_dict())
        except RuntimeError:
            raise ModelError(
                f"{folder}: its sizes are not those of model.image, model.text and model.embedding"
            ) from None
    found = encoder.state_dict()
    if not all(torch.equal(found[name], x) for name, x in models[0].state_dict().items()):
        raise ModelError(
            f"{folder}: its captioner and filter do not share what model.sharing says; start from "
            "the output of a pre-training, not of a finetuning"
        )


def start_captioner(
    folder: str, image_size: int, drop: DropConfig, recompute: RecomputeConfig
) -> CaptionModel:
    """A captioner to finetune, in fp32, from a `BlipForConditionalGeneration`.

    Raises:
        ModelError: As `capfilt.models.load.load_captioner`.
        ConfigError: The image size is no multiple of the patch size.
    """
    path = _start(folder, "captioner")
    with made_from(path):
        settings = blip_settings(path)
        config = _config(med_config(settings), image_size, drop, recompute)
        return load_caption_model(path, settings, config).float()


def start_filter(
    folder: str, image_size: int, drop: DropConfig, recompute: RecomputeConfig
) -> MatchModel:
    """A filter to finetune, from a `BlipForImageTextRetrieval`; see `start_captioner`."""
    path = _start(folder, "filter")
    if checkpoint.architecture_of(path, "filter") != checkpoint.MATCH_FILTER:
        raise ModelError(f"{folder}: has no ITM head: give a {checkpoint.MATCH_FILTER}")
    with made_from(path):
        settings = blip_settings(path)
        config = _config(med_config(settings), image_size, drop, recompute)
        return load_match_model(path, settings, config).float()


def start_temperature(folder: str) -> float:
    """ITC's, as the checkpoint's training has learned it.

    transformers has no such tensor in a `BlipForImageTextRetrieval`. A training of ours leaves it
    in `config.json`; of others it is 0.07, at which all of them begin.
    """
    scale = float(blip_settings(_start(folder, "filter")).logit_scale_init_value)
    return min(max(math.exp(-scale), COLDEST), WARMEST)


def _start(folder: str, role: checkpoint.Role) -> Path:
    if not folder:
        raise ConfigError(
            f"start is not set: give the folder of a {checkpoint.CLASSES[role][0]}, as "
            "blip_pretrain leaves it"
        )
    path = open_folder(folder)
    checkpoint.architecture_of(path, role)
    return path


def _config(
    config: MedConfig, image_size: int, drop: DropConfig, recompute: RecomputeConfig
) -> MedConfig:
    try:
        return trained(resized(config, image_size), drop, recompute)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _bert_tensors(folder: str) -> dict[str, Tensor]:
    """A BERT's tensors with its prefix; the first token type's embedding is in the positions."""
    tensors = _tensors(folder, r"^bert\.")
    tensors = {n if n.startswith("cls.") else f"bert.{n}": x for n, x in tensors.items()}
    kinds = tensors.get("bert.embeddings.token_type_embeddings.weight")
    positions = "bert.embeddings.position_embeddings.weight"
    if kinds is not None and positions in tensors:
        tensors[positions] = tensors[positions] + kinds[0]
    return tensors


def _tensors(folder: str, prefix: str) -> dict[str, Tensor]:
    """A checkpoint's tensors without the model's prefix, norms named as today."""
    tensors = checkpoint.read_tensors(open_folder(folder))
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(prefix, "", name)
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def _copy(
    model: nn.Module, state: Mapping[str, Tensor], where: str, grown: tuple[str, ...] = ()
) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        target = parameters[name].detach()
        if name in grown:
            target = target[: len(tensor)]
        if target.shape != tensor.shape:
            raise ModelError(
                f"{where}: tensor for {name} has shape {list(tensor.shape)} but this model's is "
                f"{list(target.shape)}"
            )
        target.copy_(tensor)
