"""From a checkpoint to a captioner or a filter on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.errors import ModelError
from capfilt.models import checkpoint, med_layout
from capfilt.models.captioner import BlipCaptioner, Captioner
from capfilt.models.clip import ClipFilter
from capfilt.models.filter import Filter, MatchFilter
from capfilt.models.harmless import made_from, open_folder, read_json
from capfilt.models.layout import Layout
from capfilt.models.med import CaptionModel, MatchModel, MedConfig, SimilarityModel
from capfilt.models.placement import Precision, check_fits, place, target
from capfilt.models.text_transformer import TextConfig
from capfilt.models.vit import resize_positions, vit_config
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity

Model = TypeVar("Model", bound=nn.Module)


def load_captioner(
    source: str,
    config: CaptionConfig,
    *,
    seed: int,
    precision: Precision = "auto",
    device: str | None = None,
) -> Captioner:
    """Load a captioner.

    Args:
        source: Folder or hub id of a `BlipForConditionalGeneration`, or of a
            `Blip2ForConditionalGeneration` or `InstructBlipForConditionalGeneration` with any
            language model that transformers knows.
        config: How it decodes.
        seed: Of the run.
        precision: "auto" is bf16 on CUDA and fp32 on a CPU.
        device: As torch names it; None takes CUDA where there is one.

    Raises:
        ModelError: See `checkpoint.inspect`; a tensor is missing, surplus or misshapen; a BLIP-2
            is larger than the device.
    """
    identity = checkpoint.inspect(source, "captioner")
    folder = open_folder(source)
    with made_from(folder):
        if identity.architecture != checkpoint.CAPTIONER:
            return _load_blip2_captioner(folder, identity, config, seed, precision, device)
        settings = blip_settings(folder)
        model = place(load_caption_model(folder, settings), precision, device)
        vocabulary = _vocabulary(folder, settings)
        return BlipCaptioner(model, vocabulary, identity, config, seed=seed)


def load_filter(
    source: str,
    config: ScoringConfig,
    *,
    precision: Precision = "auto",
    device: str | None = None,
) -> Filter:
    """Load a filter.

    Args:
        source: Folder or hub id of a `BlipForImageTextRetrieval`, `Blip2ForImageTextRetrieval`,
            `BlipModel` or `CLIPModel`.
        config: What it scores.
        precision: As in `load_captioner`.
        device: As in `load_captioner`.

    Raises:
        ModelError: As in `load_captioner`; a model without an ITM head is asked for match
            probabilities.
    """
    identity = checkpoint.inspect(source, "filter")
    with_itm = (checkpoint.MATCH_FILTER, checkpoint.BLIP2_FILTER)
    if config.match_prob and identity.architecture not in with_itm:
        raise ModelError(
            f"--filter {source}: a {identity.architecture} has no match probability: set "
            "scoring.match_prob to false and scoring.similarity to true (preset blip2)"
        )
    folder = open_folder(source)
    with made_from(folder):
        if identity.architecture == checkpoint.CLIP_FILTER:
            return _load_clip(folder, identity, precision, device)
        if identity.architecture == checkpoint.BLIP2_FILTER:
            return _load_blip2_filter(folder, identity, config, precision, device)
        settings = blip_settings(folder)
        is_match = identity.architecture == checkpoint.MATCH_FILTER
        model = (load_match_model if is_match else load_similarity_model)(folder, settings)
        vocabulary = _vocabulary(folder, settings)
        return MatchFilter(place(model, precision, device), vocabulary, identity, config)


def load_caption_model(
    folder: Path, settings: Any, config: MedConfig | None = None
) -> CaptionModel:
    """The module of a `BlipForConditionalGeneration` folder, in fp32 on the CPU.

    Args:
        folder: Of the checkpoint.
        settings: Its config.
        config: In place of the checkpoint's own; positions are interpolated to its image size.
    """
    config = config or med_config(settings)
    names = med_layout.captioner(image_layers=config.image.layers, text_layers=config.text.layers)
    with torch.device("meta"):
        model = CaptionModel(config)
    return _filled(model, names, folder, _grid(config, settings))


def load_match_model(folder: Path, settings: Any, config: MedConfig | None = None) -> MatchModel:
    """The module of a `BlipForImageTextRetrieval` folder; see `load_caption_model`."""
    config = config or med_config(settings)
    names = med_layout.filter_(image_layers=config.image.layers, text_layers=config.text.layers)
    with torch.device("meta"):
        model = MatchModel(config)
    return _filled(model, names, folder, _grid(config, settings))


def load_similarity_model(folder: Path, settings: Any) -> SimilarityModel:
    """The module of a `BlipModel` folder, in fp32 on the CPU."""
    config = replace(med_config(settings), embedding=settings.projection_dim)
    names = med_layout.similarity(image_layers=config.image.layers, text_layers=config.text.layers)
    with torch.device("meta"):
        model = SimilarityModel(config)
    return _filled(model, names, folder)


def blip_settings(folder: Path) -> Any:
    """A folder's `transformers.BlipConfig`, so that what config.json leaves out is as there.

    Raises:
        ModelError: It is of another kind of model.
    """
    from transformers import BlipConfig

    content = read_json(folder / "config.json")
    if content.get("model_type", BlipConfig.model_type) != BlipConfig.model_type:
        raise ModelError(f"{folder}: is a {content['model_type']} model, not a BLIP")
    try:
        return BlipConfig.from_dict(content)
    except (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: config.json cannot be read as a BlipConfig ({why})") from None


def med_config(settings: Any) -> MedConfig:
    """Our sizes from transformers' `BlipConfig`.

    Raises:
        ModelError: The model uses an activation other than BLIP's, or has sizes of no model.
    """
    image, text = settings.vision_config, settings.text_config
    for part, sizes in (("vision", image), ("text", text)):
        if sizes.num_hidden_layers < 1:
            raise ModelError(f"{part}_config.num_hidden_layers is {sizes.num_hidden_layers}")
    if text.hidden_act != "gelu":
        raise ModelError(f"text_config.hidden_act is {text.hidden_act!r}; BLIP's is 'gelu'")
    return MedConfig(
        image=vit_config(image, "gelu"),
        text=TextConfig(
            vocabulary=text.vocab_size,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            ffn=text.intermediate_size,
            max_tokens=text.max_position_embeddings,
            image_width=image.hidden_size,
            norm_eps=text.layer_norm_eps,
        ),
        embedding=settings.image_text_hidden_size,
    )


def _grid(config: MedConfig, settings: Any) -> int | None:
    """Patches on a side to interpolate to; None where the checkpoint's own size is kept."""
    size = config.image.image_size
    return None if size == settings.vision_config.image_size else size // config.image.patch_size


