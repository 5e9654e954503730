"""What trains: BLIP's pre-training, and the finetuning of a captioner and of a filter.

    BlipPretrain        ITC + ITM + LM, one image pass, three text passes
    CaptionerFinetune   LM
    FilterFinetune      ITC + ITM

Each is a module whose `forward(batch, step)` gives its losses by name, fp32 scalars of this rank
whose sum is to be minimised; wrapped in DistributedDataParallel, the mean of the ranks' gradients
is the gradient of the joint batch (pass `broadcast_buffers=False`: the queues are equal on all
ranks by themselves). All that goes on from step to step is in `state_dict()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from capfilt.data.batch import Batch
from capfilt.models.convert import blip_tokenizer
from capfilt.models.med import CaptionModel, MatchModel
from capfilt.train import initial
from capfilt.train.export import export
from capfilt.train.itc import ItcConfig
from capfilt.train.itm import ItmConfig
from capfilt.train.lm import LmConfig, lm_loss
from capfilt.train.matcher import Matcher
from capfilt.train.sharing import Sharing, shared_decoder
from capfilt.train.tokens import Tokens
from capfilt.train.towers import (
    DropConfig,
    ImageTower,
    RecomputeConfig,
    TextTower,
    med_config,
    trained,
)


@dataclass(frozen=True)
class BlipConfig:
    """Pre-training.

    Source: BLIP, arXiv:2201.12086, sections 3.1, 3.2 and 4.1 (`sharing`: Table 3).
    """

    start: str = ""  # output folder of a pre-training to go on from; empty: a new model
    image: ImageTower = field(default_factory=ImageTower)
    text: TextTower = field(default_factory=TextTower)
    embedding: int = 256
    sharing: Sharing = "all_but_self_attention"
    itc: ItcConfig = field(default_factory=ItcConfig)
    itm: ItmConfig = field(default_factory=ItmConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)

    def __post_init__(self) -> None:
        if self.start and (self.image.weights or self.text.weights):
            raise ValueError("start has all weights: leave image.weights and text.weights out")
        if not (self.itc.temperature or self.start):
            raise ValueError("itc.temperature is 0, but no checkpoint here has learned one")


@dataclass(frozen=True)
class CaptionerConfig:
    """Finetuning of a captioner."""

    start: str = ""  # folder of a `BlipForConditionalGeneration`
    image_size: int = 384
    lm: LmConfig = field(default_factory=lambda: LmConfig(prompt="a picture of "))
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


@dataclass(frozen=True)
class FilterConfig:
    """Finetuning of a filter."""

    start: str = ""  # folder of a `BlipForImageTextRetrieval`
    image_size: int = 384
    itc: ItcConfig = field(default_factory=lambda: ItcConfig(temperature=0.0))
    itm: ItmConfig = field(default_factory=lambda: ItmConfig(negatives="all_ranks"))
    drop: DropConfig = field(default_factory=DropConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)


class BlipPretrain(nn.Module):
    """ITC, ITM and LM over one image encoder.

    Encoder and decoder are a `MatchModel` and a `CaptionModel` that have the ViT in common, and of
    the text transformer what `sharing` says. The image is encoded once, and its keys and values are
    projected once for both wherever cross-attention is shared.
    """

    def __init__(self, config: BlipConfig, tokens: Tokens, *, seed: int) -> None:
        """Make a model from scratch; see `load`."""
        super().__init__()
        self.config = config
        sizes = med_config(
            config.image, config.text, embedding=config.embedding, vocabulary=tokens.size
        )
        sizes = trained(sizes, config.drop, config.recompute)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, self.captioner = MatchModel(sizes), CaptionModel(sizes)
            initial.from_scratch(model, self.captioner)
        self.captioner.vit = model.vit
        self.captioner.text = shared_decoder(model.text, self.captioner.text, config.sharing)
        self.matcher = Matcher(model, config.itc, config.itm, tokens, seed)
        self._tokens = tokens

    @classmethod
    def load(cls, config: BlipConfig, *, vocabulary: Path, seed: int) -> BlipPretrain:
        """Make a model on the CPU, from scratch or from what `config` names.

        Args:
            config: What is trained.
            vocabulary: BERT's `vocab.txt`, or a folder with a tokenizer.
            seed: Of new weights, and of the draws of negatives.

        Raises:
            ModelError: A folder holds no such checkpoint, or tensors of other sizes.
        """
        tokens = Tokens.of(blip_tokenizer(vocabulary), config.lm.prompt)
        if config.start and not config.itc.temperature:
            learned = initial.start_temperature(str(Path(config.start) / "filter"))
            config = replace(config, itc=replace(config.itc, temperature=learned))
        made = cls(config, tokens, seed=seed)
        model = made.matcher.model
        if config.start:
            initial.load_pretrained(model, made.captioner, config.start)
        if config.image.weights:
            initial.load_image_weights(model.vit, config.image.weights)
        if config.text.weights:
            initial.load_text_weights([model, made.captioner], config.text.weights)
        made.matcher.momentum.update(model, 0.0)
        return made

    def check_batch(self, images: int, ranks: int) -> None:
        """Refuse a batch that the objectives cannot work with, before anything is read.

        Args:
            images: Of one forward pass on one rank.
            ranks: How many there are.

        Raises:
            ConfigError: The queue is no multiple of a step's images; a batch has no negatives.
        """
        self.matcher.check_batch(images, ranks)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses "itc", "itm" and "lm".

        Args:
            batch: Of this rank, on the model's device; as many images on every rank.
            step: Of the optimiser, from 0. Forward passes of one step (gradient accumulation)
                count as one for the momentum encoder.

        Raises:
            ConfigError: As `check_batch`; no image of the step has a text that is not its own.
        """
        encoder, decoder = self.matcher.model, self.captioner
        states = encoder.vit(batch.images)
        itc, drawn = self.matcher.contrast(states, batch, step)
        memory = encoder.text.remember(drawn.images)
        others, of_decoder = drawn.others, memory
        if not _shares_cross_attention(encoder, decoder):
            others, of_decoder = 0, decoder.text.remember(states)
        # The decoder keeps the device busy until the draws have arrived.
        lm = lm_loss(
            decoder,
            of_decoder,
            batch.texts,
            self._tokens,
            label_smoothing=self.config.lm.label_smoothing,
            others=others,
        )
        return {"itc": itc, "itm": self.matcher.match(memory, drawn), "lm": lm}

    def export_captioner(self, folder: Path, vocabulary: Path) -> None:
        """Save the decoder as a `BlipForConditionalGeneration` with tokenizer and processor."""
        export(self.captioner, folder, vocabulary)

    def export_filter(self, folder: Path, vocabulary: Path) -> None:
        """Save the encoder as a `BlipForImageTextRetrieval` with tokenizer and processor."""
        temperature = self.matcher.itc.temperature.item()
        export(self.matcher.model, folder, vocabulary, temperature=temperature)


