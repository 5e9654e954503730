"""Stage `blip2_stage2`: the Q-Former of stage 1 learns to speak to a frozen language model.

    out of blip2_stage1 + a language model --> out/captioner --> capfilt run --captioner

Batch and rates are those for OPT; FlanT5 has batches of 1520. 80,000 steps.

Source: BLIP-2, arXiv:2301.12597, sections 3.2 and 3.4; its code, `pretrain_stage2.yaml`.
"""

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip2_parts import keep_features, load_generative
from capfilt.train.config import Blip2Stage2Config, LoopConfig, OptimiserConfig, ScheduleConfig
from capfilt.train.parts import load_data
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

CONFIG = Blip2Stage2Config(
    # A random resized crop and a flip.
    data=DataConfig(
        image_size=224, max_tokens=32, augment=AugmentConfig(min_scale=0.5, operations=0)
    ),
    optimiser=OptimiserConfig(lr=1e-4, weight_decay=0.05, decay_all=False, betas=(0.9, 0.98)),
    schedule=ScheduleConfig(decay="cosine_by_step", min_lr=5e-5, warmup_steps=2000, warmup_lr=1e-6),
    loop=LoopConfig(steps=80_000, batch_size=1920),
)


def build(config: Blip2Stage2Config, ranks: Ranks) -> Training:
    """Put the stage together."""
    model = load_generative(config, ranks, role="filter")
    data = load_data(config, ranks, model.texts)
    keep_features(model, config, data)
    return Training(model, data, exports={"captioner": model.export_captioner})
