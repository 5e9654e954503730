"""Stage `bootstrap`: the paper's whole loop with its ablations, from a noisy web to a table.

    web + human --pre-train--> first model --finetune--> captioner, filter --run--> texts of an arm
    texts of an arm + human --pre-train--> a new model --measure--> results.md, .json, .svg

    raw         the web as it came: what the first model has seen, so this is the first model
    filter      web texts that the filter keeps
    captioner   web texts and captions, unfiltered
    both        web texts and captions that the filter keeps
    repeat      raw, for as many more steps as `both` would have in the paper (Table 12)
    continue    texts of `both`; the first model goes on, in place of a new one (Table 13)
    shared      as `both`, by a captioner and a filter that share their weights (Table 4)

All other pre-trainings have as many steps, at the same rates and with the same share of the human
set. A text is an example of its own, as in the published code.

Source: BLIP, arXiv:2201.12086, sections 3.3 and 4.2 to 4.4, Tables 1, 4, 12 and 13.
"""

from dataclasses import replace

from capfilt.bootstrap.config import BootstrapConfig
from capfilt.bootstrap.seed import Seed
from capfilt.train.stage import Stage

PRETRAIN = Stage.load("blip_pretrain").config

CONFIG = BootstrapConfig(
    # 20 epochs of the 15.3 million texts of the paper's 14 million images.
    pretrain=replace(PRETRAIN, loop=replace(PRETRAIN.loop, steps=106_000)),
    captioner=Stage.load("blip_finetune_captioner").config,
    filter=Stage.load("blip_finetune_filter").config,
)


def bootstrap(seed: Seed) -> None:
    """Put the parts of one seed on the agenda; `seed.arm` leaves out arms that nobody wants."""
    arms, web = seed.config.arms, seed.material.web_texts()

    first = seed.pretrain("raw", web)
    seed.arm("raw", web)
    captioner, filter_ = seed.finetune(first, "captioner"), seed.finetune(first, "filter")
    seed.measure_modules("1", captioner, filter_)
    if "captioner" in arms:  # before all that a poor filter could end
        unfiltered = seed.run("unfiltered", captioner, None)
        seed.arm("captioner", seed.texts(unfiltered))
    run = seed.run("1", captioner, filter_)
    seed.measure_harvest("1", run)

    model = seed.arm("both", seed.texts(run))
    seed.arm("filter", seed.texts(run, "web"))
    seed.arm("repeat", web, as_long_as=seed.texts(run))
    seed.arm("continue", seed.texts(run), start=first)

    if "shared" in arms:
        captioner, filter_ = seed.finetune_jointly(first)
        seed.measure_modules("shared", captioner, filter_)
        run = seed.run("shared", captioner, filter_)
        seed.measure_harvest("shared", run)
        seed.arm("shared", seed.texts(run))

    for number in range(2, seed.config.rounds + 1):
        captioner, filter_ = seed.finetune(model, "captioner"), seed.finetune(model, "filter")
        seed.measure_modules(f"{number}", captioner, filter_)
        run = seed.run(f"{number}", captioner, filter_)
        seed.measure_harvest(f"{number}", run)
        model = seed.arm(f"both-{number}", seed.texts(run))
