"""Stage `blip_finetune_captioner`: a captioner from a pre-trained BLIP and human captions, by LM.

    out of blip_pretrain + human pairs --> out/captioner --> capfilt run --captioner

Rates are those of BLIP-base; BLIP-large has a learning rate of 2e-6.

Source: BLIP, arXiv:2201.12086, section 3.3; its code, `configs/caption_coco.yaml`.
"""

from dataclasses import replace
from functools import partial

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip import CaptionerConfig, CaptionerFinetune
from capfilt.train.config import (
    CaptionerFinetuneConfig,
    LoopConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from capfilt.train.parts import images_per_pass, load_data, start_folder
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

CONFIG = CaptionerFinetuneConfig(
    # 40 tokens in the code, of which "a picture of " takes three.
    data=DataConfig(image_size=384, max_tokens=37, augment=AugmentConfig(min_scale=0.5)),
    optimiser=OptimiserConfig(lr=1e-5, weight_decay=0.05),
    schedule=ScheduleConfig(decay="cosine", min_lr=0.0, warmup_steps=0),
    loop=LoopConfig(epochs=5, batch_size=256),
    model=CaptionerConfig(image_size=384),
)


def build(config: CaptionerFinetuneConfig, ranks: Ranks) -> Training:
    """Put the stage together."""
    start = start_folder(config.model.start, "captioner")
    data = load_data(config, ranks, start)
    model = CaptionerFinetune.load(
        replace(config.model, start=str(start)), vocabulary=start, seed=config.seed
    )
    model.check_batch(images_per_pass(config, ranks), ranks.count)
    return Training(
        model, data, exports={"captioner": partial(model.export_captioner, vocabulary=start)}
    )
