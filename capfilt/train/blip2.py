"""Stage 1 of BLIP-2: a Q-Former learns to read a frozen image encoder, by ITC, ITM and ITG.

`Blip2Represent` is a module as those of `capfilt.train.blip` are: `forward(batch, step)` gives
losses by name. The frozen encoder is in no `state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.data.batch import Batch
from capfilt.models.blip2 import QueryConfig, QueryMatchModel
from capfilt.models.convert import blip2_tokenizer
from capfilt.models.image_encoder import load_image_encoder
from capfilt.models.med import PackedTexts
from capfilt.models.memory import KeyValueMemory
from capfilt.models.qformer import QFormerConfig
from capfilt.models.text_transformer import LanguageHead
from capfilt.models.vit import ViT
from capfilt.train import initial
from capfilt.train.blip2_export import export_match_model
from capfilt.train.features import Features
from capfilt.train.frozen import PartlyFrozen
from capfilt.train.itc import Contrast
from capfilt.train.itg import itg_loss
from capfilt.train.itm import ItmConfig, itm_loss
from capfilt.train.matcher import Drawn, Passes
from capfilt.train.negatives import Draws
from capfilt.train.query_itc import QueryItc, QueryItcConfig
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, FrozenImageTower, QueryTower, RecomputeConfig


@dataclass(frozen=True)
class ItgConfig:
    """Source: BLIP-2's code, `Qformer.py`."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), is {self.label_smoothing}")


@dataclass(frozen=True)
class RepresentConfig:
    """Stage 1.

    Source: BLIP-2, arXiv:2301.12597, sections 3.1 and 3.4.
    """

    image: FrozenImageTower = field(default_factory=FrozenImageTower)
    qformer: QueryTower = field(default_factory=QueryTower)
    embedding: int = 256
    itc: QueryItcConfig = field(default_factory=QueryItcConfig)
    itm: ItmConfig = field(default_factory=lambda: ItmConfig(negatives="all_ranks"))
    itg: ItgConfig = field(default_factory=ItgConfig)
    drop: DropConfig = field(default_factory=DropConfig)  # `path`: of no use with a frozen encoder
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)  # nor is `image`


class Blip2Represent(PartlyFrozen):
    """ITC, ITM and ITG over one pass of the queries.

    The queries of an image run once for ITC and leave their keys and values for ITG; ITM runs them
    again, with each text. The image encoder's last norm learns, as in the published code.
    """

    def __init__(
        self,
        config: RepresentConfig,
        vit: ViT,
        tokens: Tokens,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make a Q-Former from scratch; see `load`."""
        super().__init__()
        self.config = config
        sizes = QueryConfig(vit.config, _qformer(config, vit, tokens), config.embedding)
        none = replace(vit.config, layers=0)  # the encoder need not be drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = QueryMatchModel(replace(sizes, image=none))
            self.head = LanguageHead(sizes.qformer)
            initial.from_scratch(self.model, self.head)
        self.model.config, self.model.vit = sizes, vit
        self.freeze(vit, but=vit.norm, dtype=dtype)
        self.itc = QueryItc(config.itc)
        self.features = Features(vit)
        self._tokens = tokens
        self._seed = seed
        self._passes = Passes()

    @classmethod
    def load(
        cls, config: RepresentConfig, *, vocabulary: Path, seed: int, dtype: torch.dtype
    ) -> Blip2Represent:
        """Make a model on the CPU from what `config` names.

        Args:
            config: What is trained.
            vocabulary: BERT's `vocab.txt`, or a folder with a tokenizer.
            seed: Of new weights, and of the draws of negatives.
            dtype: Of the frozen encoder.

        Raises:
            ModelError: A folder holds no such checkpoint, or tensors of other sizes.
        """
        vit = load_image_encoder(Path(config.image.weights), config.image.image_size)
        made = cls(config, vit, Tokens.of_bert(blip2_tokenizer(vocabulary)), seed=seed, dtype=dtype)
        if config.qformer.weights:
            initial.load_query_weights(made.model.qformer, config.qformer.weights, made.head)
        return made

    def check_batch(self, images: int, ranks: int) -> None:
        """See `capfilt.train.blip.BlipPretrain.check_batch`.

        Raises:
            ConfigError: A batch has no negatives.
        """
        self.config.itm.check_batch(images, ranks)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The losses "itc", "itm" and "itg".

        Args:
            batch: Of this rank, on the model's device; as many images on every rank.
            step: Of the optimiser, from 0.

        Raises:
            ConfigError: No image of the step has a text that is not its own.
        """
        model, count = self.model, len(batch)
        features = self.features.of(batch)
        memory = self._memory(features)
        queries, trace = model.qformer.read(count, memory)
        contrast = self._contrast(queries, batch)
        drawn = self._draw(contrast, features, batch, step)
        # The text's pass keeps the device busy until the draws have arrived.
        itg = itg_loss(
            model.qformer,
            self.head,
            trace,
            batch.texts,
            self._tokens.decode,
            label_smoothing=self.config.itg.label_smoothing,
        )
        if drawn.others:
            memory = memory.plus(self._memory(drawn.images[count:]))
        itm = itm_loss(model, memory, drawn.matching(), self._tokens.match)
        return {"itc": contrast.loss, "itm": itm, "itg": itg}

    def export_filter(self, folder: Path, vocabulary: Path) -> None:
        """Save as a `Blip2ForImageTextRetrieval`, which has no place for ITG's head."""
        export_match_model(self.model, folder, vocabulary)

    def _memory(self, features: Tensor) -> KeyValueMemory:
        norm = self.model.vit.norm
        memory = self.model.qformer.remember(norm(features.to(norm.weight.dtype)))
        assert isinstance(memory, KeyValueMemory)  # a model that is packed does not learn
        return memory

    def _contrast(self, queries: Tensor, batch: Batch) -> Contrast:
        model = self.model
        texts = PackedTexts.of(
            [[[self._tokens.classify, *ids]] for ids in batch.texts], queries.device
        )
        images = F.normalize(model.image_projection(queries).float(), dim=-1)
        found: Contrast = self.itc(
            images, model.text_embeddings(texts), batch.image_ids, batch.text_ids
        )
        return found

    def _draw(self, contrast: Contrast, features: Tensor, batch: Batch, step: int) -> Drawn:
        all_ranks = self.config.itm.negatives == "all_ranks"
        stream = f"{step}/{self._passes.number(step)}"
        draws = Draws(contrast, all_ranks=all_ranks, seed=self._seed, stream=stream)
        longest = self.model.config.qformer.max_tokens
        return Drawn(draws, features, batch.texts, longest, all_ranks=all_ranks)


def _qformer(config: RepresentConfig, vit: ViT, tokens: Tokens) -> QFormerConfig:
    tower = config.qformer
    return QFormerConfig(
        vocabulary=tokens.size,
        width=tower.width,
        layers=tower.layers,
        heads=tower.heads,
        ffn=4 * tower.width,
        image_width=vit.config.width,
        dropout=config.drop.text,
        recompute=config.recompute.text,
        queries=tower.queries,
        cross_every=tower.cross_every,
    )
