"""The same random weights and the same work, twice: in capfilt and in transformers.

The plain loop over transformers is what a careful user writes without touching its models: batched
`generate` with its cache, inference mode, two batched ITM calls, texts padded to the longest.

Weights are random, so captions would never end. Both sides are made to end each caption at a given
length: the first token of a caption is its row's number, by which its length is found later.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    LogitsProcessor,
    LogitsProcessorList,
)

from capfilt.config import CaptionConfig, ImageConfig, ScoringConfig
from capfilt.models import beams, images, med_layout, sampling
from capfilt.models.captioner import BlipCaptioner
from capfilt.models.filter import MatchFilter
from capfilt.models.generation import generate
from capfilt.models.load import med_config
from capfilt.models.med import CaptionModel, MatchModel
from capfilt.models.placement import place
from capfilt.models.rows import adjust as adjust_scores
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity

# Octiles of the tokens of COCO's captions (val2017, BERT's tokens, with the end): mean 12.7.
CAPTION_TOKENS = (10, 11, 11, 12, 13, 14, 15, 16)
WEB_TOKENS = (8, 10, 12, 13, 14, 16, 19, 24)  # of web texts, `[CLS]` and `[SEP]` counted
DEC, ENC, CLS, SEP = 30522, 30523, 101, 102
PROMPT_WORDS = {"a": 1037, "picture": 3861, "of": 1997}
FIRST_WORD = 4000  # from here on every id is a word
PROMPT = "a picture of "
_SURE = 1e4


@dataclass(frozen=True)
class Size:
    """Of a BLIP; the text side is BERT-base at both published sizes."""

    width: int
    layers: int
    heads: int
    text_width: int = 768
    text_layers: int = 12
    image_size: int = 384

    def config(self) -> BlipConfig:
        return BlipConfig(
            vision_config={
                "hidden_size": self.width,
                "intermediate_size": 4 * self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "image_size": self.image_size,
                "initializer_range": 0.02,  # transformers' default leaves all patches alike
            },
            text_config={
                "hidden_size": self.text_width,
                "intermediate_size": 4 * self.text_width,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.text_width // 64,
            },
        )


SIZES = {"base": Size(768, 12, 12), "large": Size(1024, 24, 16)}


# For a run that shows that everything works.
TINY = Size(128, 2, 2, text_width=128, text_layers=2, image_size=64)


def random_captioner(size: Size) -> BlipForConditionalGeneration:
    """In fp32, on the CPU. Scores are spread so that a nucleus of 0.9 is some dozens of tokens."""
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(size.config()).eval().requires_grad_(False)
    model.text_decoder.cls.predictions.transform.LayerNorm.weight.mul_(8)
    return model


def random_filter(size: Size) -> BlipForImageTextRetrieval:
    """In fp32, on the CPU."""
    torch.manual_seed(1)
    return BlipForImageTextRetrieval(size.config()).eval().requires_grad_(False)


def vocabulary() -> BertTokenizer:
    """Of BERT's size, with made-up words of four letters, each one token."""
    tokens = {"[PAD]": 0, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 103, **PROMPT_WORDS}
    words = ("".join(letters) for letters in product(string.ascii_lowercase, repeat=4))
    taken = set(tokens.values())
    tokens |= {next(words): i for i in range(DEC) if i not in taken}
    tokenizer = BertTokenizer(vocab=tokens)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [DEC, ENC]
    return tokenizer


def web_texts(count: int, tokenizer: BertTokenizer) -> list[str]:
    """Texts of `WEB_TOKENS` tokens."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, DEC, (count, max(WEB_TOKENS)))
    lengths = [WEB_TOKENS[i % len(WEB_TOKENS)] - 2 for i in range(count)]
    return [
        " ".join(tokenizer.convert_ids_to_tokens(row[:length].tolist()))
        for row, length in zip(ids, lengths, strict=True)
    ]


def photographs(count: int) -> list[bytes]:
    """JPEGs of 512 x 384 pixels with a photograph's size in bytes, about 90 kB."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 9, (384, 512, 1))
        pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


