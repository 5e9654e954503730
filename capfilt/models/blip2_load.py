"""BLIP-2 folders in transformers' layout: their sizes and modules, read and written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Blip2Config,
    InstructBlipConfig,
)

from capfilt.errors import ModelError
from capfilt.models import checkpoint
from capfilt.models.blip2 import PromptModel, QueryConfig, QueryMatchModel
from capfilt.models.harmless import QUERY_TOKENIZER, read_json
from capfilt.models.image_encoder import with_biases
from capfilt.models.layout import Layout
from capfilt.models.pretrained import fill_exactly
from capfilt.models.qformer import QFormer, QFormerConfig
from capfilt.models.qformer_layout import query_captioner, query_filter, query_transformer
from capfilt.models.vit import resize_positions, vit_config
from capfilt.models.vocabulary import Vocabulary

Model = TypeVar("Model", bound=nn.Module)

_LANGUAGE = "language_model."
# What queries alone have no use for.
_OF_HEADS = re.compile(r"^(vision_projection|text_projection|itm_head|language_projection)\.")
_OF_TEXT = re.compile(
    rf"{_OF_HEADS.pattern}|^embeddings\.|^qformer\.encoder\.layer\.\d+\.(intermediate|output)\."
)
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def blip2_settings(folder: Path) -> Any:
    """A folder's `transformers.Blip2Config`, or the `InstructBlipConfig` that it is.

    Raises:
        ModelError: It is none, or of a language model that transformers does not know.
    """
    tree = read_json(folder / "config.json")
    is_instructed = tree.get("model_type") == InstructBlipConfig.model_type
    kind: Any = InstructBlipConfig if is_instructed else Blip2Config
    try:
        return kind.from_dict(tree)
    except (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        why = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: config.json cannot be read as a {kind.__name__} ({why})"
        ) from None


def query_config(settings: Any) -> QueryConfig:
    """Our sizes from transformers' `Blip2Config`.

    Raises:
        ModelError: The model uses an activation other than BLIP-2's, or images that are no squares.
    """
    return QueryConfig(
        image=vit_config(settings.vision_config, "gelu", "quick_gelu"),
        qformer=qformer_config(settings.qformer_config, settings.num_query_tokens),
        embedding=getattr(settings, "image_text_hidden_size", 256),  # an InstructBLIP has none
        language_width=settings.text_config.hidden_size,
    )


def qformer_config(settings: Any, queries: int) -> QFormerConfig:
    """Our sizes from transformers' `Blip2QFormerConfig`, or `InstructBlipQFormerConfig`.

    Raises:
        ModelError: As `query_config`.
    """
    if settings.hidden_act != "gelu":
        raise ModelError(f"qformer_config.hidden_act is {settings.hidden_act!r}, not 'gelu'")
    return QFormerConfig(
        vocabulary=settings.vocab_size,
        width=settings.hidden_size,
        layers=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        ffn=settings.intermediate_size,
        max_tokens=settings.max_position_embeddings,
        image_width=settings.encoder_hidden_size,
        norm_eps=settings.layer_norm_eps,
        queries=queries,
        cross_every=settings.cross_attention_frequency,
        reads_text=getattr(settings, "use_qformer_text_input", True),  # an InstructBLIP's does
    )


def load_query_match_model(
    folder: Path, settings: Any, config: QueryConfig | None = None
) -> QueryMatchModel:
    """The module of a `Blip2ForImageTextRetrieval` folder, on the CPU.

    Args:
        folder: Of the checkpoint.
        settings: Its config.
        config: In place of the checkpoint's own; positions are interpolated to its image size.

    Raises:
        ModelError: A tensor is missing, surplus or misshapen.
    """
    config = config or query_config(settings)
    if not config.qformer.reads_text:
        raise ModelError(f"{folder}: qformer_config.use_qformer_text_input is false: no filter")
    with torch.device("meta"):
        model = QueryMatchModel(config)
    tensors = checkpoint.read_tensors(folder)
    size = query_config(settings).image.image_size
    return _filled(model, query_filter(config), folder, tensors, size)


def load_prompt_model(
    folder: Path, settings: Any, config: QueryConfig | None = None
) -> PromptModel:
    """The module of a `Blip2ForConditionalGeneration` folder less its language model, on the CPU.

    Or of an `InstructBlipForConditionalGeneration`. Arguments and errors are those of
    `load_query_match_model`.
    """
    config = config or query_config(settings)
    with torch.device("meta"):
        model = PromptModel(config)
    own = re.compile(rf"(?!{re.escape(_LANGUAGE)})")
    tensors = checkpoint.read_tensors(folder, own)
    size = query_config(settings).image.image_size
    return _filled(model, query_captioner(config), folder, tensors, size)


def load_new_prompt_model(
    folder: Path, settings: Any, config: QueryConfig, *, seed: int
) -> PromptModel:
    """Image encoder and Q-Former of any BLIP-2 folder for another language model, on the CPU.

    Arguments and errors are those of `load_query_match_model`; the projection is drawn with `seed`.
    Where `config` reads text, the folder is of stage 1, or an InstructBLIP's.
    """
    tensors = checkpoint.read_tensors(folder, re.compile(rf"(?!{re.escape(_LANGUAGE)})"))
    if config.qformer.reads_text:
        tensors = {_instructed(name): x for name, x in tensors.items() if not _OF_HEADS.match(name)}
    else:
        tensors = {name: x for name, x in tensors.items() if not _OF_TEXT.search(name)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(config.qformer.width, config.language_width)
    for name, parameter in projection.named_parameters():
        tensors[f"language_projection.{name}"] = parameter.detach()
    with torch.device("meta"):
        model = PromptModel(config)
    size = query_config(settings).image.image_size
    return _filled(model, query_captioner(config), folder, tensors, size)


def load_qformer(folder: Path, settings: Any, *, queries: int = 32) -> QFormer:
    """The Q-Former of a `Blip2QFormerModel` folder, on the CPU.

    That class has neither queries nor embeddings; they are drawn from N(0, 0.02) here.

    Args:
        folder: Of the checkpoint.
        settings: Its `Blip2QFormerConfig`.
        queries: How many to draw.

    Raises:
        ModelError: A tensor is missing, surplus or misshapen.
    """
    config = qformer_config(settings, queries)
    model = QFormer(config)
    state = query_transformer(config).collect(checkpoint.read_tensors(folder), str(folder))
    for name, parameter in model.named_parameters():
        if name not in state:
            state[name] = torch.empty_like(parameter).normal_(std=0.02)
    checkpoint.fill(model, state, str(folder))
    return model


def load_language_model(folder: Path, settings: Any, dtype: torch.dtype) -> Any:
    """transformers' language model of a `Blip2ForConditionalGeneration` folder, on the CPU.

    Raises:
        ModelError: A tensor is missing, surplus or misshapen.
    """
    config = settings.text_config
    # Of a BART and its like transformers' BLIP-2 would take the decoder alone.
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    tensors = checkpoint.read_tensors(folder, re.compile(re.escape(_LANGUAGE)))
    own = {name.removeprefix(_LANGUAGE): x for name, x in tensors.items()}
    return fill_exactly(auto.from_config, config, own, folder, dtype=dtype, prefix=_LANGUAGE)


def load_language_tokenizer(folder: Path) -> Any:
    """The tokenizer of a `Blip2ForConditionalGeneration` folder.

    Raises:
        ModelError: There is none, or it asks for code of its own.
    """
    # Without any of them transformers makes an empty tokenizer.
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(
            f"{folder}: has none of {', '.join(_TOKENIZERS)}: save the checkpoint's processor or "
            "tokenizer into the folder"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:160]
        raise ModelError(f"{folder}: its tokenizer cannot be loaded ({why})") from None


def load_vocabulary(folder: Path, settings: Any) -> Vocabulary:
    """The BERT tokenizer of a `Blip2ForImageTextRetrieval` folder."""
    image = settings.image_token_index  # a token that texts never have, without an embedding
    size = settings.qformer_config.vocab_size
    return Vocabulary.load(folder, size=size if image is None else max(size, image + 1))


def load_query_vocabulary(folder: Path, config: QFormerConfig) -> Vocabulary:
    """The BERT tokenizer of a Q-Former that reads prompts."""
    return Vocabulary.load(folder / QUERY_TOKENIZER, size=config.vocabulary)


def save_query_match_model(
    model: QueryMatchModel, folder: Path, settings: Any, *, processor: Any
) -> None:
    """Save a filter as transformers' `Blip2ForImageTextRetrieval`.

    Args:
        model: Any device and dtype; saved as it is.
        folder: Made if absent.
        settings: Its `Blip2Config`.
        processor: `Blip2Processor`, or whatever saves tokenizer and image processor.
    """
    tensors = query_filter(model.config).release(_state(model))
    _save(tensors, folder, settings.to_dict(), checkpoint.BLIP2_FILTER, processor)


def save_captioner(
    model: PromptModel, language: Any, folder: Path, settings: Any, *, processor: Any
) -> None:
    """Save a captioner as `Blip2ForConditionalGeneration`; see `save_query_match_model`.

    Or as `InstructBlipForConditionalGeneration`, where its Q-Former reads text.
    """
    tensors = query_captioner(model.config).release(_state(model))
    tied = {name for name, _ in language.named_parameters(remove_duplicate=False)}
    state = dict(language.named_parameters())  # of tied ones the first
    state |= {name: x for name, x in language.state_dict().items() if name not in tied}
    tensors |= {f"{_LANGUAGE}{name}": x.detach().cpu() for name, x in state.items()}
    is_instructed = model.config.qformer.reads_text
    name = checkpoint.INSTRUCTED_CAPTIONER if is_instructed else checkpoint.BLIP2_CAPTIONER
    tree = settings.to_dict()
    # transformers 5 says "tied" of every T5; earlier ones would tie FlanT5's head for it.
    tree["text_config"]["tie_word_embeddings"] = has_tied_head(language)
    _save(tensors, folder, tree, name, processor)


def has_tied_head(language: Any) -> bool:
    """Whether a language model's output weights are its word embeddings."""
    head = language.get_output_embeddings()
    return head is not None and head.weight is language.get_input_embeddings().weight


