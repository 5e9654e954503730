"""Stage `blip_pretrain`: a BLIP from image-text pairs, by ITC, ITM and LM.

    datasets --> out/captioner, out/filter --> blip_finetune_captioner, blip_finetune_filter

Sizes, batch and rates are those of BLIP-base; BLIP-large has `model.image` 1024 wide with 24 layers
and 16 heads, drop path 0.1, batches of 2400 and a learning rate of 2e-4.

Source: BLIP, arXiv:2201.12086, sections 3.2 and 4.1; its code, `configs/pretrain.yaml`.
"""

from dataclasses import replace
from functools import partial

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip import BlipPretrain
from capfilt.train.config import LoopConfig, OptimiserConfig, PretrainConfig, ScheduleConfig
from capfilt.train.parts import images_per_pass, load_data, ramped, start_folder, vocabulary_of
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

RAMP_EPOCHS = 2  # over which the soft targets' weight grows

CONFIG = PretrainConfig(
    data=DataConfig(image_size=224, max_tokens=30, augment=AugmentConfig(min_scale=0.2)),
    optimiser=OptimiserConfig(lr=3e-4, weight_decay=0.05),
    schedule=ScheduleConfig(
        decay="factor", factor=0.9, min_lr=1e-6, warmup_steps=3000, warmup_lr=1e-6
    ),
    loop=LoopConfig(epochs=20, batch_size=2880),
)


def build(config: PretrainConfig, ranks: Ranks) -> Training:
    """Put the stage together."""
    start = config.model.start and start_folder(config.model.start, "filter")
    vocabulary = vocabulary_of(config.vocabulary or str(start), config.model.text.weights)
    data = load_data(config, ranks, vocabulary)
    steps_per_epoch = data.steps_per_epoch / config.loop.accumulate
    itc = ramped(config.model.itc, RAMP_EPOCHS, steps_per_epoch)
    model = BlipPretrain.load(
        replace(config.model, itc=itc), vocabulary=vocabulary, seed=config.seed
    )
    model.check_batch(images_per_pass(config, ranks), ranks.count)
    return Training(
        model,
        data,
        exports={
            "captioner": partial(model.export_captioner, vocabulary=vocabulary),
            "filter": partial(model.export_filter, vocabulary=vocabulary),
        },
    )
