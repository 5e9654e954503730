"""What the training of a BLIP-2 leaves: checkpoints that `capfilt run` and transformers load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipProcessor,
)

from capfilt.models import blip2_load
from capfilt.models.blip2 import PromptModel, QueryConfig, QueryMatchModel
from capfilt.models.convert import blip2_tokenizer
from capfilt.models.vit import ViT

log = logging.getLogger("capfilt")

_NOTE = """\
# A BLIP-2 over the image encoder of a CLIP

Load it in fp32 or bf16: fp16 has no room for weights of its image encoder, which are scaled, and
what it gives in fp16 is NaN.
"""


def export_match_model(model: QueryMatchModel, folder: Path, vocabulary: Path) -> None:
    """Save as `Blip2ForImageTextRetrieval`, with tokenizer and image processor.

    Args:
        model: What stage 1 trained.
        folder: Made if absent.
        vocabulary: As it was trained with: `vocab.txt`, or a folder with a tokenizer.

    Raises:
        ModelError: There is no such vocabulary.
    """
    tokenizer = blip2_tokenizer(vocabulary)
    settings = _settings(model.config, image_token=len(tokenizer))
    settings.dtype = _dtype(model)
    processor = Blip2Processor(
        _image_processor(model.vit), tokenizer, num_query_tokens=model.config.qformer.queries
    )
    blip2_load.save_query_match_model(model, folder, settings, processor=processor)
    _tell_where_fp16_is_too_small(model.vit, folder)


def export_captioner(
    model: PromptModel,
    language: Any,
    tokenizer: Any,
    bert: BertTokenizer | None,
    folder: Path,
    *,
    end: int,
) -> None:
    """Save as `Blip2ForConditionalGeneration`, with its language model, tokenizer and processor.

    Or as `InstructBlipForConditionalGeneration`, where the Q-Former reads prompts.

    Args:
        model: What was trained.
        language: transformers' language model.
        tokenizer: Of it; knows `<image>`.
        bert: Of a Q-Former that reads prompts.
        folder: Made if absent.
        end: The token that ended its texts.
    """
    language.config.eos_token_id = end
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    settings = _settings(model.config, image_token=image_token, language=language.config)
    settings.dtype = _dtype(model, language)
    parts = (_image_processor(model.vit), tokenizer)
    queries = model.config.qformer.queries
    processor = (
        Blip2Processor(*parts, num_query_tokens=queries)
        if bert is None
        else InstructBlipProcessor(*parts, bert, num_query_tokens=queries)
    )
    blip2_load.save_captioner(model, language, folder, settings, processor=processor)
    _tell_where_fp16_is_too_small(model.vit, folder)


def _settings(config: QueryConfig, *, image_token: int, language: Any = None) -> Any:
    image, text = config.image, config.qformer
    is_instructed = language is not None and text.reads_text
    of_language = {} if language is None else {"text_config": language.to_dict()}
    of_query = {} if is_instructed else {"use_qformer_text_input": text.reads_text}
    of_match = {} if is_instructed else {"image_text_hidden_size": config.embedding}
    return (InstructBlipConfig if is_instructed else Blip2Config)(
        vision_config={
            "hidden_size": image.width,
            "intermediate_size": image.ffn,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "layer_norm_eps": image.norm_eps,
            "hidden_act": image.activation,
        },
        qformer_config={
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.ffn,
            "max_position_embeddings": text.max_tokens,
            "layer_norm_eps": text.norm_eps,
            "encoder_hidden_size": image.width,
            "cross_attention_frequency": text.cross_every,
            **of_query,
        },
        **of_language,
        **of_match,
        num_query_tokens=text.queries,
        image_token_index=image_token,
    )


def _image_processor(vit: ViT) -> BlipImageProcessorPil:
    side = vit.config.image_size
    return BlipImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=list(vit.pixel_mean),
        image_std=list(vit.pixel_std),
    )


def _tell_where_fp16_is_too_small(vit: ViT, folder: Path) -> None:
    """See `capfilt.models.image_encoder`; others load BLIP-2s in fp16."""
    largest = max(float(parameter.detach().abs().max()) for parameter in vit.parameters())
    if largest > torch.finfo(torch.float16).max:
        (folder / "README.md").write_text(_NOTE, encoding="utf-8")
        log.warning("the BLIP-2 over a CLIP has no room in fp16: load it in fp32 or bf16")


def _dtype(*models: nn.Module) -> str:
    """What transformers loads it in: the half precision of frozen parts, where they have one."""
    dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
    return str(min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)).removeprefix("torch.")
