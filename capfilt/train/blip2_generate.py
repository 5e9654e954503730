"""Stage 2 of BLIP-2: a frozen language model learns nothing, a Q-Former learns to speak to it.

`Blip2Generate` is a module as those of `capfilt.train.blip` are: `forward(batch, step)` gives the
loss "lm". The language model, and the image encoder unless it learns, are in no `state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertTokenizer

from capfilt.data.batch import Batch
from capfilt.errors import ConfigError, ModelError
from capfilt.models import blip2_load, checkpoint
from capfilt.models.blip2 import PromptModel, QueryConfig
from capfilt.models.convert import blip2_tokenizer
from capfilt.models.harmless import QUERY_TOKENIZER, made_from, read_json
from capfilt.models.language_load import IMAGE, load_language
from capfilt.models.med import PackedTexts
from capfilt.models.uniforms import uniforms
from capfilt.train.blip2_export import export_captioner
from capfilt.train.features import Features
from capfilt.train.frozen import PartlyFrozen
from capfilt.train.gather import rank, ranks
from capfilt.train.language_loss import lm_loss, prefix_lm_loss
from capfilt.train.language_texts import LanguageTexts
from capfilt.train.matcher import Passes
from capfilt.train.towers import DropConfig, RecomputeConfig


@dataclass(frozen=True)
class GenerateConfig:
    """Stage 2, and the finetuning of what it makes.

    Source: BLIP-2, arXiv:2301.12597, sections 3.2, 3.4 and 4.2; InstructBLIP, arXiv:2305.06500,
    section 2.3.
    """

    start: str = ""  # folder of any BLIP-2; where `read_prompt`, of stage 1 or an InstructBLIP
    language: str = ""  # folder or hub id of a language model; empty: that of `start`
    image_size: int = 224
    prompt: str = ""  # before every text; its tokens are read and not learned
    read_prompt: bool = False  # the queries read it, too, as InstructBLIP's do
    split_text: bool = True  # an encoder-decoder's encoder reads the first part of a text
    train_image: bool = False  # the image encoder learns, too
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


class Blip2Generate(PartlyFrozen):
    """LM over a language model that is shown the queries of an image."""

    def __init__(
        self,
        config: GenerateConfig,
        model: PromptModel,
        language: Any,
        tokenizer: Any,
        bert: BertTokenizer | None = None,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Put loaded models together; see `load`. `bert` is of a Q-Former that reads the prompt."""
        super().__init__()
        self.config = config
        self.model, self.language = model, language
        self.freeze(language, dtype=dtype)
        if not config.train_image:
            self.freeze(model.vit, but=model.vit.norm, dtype=dtype)
        self.features = Features(model.vit)
        self.texts = LanguageTexts(tokenizer, language, config.prompt, "the language model")
        self._tokenizer, self._bert = tokenizer, bert
        self._instruction: list[int] | None = None
        if bert is not None:
            longest = model.config.qformer.max_tokens
            encoded = bert(config.prompt, truncation=True, max_length=longest)
            self._instruction = encoded["input_ids"]
            unseen = model.qformer.layers[-1].text_ffn  # nothing looks at what it would make
            assert isinstance(unseen, nn.Module)
            self.freeze(unseen)
        self._seed = seed
        self._passes = Passes()

    @classmethod
    def load(cls, config: GenerateConfig, *, seed: int, dtype: torch.dtype) -> Blip2Generate:
        """Make a model on the CPU from what `config` names.

        Args:
            config: What is trained, with folders for `start` and `language`.
            seed: Of the projection to a language model that `start` has not.
            dtype: Of what is frozen.

        Raises:
            ConfigError: `language` is missing, or the image size is no multiple of the patch size.
            ModelError: A folder holds no such checkpoint, or tensors of other sizes.
        """
        folder = Path(config.start)
        kind = _architecture(folder)
        _check_prompt(config, kind)
        with made_from(folder):
            settings = blip2_load.blip2_settings(folder)
            if config.language:
                language, tokenizer = load_language(Path(config.language), dtype)
            elif kind != checkpoint.BLIP2_FILTER:
                language = blip2_load.load_language_model(folder, settings, dtype)
                tokenizer = blip2_load.load_language_tokenizer(folder)
            else:
                raise ConfigError(
                    "model.language is not set: give the folder or hub id of a language model"
                )
            width = language.config.hidden_size
            sizes = _trained(blip2_load.query_config(settings), config, width)
            if kind != checkpoint.BLIP2_FILTER and not config.language:
                model = blip2_load.load_prompt_model(folder, settings, sizes)
            else:
                model = blip2_load.load_new_prompt_model(folder, settings, sizes, seed=seed)
            bert = _query_tokenizer(folder, kind) if config.read_prompt else None
        return cls(config, model.float(), language, tokenizer, bert, seed=seed, dtype=dtype)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss "lm".

        Args:
            batch: Of this rank, on the model's device, its texts from `texts`.
            step: Of the optimiser, from 0.
        """
        visual = self._visual(batch)
        if self.texts.decoder_start is None:
            return {"lm": lm_loss(self.language, visual, batch.texts, self.texts)}
        cuts = self.cuts(batch.texts, step)
        return {"lm": prefix_lm_loss(self.language, visual, batch.texts, self.texts, cuts)}

    def cuts(self, texts: list[list[int]], step: int) -> list[int]:
        """How many tokens of each text go to the encoder: any number less than all, or none.

        They are a function of (seed, step, row of the joint batch), whatever the number of ranks.
        """
        stream = f"{step}/{self._passes.number(step)}/cut"
        if not self.config.split_text:
            return [0] * len(texts)
        numbers = uniforms(self._seed, [stream], 1, ranks() * len(texts))[0, 0]
        own = numbers[rank() * len(texts) :]
        return [int(u * (len(ids) - 1)) for u, ids in zip(own, texts, strict=False)]

    def export_captioner(self, folder: Path) -> None:
        """Save as a `Blip2ForConditionalGeneration` with tokenizer and processor.

        Or as an `InstructBlipForConditionalGeneration`, where the queries read the prompt.
        """
        tokenizers = (self._tokenizer, self._bert)
        export_captioner(self.model, self.language, *tokenizers, folder, end=self.texts.end)

    def _visual(self, batch: Batch) -> Tensor:
        read = None
        if self._instruction is not None:
            read = PackedTexts.of([[self._instruction]] * len(batch), batch.images.device)
        if self.config.train_image:
            return self.model(batch.images, read)  # type: ignore[no-any-return]
        features = self.features.of(batch)
        norm = self.model.vit.norm
        return self.model.prompts(norm(features.to(norm.weight.dtype)), read)


def _architecture(folder: Path) -> str:
    known = (
        checkpoint.BLIP2_FILTER,
        checkpoint.BLIP2_CAPTIONER,
        checkpoint.INSTRUCTED_CAPTIONER,
    )
    names = read_json(folder / "config.json").get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "nothing"
    if name not in known:
        raise ModelError(f"model.start {folder}: is a {name}, not a {' or a '.join(known)}")
    return name


def _check_prompt(config: GenerateConfig, kind: str) -> None:
    if config.read_prompt and not config.prompt:
        raise ConfigError("model.read_prompt is true but model.prompt is empty: nothing to read")
    if config.read_prompt and kind == checkpoint.BLIP2_CAPTIONER:
        raise ConfigError(
            f"model.read_prompt is true but the Q-Former of model.start ({config.start}) has "
            "unlearned to read: start from stage 1 or an InstructBLIP"
        )
    if not config.read_prompt and kind == checkpoint.INSTRUCTED_CAPTIONER:
        raise ConfigError(
            f"the Q-Former of model.start ({config.start}) reads prompts: set "
            "model.read_prompt=true, and a model.prompt"
        )


def _query_tokenizer(folder: Path, kind: str) -> BertTokenizer:
    """BERT's, less the placeholder of images, for which the Q-Former has no embedding."""
    is_filter = kind == checkpoint.BLIP2_FILTER
    whole = blip2_tokenizer(folder if is_filter else folder / QUERY_TOKENIZER)
    names = {token: i for token, i in whole.get_vocab().items() if token != IMAGE}
    return BertTokenizer(vocab=names, bos_token="[DEC]", do_lower_case=whole.do_lower_case)


def _trained(sizes: QueryConfig, config: GenerateConfig, language_width: int) -> QueryConfig:
    """Sizes of the model to train."""
    size, patch = config.image_size, sizes.image.patch_size
    if size < 1 or size % patch:
        raise ConfigError(f"model.image_size must be a multiple of {patch}, is {size}")
    image = replace(
        sizes.image,
        image_size=size,
        drop_path=config.drop.path if config.train_image else 0.0,
        recompute=config.recompute.image and config.train_image,
    )
    qformer = replace(
        sizes.qformer,
        reads_text=config.read_prompt,
        dropout=config.drop.text,
        recompute=config.recompute.text,
    )
    return replace(sizes, image=image, qformer=qformer, language_width=language_width)