class Ends(LogitsProcessor):  # type: ignore[misc]
    """Ends caption i after `CAPTION_TOKENS[i % 8]` tokens, whatever the model says."""

    def __init__(self, prompt: int, device: torch.device) -> None:
        self._prompt = prompt
        self._lengths = torch.tensor(CAPTION_TOKENS, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        made = input_ids.shape[1] - self._prompt
        if made == 0:
            rows = torch.arange(len(scores), device=scores.device)
            return torch.full_like(scores, -_SURE).scatter(1, FIRST_WORD + rows[:, None], _SURE)
        rows = (input_ids[:, self._prompt] - FIRST_WORD).clamp(min=0)
        ends = self._lengths[rows % len(self._lengths)] == made + 1
        scores = scores.clone()
        scores[:, SEP] = torch.where(ends, _SURE, -_SURE).to(scores.dtype)
        return scores


class Ours:
    """capfilt, on one device in one precision."""

    def __init__(
        self,
        captioner: BlipForConditionalGeneration,
        filter_: BlipForImageTextRetrieval,
        tokenizer: BertTokenizer,
        captions: CaptionConfig,
        *,
        precision: str,
        device: str,
    ) -> None:
        names = Vocabulary(tokenizer, start=DEC, end=SEP, size=ENC + 1)
        identity = ModelIdentity("random", "0" * 64, "random weights")
        self.model = _ours(captioner, CaptionModel, med_layout.captioner, precision, device)
        self.matcher = _ours(filter_, MatchModel, med_layout.filter_, precision, device)
        self.captioner = BlipCaptioner(self.model, names, identity, captions, seed=0)
        self.filter = MatchFilter(self.matcher, names, identity, ScoringConfig())
        self.device = torch.device(device)
        self.prompt = names.prompt(PROMPT)
        self._names = names

    def use(self, captions: CaptionConfig) -> None:
        """Caption otherwise from now on."""
        identity = self.captioner.identity
        self.captioner = BlipCaptioner(self.model, self._names, identity, captions, seed=0)

    def annotate(self, jpegs: Sequence[bytes], texts: Sequence[str]) -> list[list[bool]]:
        """JPEG bytes to verdicts of the web text and the captions."""
        return self.judge(self.pixels(jpegs), texts)

    def pixels(self, jpegs: Sequence[bytes]) -> list[Tensor]:
        limits = ImageConfig()
        return [images.fit(images.decode(jpeg, limits), self.captioner.pixels) for jpeg in jpegs]

    def judge(self, pixels: Sequence[Tensor], texts: Sequence[str]) -> list[list[bool]]:
        keys = [str(i) for i in range(len(pixels))]
        with self._ends():
            captions = self.captioner.caption(pixels, keys)
        pairs = [[text, *of] for text, of in zip(texts, captions, strict=True)]
        scores = self.filter.score(pixels, pairs)
        return [[(score.match_prob or 0) >= 0.5 for score in of_image] for of_image in scores]

    def vision(self, pixels: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(pixels)).to(self.device)
        return self.model.vit(stacked)  # type: ignore[no-any-return]

    def decode(self, states: Tensor, config: CaptionConfig) -> list[list[list[int]]]:
        keys = [str(i) for i in range(len(states))]
        model = self.model
        if config.method == "beam":  # in full length on both sides
            return generate(model, states, self.prompt, SEP, config, seed=0, keys=keys)
        with self._ends():
            return generate(model, states, self.prompt, SEP, config, seed=0, keys=keys)

    def match(self, states: Tensor, texts: Sequence[Sequence[str]]) -> list[float]:
        filter_ = self.filter
        return filter_._match_probs(states, filter_._tokens(texts))

    @contextmanager
    def _ends(self) -> Iterator[None]:
        ends = Ends(len(self.prompt), self.device)

        def adjust(scores: Tensor, ids: Tensor, end: int, config: CaptionConfig) -> Tensor:
            return ends(ids, adjust_scores(scores, ids, end, config))

        with patch.object(sampling, "adjust", adjust), patch.object(beams, "adjust", adjust):
            yield


class Transformers:
    """The plain loop, on one device in one precision."""

    def __init__(
        self,
        captioner: BlipForConditionalGeneration,
        filter_: BlipForImageTextRetrieval,
        tokenizer: BertTokenizer,
        captions: CaptionConfig,
        *,
        precision: str,
        device: str,
    ) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = torch.device(device)
        self.captioner = captioner.to(self.device, self.dtype)
        self.filter = filter_.to(self.device, self.dtype)
        side = captioner.config.vision_config.image_size
        self._processor = BlipImageProcessorPil(size={"height": side, "width": side})
        self._tokenizer = tokenizer
        self._config = captions

    @torch.inference_mode()
    def annotate(self, jpegs: Sequence[bytes], texts: Sequence[str]) -> list[list[bool]]:
        """As `Ours.annotate`, for one caption per image."""
        return self.judge(self.pixels(jpegs), texts)

    @torch.inference_mode()
    def judge(self, pixels: Tensor, texts: Sequence[str]) -> list[list[bool]]:
        ids = self._prompt(len(pixels))
        rows = self.captioner.generate(
            pixel_values=pixels, input_ids=ids, **self._options(self._config)
        )
        captions = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
        captions = [caption.removeprefix(PROMPT.strip()).strip() for caption in captions]
        verdicts = []
        for of_kind in (list(texts), captions):
            tokens = self._texts(of_kind)
            logits = self.filter(pixel_values=pixels, **tokens).itm_score
            verdicts.append((logits.float().softmax(-1)[:, 1] >= 0.5).tolist())
        return [list(pair) for pair in zip(*verdicts, strict=True)]

    def pixels(self, jpegs: Sequence[bytes]) -> Tensor:
        pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
        values: Tensor = self._processor(pictures, return_tensors="pt").pixel_values
        return values.to(self.device, self.dtype)

    def vision(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.captioner.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def decode(self, states: Tensor, config: CaptionConfig) -> Tensor:
        """What `BlipForConditionalGeneration.generate` does after its image tower."""
        rows: Tensor = self.captioner.text_decoder.generate(
            input_ids=self._prompt(len(states))[:, :-1],
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], device=states.device).long(),
            eos_token_id=SEP,
            pad_token_id=0,
            **self._options(config),
        )
        return rows

    def match(self, states: Tensor, texts: Sequence[Sequence[str]]) -> list[float]:
        """What `BlipForImageTextRetrieval` does after its image tower, once per text."""
        probabilities = []
        for of_kind in zip(*texts, strict=True):
            output = self.filter.text_encoder(
                **self._texts(of_kind),
                encoder_hidden_states=states,
                encoder_attention_mask=torch.ones(states.shape[:2], device=states.device).long(),
            )
            logits = self.filter.itm_head(output.last_hidden_state[:, 0]).float()
            probabilities.append(logits.softmax(-1)[:, 1].tolist())
        return [p for of_image in zip(*probabilities, strict=True) for p in of_image]

    def _prompt(self, count: int) -> Tensor:
        ids = [DEC, *PROMPT_WORDS.values(), SEP]  # `generate` takes the end off
        return torch.tensor([ids] * count, device=self.device)

    def _texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=35, return_tensors="pt"
        ).to(self.device)
        tokens.input_ids[:, 0] = ENC
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}

    def _options(self, config: CaptionConfig) -> dict[str, Any]:
        options: dict[str, Any] = {
            "min_length": config.min_length,
            "max_length": config.max_length,
            "repetition_penalty": config.repetition_penalty,
            "do_sample": config.method == "nucleus",
            "num_return_sequences": config.per_image,
        }
        if config.method == "beam":
            return options | {"num_beams": config.num_beams}
        if config.method == "nucleus":
            options |= {"top_p": config.top_p, "top_k": config.top_k}
        ends = Ends(1 + len(PROMPT_WORDS), self.device)
        return options | {"logits_processor": LogitsProcessorList([ends])}


def _ours(source: Any, kind: Any, names: Any, precision: Any, device: str) -> Any:
    config = med_config(source.config)
    model = kind(config)
    of_model = names(image_layers=config.image.layers, text_layers=config.text.layers)
    state = of_model.collect(source.state_dict(), "random weights")
    model.load_state_dict(state)  # copies
    return place(model, precision, device)
