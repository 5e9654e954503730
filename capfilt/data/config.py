"""Which data a training sees, in which proportions, and how its images are varied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from capfilt.record import Source
from capfilt.schema import check

SourceName = Literal["web", "synthetic", "human"]


@dataclass(frozen=True)
class DatasetConfig:
    """One dataset: output of `capfilt run`, shards of img2dataset, or a captions file.

    Attributes:
        path: Folder or URL of shards, or of a captions `.json` (COCO's form or BLIP's list).
        images: Of a captions file, the folder that its image paths start from; "": its own.
        weight: How often an epoch shows each example. 0.2 shows a fifth of them, and the other
            fifths in the next four epochs (LAION in the paper); 2.0 shows each twice.
        texts: "one" makes an image one example, with one of its texts drawn each time; "pairs"
            makes an example of each of its texts.
        sources: Which kept texts count. Raw shards have web texts, captions files human ones.
    """

    path: str
    images: str = ""
    weight: float = 1.0
    texts: Literal["one", "pairs"] = "one"
    sources: tuple[SourceName, ...] = ("web", "synthetic", "human")

    def __post_init__(self) -> None:
        check(bool(self.path), "path is not set")
        check(0 < self.weight <= 1000, f"weight must be above 0 (to 1000), is {self.weight}")
        check(bool(self.sources), f"sources must be some of {', '.join(Source)}")


@dataclass(frozen=True)
class AugmentConfig:
    """How an image is varied; the defaults are BLIP's for pre-training (finetuning crops at 0.5).

    Source: BLIP, arXiv:2201.12086, section 4.1, and its code (`data/__init__.py`).
    """

    enabled: bool = True  # False: the whole image, resized as at inference
    min_scale: float = 0.2  # the smallest crop, as a share of the image's area
    flip: bool = True  # off where captions speak of left and right
    operations: int = 2  # of RandAugment, each applied with probability 0.5
    magnitude: int = 5  # of 10
    fixed: bool = False  # an image is varied alike whenever it is seen, as a cache of it needs

    def __post_init__(self) -> None:
        check(0 < self.min_scale <= 1, f"min_scale must be in (0, 1], is {self.min_scale}")
        check(self.operations >= 0, f"operations must be 0 (off) or more, is {self.operations}")
        check(0 <= self.magnitude <= 10, f"magnitude must be in [0, 10], is {self.magnitude}")


@dataclass(frozen=True)
class DataConfig:
    """The resolved data section of a training's config."""

    datasets: tuple[DatasetConfig, ...] = ()
    image_size: int = 224
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    max_tokens: int = 30  # with the first token and [SEP]; a prompt comes on top
    max_words: int = 30
    workers: int = 0  # processes that decode, of this rank; 0: from the cores at hand

    def __post_init__(self) -> None:
        check(self.image_size >= 1, f"image_size must be at least 1, is {self.image_size}")
        check(3 <= self.max_tokens <= 512, f"max_tokens must be in [3, 512], is {self.max_tokens}")
        check(self.max_words >= 1, f"max_words must be at least 1, is {self.max_words}")
        check(self.workers >= 0, f"workers must be 0 (automatic) or more, is {self.workers}")
