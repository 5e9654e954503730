"""Stage `blip2_stage1`: a Q-Former learns to read a frozen image encoder, by ITC, ITM and ITG.

    datasets --> out/filter --> blip2_stage2, or capfilt run --filter

Sizes, batch and rates are those for ViT-g; CLIP's ViT-L/14 has batches of 2320. 250,000 steps.

Source: BLIP-2, arXiv:2301.12597, sections 3.1 and 3.4; its code, `pretrain_stage1.yaml`.
"""

from functools import partial

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip2_parts import keep_features, load_representative
from capfilt.train.config import Blip2Stage1Config, LoopConfig, OptimiserConfig, ScheduleConfig
from capfilt.train.parts import images_per_pass, load_data, vocabulary_of
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

CONFIG = Blip2Stage1Config(
    # A random resized crop and a flip.
    data=DataConfig(
        image_size=224, max_tokens=32, augment=AugmentConfig(min_scale=0.5, operations=0)
    ),
    optimiser=OptimiserConfig(lr=1e-4, weight_decay=0.05, decay_all=False, betas=(0.9, 0.98)),
    schedule=ScheduleConfig(decay="cosine_by_step", min_lr=1e-5, warmup_steps=2000, warmup_lr=1e-6),
    loop=LoopConfig(steps=250_000, batch_size=1680),
)


def build(config: Blip2Stage1Config, ranks: Ranks) -> Training:
    """Put the stage together."""
    weights = config.model.qformer.weights
    vocabulary = vocabulary_of(config.vocabulary, weights, "model.qformer.weights")
    data = load_data(config, ranks, vocabulary)
    model = load_representative(config, ranks, vocabulary)
    keep_features(model, config, data)
    model.check_batch(images_per_pass(config, ranks), ranks.count)
    return Training(
        model, data, exports={"filter": partial(model.export_filter, vocabulary=vocabulary)}
    )
