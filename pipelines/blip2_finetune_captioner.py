"""Stage `blip2_finetune_captioner`: stage 2 goes on with human captions, its image encoder, too.

    out of blip2_stage2 + human pairs --> out/captioner --> capfilt run --captioner

Source: BLIP-2, arXiv:2301.12597, section 4.2; its code, `caption_coco_ft.yaml`.
"""

from capfilt.data.config import AugmentConfig, DataConfig
from capfilt.train.blip2_generate import GenerateConfig
from capfilt.train.blip2_parts import keep_features, load_generative
from capfilt.train.config import Blip2Stage2Config, LoopConfig, OptimiserConfig, ScheduleConfig
from capfilt.train.parts import load_data
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

CONFIG = Blip2Stage2Config(
    data=DataConfig(
        image_size=364, max_tokens=32, augment=AugmentConfig(min_scale=0.5, operations=0)
    ),
    optimiser=OptimiserConfig(lr=1e-5, weight_decay=0.05, decay_all=False, betas=(0.9, 0.999)),
    schedule=ScheduleConfig(decay="cosine", min_lr=0.0, warmup_steps=1000, warmup_lr=1e-8),
    loop=LoopConfig(epochs=5, batch_size=256),
    model=GenerateConfig(image_size=364, prompt="a photo of", split_text=False, train_image=True),
)


def build(config: Blip2Stage2Config, ranks: Ranks) -> Training:
    """Put the stage together."""
    model = load_generative(config, ranks, role="captioner")
    data = load_data(config, ranks, model.texts)
    keep_features(model, config, data)
    return Training(model, data, exports={"captioner": model.export_captioner})
