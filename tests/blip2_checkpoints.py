"""Small random BLIP-2 checkpoints for tests: made by transformers, on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from capfilt.demo import tiny

Kind = Literal["opt", "t5", "llama"]

QUERIES = 6
TEXTS = [
    "a photo of a dog on the grass",
    "a picture of two cats in the snow",
    "two red birds sit in a green tree",
    "a woman with a bike next to the blue bus",
    "three people walk down a wet street at night",
]
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
QFORMER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "encoder_hidden_size": 48,
    "max_position_embeddings": 64,
}


def make_captioner(
    folder: Path, kind: Kind = "opt", *, seed: int = 0, qkv_bias: bool = True
) -> Path:
    """Save a small `Blip2ForConditionalGeneration` under `folder`."""
    names = language_tokenizer(kind)
    processor = Blip2Processor(_image_processor(), names, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, qkv_bias=qkv_bias),
        qformer_config=Blip2QFormerConfig(**QFORMER),
        text_config=_language_config(kind, names),
        num_query_tokens=QUERIES,
        image_token_index=names.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    give_own_head(model.language_model)
    randomise(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_instructed(folder: Path, kind: Kind = "opt", *, seed: int = 0) -> Path:
    """Save a small `InstructBlipForConditionalGeneration` under `folder`."""
    names, words = language_tokenizer(kind), _query_tokenizer()
    processor = InstructBlipProcessor(_image_processor(), names, words, num_query_tokens=QUERIES)
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(**QFORMER, vocab_size=len(words)),
        text_config=_language_config(kind, names),
        num_query_tokens=QUERIES,
        image_token_index=names.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config)
    give_own_head(model.language_model)
    randomise(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_filter(folder: Path, *, seed: int = 1) -> Path:
    """Save a small `Blip2ForImageTextRetrieval` under `folder`, its tokenizer as published.

    The tokenizer knows `<image>`, for which the embeddings have no row.
    """
    names = _query_tokenizer()
    rows = len(names)
    processor = Blip2Processor(_image_processor(), names, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=Blip2QFormerConfig(**QFORMER, vocab_size=rows, use_qformer_text_input=True),
        text_config=_language_config("opt", language_tokenizer("opt")),
        num_query_tokens=QUERIES,
        image_text_hidden_size=24,
        image_token_index=rows,
    )
    model = Blip2ForImageTextRetrieval(config)
    randomise(model, seed)
    with torch.no_grad():
        model.itm_head.weight.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def language_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """Words of `TEXTS`, with special tokens where each family's tokenizer puts them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special))
    template = {"opt": "</s> $A", "t5": "$A </s>", "llama": "<s> $A"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="</s>" if kind == "opt" else "<s>",
        eos_token="</s>",
    )


def _query_tokenizer() -> BertTokenizer:
    names = tiny.tokenizer()
    names = BertTokenizer(vocab={t: i for t, i in names.get_vocab().items() if i < len(names) - 2})
    names.add_special_tokens({"bos_token": "[DEC]"})
    return names


def give_own_head(language: Any) -> None:
    """Untie a T5's output weights from its word embeddings: FlanT5's are not tied."""
    if language.config.model_type == "t5":
        language.lm_head.weight = torch.nn.Parameter(torch.empty_like(language.lm_head.weight))


def randomise(model: Any, seed: int) -> None:
    """Draw every parameter from N(0, 0.15), weights of norms from N(1, 0.15)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(float(is_norm), 0.15, generator=generator)


def _language_config(kind: Kind, names: PreTrainedTokenizerFast) -> Any:
    ids = {
        "vocab_size": len(names) + 3,  # padded, as published embeddings are
        "pad_token_id": names.pad_token_id,
        "bos_token_id": names.bos_token_id,
        # As published, OPT ends its captions with another token than its tokenizer's.
        "eos_token_id": names.convert_tokens_to_ids("night") if kind == "opt" else 3,
    }
    if kind == "t5":
        sizes = {"d_model": 40, "d_kv": 10, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        return T5Config(
            **sizes, **ids, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
            tie_word_embeddings=False,
        )  # fmt: skip
    sizes = {
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    if kind == "opt":
        return OPTConfig(**sizes, **ids, ffn_dim=64, word_embed_proj_dim=40)
    return LlamaConfig(**sizes, **ids, intermediate_size=64, num_key_value_heads=2)


def _image_processor() -> BlipImageProcessorPil:
    side = VISION["image_size"]
    return BlipImageProcessorPil(size={"height": side, "width": side})