class CaptionerFinetune(nn.Module):
    """LM alone."""

    def __init__(self, config: CaptionerConfig, model: CaptionModel, tokens: Tokens) -> None:
        super().__init__()
        self.config = config
        self.captioner = model
        self._tokens = tokens

    @classmethod
    def load(cls, config: CaptionerConfig, *, vocabulary: Path, seed: int) -> CaptionerFinetune:
        """As `BlipPretrain.load`; `vocabulary` may be the folder it starts from."""
        model = initial.start_captioner(
            config.start, config.image_size, config.drop, config.recompute
        )
        return cls(config, model, Tokens.of(blip_tokenizer(vocabulary), config.lm.prompt))

    def check_batch(self, images: int, ranks: int) -> None:
        """As `BlipPretrain.check_batch`: any batch will do."""

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss "lm"; see `BlipPretrain.forward`."""
        memory = self.captioner.text.remember(self.captioner.vit(batch.images))
        smoothing = self.config.lm.label_smoothing
        loss = lm_loss(self.captioner, memory, batch.texts, self._tokens, label_smoothing=smoothing)
        return {"lm": loss}

    def export_captioner(self, folder: Path, vocabulary: Path) -> None:
        """As `BlipPretrain.export_captioner`."""
        export(self.captioner, folder, vocabulary)


class FilterFinetune(nn.Module):
    """ITC and ITM."""

    def __init__(
        self, config: FilterConfig, model: MatchModel, tokens: Tokens, *, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.matcher = Matcher(model, config.itc, config.itm, tokens, seed)

    @classmethod
    def load(cls, config: FilterConfig, *, vocabulary: Path, seed: int) -> FilterFinetune:
        """As `BlipPretrain.load`; `vocabulary` may be the folder it starts from."""
        model = initial.start_filter(config.start, config.image_size, config.drop, config.recompute)
        if not config.itc.temperature:
            itc = replace(config.itc, temperature=initial.start_temperature(config.start))
            config = replace(config, itc=itc)
        return cls(config, model, Tokens.of(blip_tokenizer(vocabulary)), seed=seed)

    def check_batch(self, images: int, ranks: int) -> None:
        """As `BlipPretrain.check_batch`."""
        self.matcher.check_batch(images, ranks)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses "itc" and "itm"; see `BlipPretrain.forward`."""
        model = self.matcher.model
        itc, drawn = self.matcher.contrast(model.vit(batch.images), batch, step)
        memory = model.text.remember(drawn.images)
        return {"itc": itc, "itm": self.matcher.match(memory, drawn)}

    def export_filter(self, folder: Path, vocabulary: Path) -> None:
        """As `BlipPretrain.export_filter`."""
        temperature = self.matcher.itc.temperature.item()
        export(self.matcher.model, folder, vocabulary, temperature=temperature)


def _shares_cross_attention(encoder: MatchModel, decoder: CaptionModel) -> bool:
    return encoder.text.layers[0].cross is decoder.text.layers[0].cross