def save_qformer(model: QFormer, folder: Path, settings: Any) -> None:
    """Save a Q-Former as `Blip2QFormerModel`, which has neither queries nor embeddings."""
    tensors = query_transformer(model.config).release(_state(model))
    _save(tensors, folder, settings.to_dict(), checkpoint.BLIP2_QFORMER, None)


def _instructed(name: str) -> str:
    """What an InstructBLIP calls a tensor of stage 1."""
    if name.startswith("embeddings."):
        return f"qformer.{name}"
    return name.replace("qformer.layernorm.", "qformer.embeddings.layernorm.")


def _filled(
    model: Model, names: Layout, folder: Path, tensors: dict[str, Tensor], size: int
) -> Model:
    assert isinstance(model, QueryMatchModel | PromptModel)
    state, image = names.collect(with_biases(tensors), str(folder)), model.config.image
    if image.image_size != size:
        grid = image.image_size // image.patch_size
        state["vit.positions"] = resize_positions(state["vit.positions"], grid)
    checkpoint.fill(model, state, str(folder))
    statistics = checkpoint.pixel_statistics(folder)
    model.vit.pixel_mean, model.vit.pixel_std = statistics.mean, statistics.std
    return model


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _save(
    tensors: Mapping[str, Tensor],
    folder: Path,
    tree: dict[str, Any],
    architecture: str,
    processor: Any,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = {  # a part of a fused matrix would be taken for a tensor shared with the others
        name: x.clone() if x.untyped_storage().nbytes() > x.nbytes else x
        for name, x in tensors.items()
    }
    save_torch_state_dict(own, folder)
    text = json.dumps({**tree, "architectures": [architecture]}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    for weights in folder.glob("*.safetensors"):  # which safetensors lets the writer alone read
        shutil.copymode(folder / "config.json", weights)
    if processor is not None:
        processor.save_pretrained(folder)
