"""Stage `blip_finetune_filter`: a filter from a pre-trained BLIP and human pairs, by ITC and ITM.

    out of blip_pretrain + human pairs --> out/filter --> capfilt run --filter

Rates are those of BLIP-base; BLIP-large has a learning rate of 5e-6.

Source: BLIP, arXiv:2201.12086, section 3.3; its code, `configs/retrieval_coco.yaml`.
"""

from dataclasses import replace
from functools import partial

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip import FilterConfig, FilterFinetune
from capfilt.train.config import FilterFinetuneConfig, LoopConfig, OptimiserConfig, ScheduleConfig
from capfilt.train.itm import ItmConfig
from capfilt.train.parts import images_per_pass, load_data, ramped, start_folder
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

RAMP_EPOCHS = 1  # over which the soft targets' weight grows

CONFIG = FilterFinetuneConfig(
    data=DataConfig(image_size=384, max_tokens=35, augment=AugmentConfig(min_scale=0.5)),
    optimiser=OptimiserConfig(lr=1e-5, weight_decay=0.05),
    schedule=ScheduleConfig(decay="cosine", min_lr=0.0, warmup_steps=0),
    loop=LoopConfig(epochs=6, batch_size=256),
    model=FilterConfig(image_size=384, itm=ItmConfig(negatives="all_ranks")),
)


def build(config: FilterFinetuneConfig, ranks: Ranks) -> Training:
    """Put the stage together."""
    start = start_folder(config.model.start, "filter")
    data = load_data(config, ranks, start)
    steps_per_epoch = data.steps_per_epoch / config.loop.accumulate
    itc = ramped(config.model.itc, RAMP_EPOCHS, steps_per_epoch)
    model = FilterFinetune.load(
        replace(config.model, start=str(start), itc=itc), vocabulary=start, seed=config.seed
    )
    model.check_batch(images_per_pass(config, ranks), ranks.count)
    return Training(model, data, exports={"filter": partial(model.export_filter, vocabulary=start)})