def _filled(model: Model, names: Layout, folder: Path, grid: int | None = None) -> Model:
    state = names.collect(checkpoint.read_tensors(folder), str(folder))
    if grid is not None:
        state["vit.positions"] = resize_positions(state["vit.positions"], grid)
    checkpoint.fill(model, state, str(folder))
    statistics = checkpoint.pixel_statistics(folder)
    assert isinstance(model, CaptionModel | MatchModel | SimilarityModel)
    model.vit.pixel_mean, model.vit.pixel_std = statistics.mean, statistics.std
    return model


def _vocabulary(folder: Path, settings: Any) -> Vocabulary:
    text = settings.text_config
    return Vocabulary.load(
        folder, start=text.bos_token_id, end=text.sep_token_id, size=text.vocab_size
    )


def _load_blip2_captioner(
    folder: Path,
    identity: ModelIdentity,
    config: CaptionConfig,
    seed: int,
    precision: Precision,
    device: str | None,
) -> Captioner:
    from capfilt.models import blip2_load
    from capfilt.models.blip2_captioner import Blip2Captioner

    settings = blip2_load.blip2_settings(folder)
    sizes = blip2_load.query_config(settings)
    tokenizer = blip2_load.load_language_tokenizer(folder)
    vocabulary = None
    if identity.architecture == checkpoint.INSTRUCTED_CAPTIONER:
        vocabulary = blip2_load.load_query_vocabulary(folder, sizes.qformer)
    check_fits(f"--captioner {folder}", checkpoint.weight_files(folder), precision, device)
    model = place(blip2_load.load_prompt_model(folder, settings), precision, device)
    where, dtype = target(precision, device)
    language = blip2_load.load_language_model(folder, settings, dtype).to(where)
    language = language.eval().requires_grad_(False)
    return Blip2Captioner(model, language, tokenizer, vocabulary, identity, config, seed=seed)


def _load_blip2_filter(
    folder: Path,
    identity: ModelIdentity,
    config: ScoringConfig,
    precision: Precision,
    device: str | None,
) -> Filter:
    from capfilt.models import blip2_load
    from capfilt.models.blip2_filter import Blip2Filter

    settings = blip2_load.blip2_settings(folder)
    vocabulary = blip2_load.load_vocabulary(folder, settings)
    check_fits(f"--filter {folder}", checkpoint.weight_files(folder), precision, device)
    model = place(blip2_load.load_query_match_model(folder, settings), precision, device)
    return Blip2Filter(model, vocabulary, identity, config)


def _load_clip(
    folder: Path,
    identity: ModelIdentity,
    precision: Precision,
    device: str | None,
) -> ClipFilter:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from capfilt.models.pretrained import fill_exactly

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(
            f"{folder}: has neither tokenizer.json nor vocab.json: save the checkpoint's "
            "processor or tokenizer into the folder"
        )
    settings = CLIPConfig.from_dict(read_json(folder / "config.json"))
    model = fill_exactly(CLIPModel, settings, checkpoint.read_tensors(folder), folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    statistics = checkpoint.pixel_statistics(folder)
    return ClipFilter(place(model, precision, device), tokenizer, statistics, identity)
