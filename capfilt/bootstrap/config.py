"""What the experiment does: frozen sections. Where its output goes is the command's option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from capfilt.config import CaptionConfig, ComputeConfig, ScoringConfig, SelectionConfig
from capfilt.demo.nouns import NOUNS, choose_nouns
from capfilt.schema import build, check, merge, parse_overrides, parse_yaml, to_dict
from capfilt.train.config import (
    CaptionerFinetuneConfig,
    FilterFinetuneConfig,
    PretrainConfig,
)
from capfilt.train.stage import absolute

Arm = Literal["raw", "filter", "captioner", "both", "repeat", "continue", "shared"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True)
class WorldConfig:
    """The emoji world that the experiment writes below its output; counts are of pictures.

    With `web` 0 there is none: `data` says where the user's own images lie.
    """

    web: int = 0
    human: int = 0
    evaluation: int = 0
    side: int = 96  # pixels, of a picture
    nouns: int = len(NOUNS)  # kinds of things in it; fewer are learnt in fewer steps
    seed: int = 0  # another world for each; the same for all seeds of the experiment

    def __post_init__(self) -> None:
        for name in ("human", "evaluation"):
            check(not self.web or getattr(self, name) >= 2, f"{name} must be at least 2")
        choose_nouns(self.nouns)
        check(self.web >= 0, f"web must be 0 (none) or more, is {self.web}")


@dataclass(frozen=True)
class PlacesConfig:
    """Where images of one's own lie; forms as `capfilt run` and `capfilt evaluate` take them."""

    web: str = ""  # shards with web texts
    human: str = ""  # captions file
    human_images: str = ""  # folder that its paths start from; "": its own
    evaluation: str = ""  # captions file of other images
    evaluation_images: str = ""
    pairs: str = ""  # labelled pairs of the same images; "": the filter's AUC is not measured


@dataclass(frozen=True)
class RunSection:
    """Of `capfilt run`: everything but the models, which the experiment makes."""

    captions: CaptionConfig = field(default_factory=CaptionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check(
            self.scoring.match_prob and self.selection.min_match_prob is not None,
            "selection.min_match_prob: the arms and the noise ratio need one",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured of every new model."""

    k_test: int = 16  # candidates of a query that ITM ranks again; 0: ITC alone
    captions: CaptionConfig = field(default_factory=lambda: CaptionConfig(method="greedy"))
    finetune: bool = True  # captions after the captioner's finetuning, too

    def __post_init__(self) -> None:
        check(self.k_test >= 0, f"k_test must be 0 (ITC alone) or more, is {self.k_test}")


@dataclass(frozen=True)
class BootstrapConfig:
    """The resolved config of `capfilt train bootstrap`.

    All pre-trainings have `pretrain.loop.steps`, so that no arm has more training than another.
    """

    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, order, captions: the whole loop for each
    arms: tuple[Arm, ...] = ARMS
    rounds: int = 1  # further ones begin with the model that `both` gave
    world: WorldConfig = field(default_factory=WorldConfig)
    data: PlacesConfig = field(default_factory=PlacesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    captioner: CaptionerFinetuneConfig = field(default_factory=CaptionerFinetuneConfig)
    filter: FilterFinetuneConfig = field(default_factory=FilterFinetuneConfig)
    run: RunSection = field(default_factory=RunSection)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        places = [name for name, place in to_dict(self.data).items() if place]
        check(
            not (self.world.web and places),
            f"data ({', '.join(places)}) and world: give one; world.web=0 for images of your own",
        )
        check(bool(self.seeds), "seeds: is empty")
        check(min(self.seeds) >= 0, f"seeds must be 0 or more, are {list(self.seeds)}")
        for name in ("seeds", "arms"):
            chosen = getattr(self, name)
            check(len(set(chosen)) == len(chosen), f"{name}: has one twice")
        check(self.rounds >= 1, f"rounds must be at least 1, is {self.rounds}")
        check(
            self.rounds == 1 or "both" in self.arms,
            "arms: lacks `both`, whose model begins the second round",
        )
        check(self.pretrain.loop.steps > 0, "pretrain.loop.steps: is not set; equal for all arms")
        for name in ("pretrain", "captioner", "filter"):
            _check_own(name, getattr(self, name))
        self._check_stages()

    def _check_stages(self) -> None:
        """What the later stages would find only when the earlier ones are done."""
        patch = self.pretrain.model.image.patch_size
        for name in ("captioner", "filter"):
            side = getattr(self, name).model.image_size
            check(
                side % patch == 0,
                f"{name}.model.image_size is {side}, no multiple of "
                f"pretrain.model.image.patch_size ({patch})",
            )
        for name in ("pretrain", "filter"):
            section = getattr(self, name)
            images = section.loop.batch_size // section.loop.accumulate
            check(
                section.model.itc.queue % images == 0,
                f"{name}.model.itc.queue must be a multiple of the images of a pass ({images})",
            )
            check(images > 1, f"{name}.loop: a pass of 1 image has no negatives for ITM")


def resolve(
    default: BootstrapConfig,
    *,
    yaml_text: str = "",
    yaml_name: str = "config",
    overrides: Sequence[str] = (),
) -> BootstrapConfig:
    """The experiment's config with a YAML file's values, then those of `--set a.b=c`.

    Raises:
        ConfigError: An unknown key, a value of the wrong type or out of range.
    """
    tree = to_dict(default)
    merge(tree, parse_yaml(yaml_text, yaml_name))
    merge(tree, parse_overrides(overrides, example="pretrain.loop.steps=2000"))
    return build(BootstrapConfig, absolute(tree))


def _check_own(
    name: str, section: PretrainConfig | CaptionerFinetuneConfig | FilterFinetuneConfig
) -> None:
    """Refuse what the experiment itself decides."""
    check(not section.data.datasets, f"{name}.data.datasets: are the arms'; see `data`, `world`")
    check(not section.model.start, f"{name}.model.start: is decided by the loop")
    check(section.seed == 0, f"{name}.seed: is one of `seeds`")
