"""What training leaves: checkpoints that `capfilt run` and transformers load."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import BertTokenizer, BlipConfig

from capfilt.models import convert
from capfilt.models.med import CaptionModel, MatchModel, MedConfig
from capfilt.train.itc import COLDEST, WARMEST


def export(
    model: CaptionModel | MatchModel,
    folder: Path,
    vocabulary: Path,
    *,
    temperature: float | None = None,
) -> None:
    """Save a trained model in transformers' layout, with tokenizer and image processor.

    Args:
        model: Saved as `BlipForConditionalGeneration` or `BlipForImageTextRetrieval`.
        folder: Made if absent.
        vocabulary: As it was trained with: `vocab.txt`, or a folder with a tokenizer.
        temperature: Of ITC, for a training that starts from here; None: there was no ITC.

    Raises:
        ModelError: There is no such vocabulary.
    """
    tokenizer = convert.blip_tokenizer(vocabulary)
    settings = _settings(model.config, tokenizer)
    if temperature is not None:
        settings.logit_scale_init_value = -math.log(min(max(temperature, COLDEST), WARMEST))
    convert.save(model, folder, settings, tokenizer=tokenizer)


def _settings(config: MedConfig, tokenizer: BertTokenizer) -> BlipConfig:
    image, text = config.image, config.text
    return BlipConfig(
        vision_config={
            "hidden_size": image.width,
            "intermediate_size": image.ffn,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "layer_norm_eps": image.norm_eps,
        },
        text_config={
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "encoder_hidden_size": image.width,
            "intermediate_size": text.ffn,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_tokens,
            "layer_norm_eps": text.norm_eps,
            "bos_token_id": tokenizer.bos_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        image_text_hidden_size=config.embedding,
    )
