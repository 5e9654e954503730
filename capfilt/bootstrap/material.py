"""What the experiment works on: a noisy web, a small human set, and images to measure on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from capfilt.bootstrap.config import PlacesConfig, WorldConfig
from capfilt.data.config import DatasetConfig
from capfilt.data.sources import open_dataset
from capfilt.demo.dataset import make_world
from capfilt.demo.grammar import words
from capfilt.demo.tiny import vocabulary
from capfilt.demo.web import words as web_words
from capfilt.errors import ConfigError
from capfilt.evaluate.pairs import read_captioned, read_labelled
from capfilt.evaluate.pictures import Pictures
from capfilt.io import files
from capfilt.io.publish import write_bytes
from capfilt.train.config import PretrainConfig

_MADE = "made"  # of a world: written last
_PROMPT = "a picture of"


@dataclass(frozen=True)
class Material:
    """Places of everything; `""` where there is none."""

    web: str  # shards
    human: str  # captions file
    human_images: str
    evaluation: str  # captions file
    evaluation_images: str
    pairs: str  # labelled pairs of the evaluation's images
    vocabulary: str
    web_truth: str = ""  # of the emoji world, as `read_truth` reads it
    evaluation_truth: str = ""

    @classmethod
    def of_world(cls, folder: Path) -> Material:
        """Where `make` writes the emoji world."""
        return cls(
            web=str(folder / "web"),
            human=str(folder / "human/captions.json"),
            human_images=str(folder / "human/images"),
            evaluation=str(folder / "evaluation/captions.json"),
            evaluation_images=str(folder / "evaluation/images"),
            pairs=str(folder / "evaluation/pairs.json"),
            vocabulary=str(folder / "vocab.txt"),
            web_truth=str(folder / "web-truth.jsonl"),
            evaluation_truth=str(folder / "evaluation/truth.jsonl"),
        )

    @classmethod
    def of_places(cls, places: PlacesConfig, pretrain: PretrainConfig) -> Material:
        """The user's own.

        Raises:
            ConfigError: Something that is needed is not given.
        """
        for name in ("web", "human", "evaluation"):
            if not getattr(places, name):
                raise ConfigError(f"data.{name} is not set (or set world.web, for emoji)")
        if not (pretrain.vocabulary or pretrain.model.text.weights):
            raise ConfigError("pretrain.vocabulary is not set: give BERT's vocab.txt")
        given = {f.name: getattr(places, f.name) for f in fields(places)}
        found = {name: place and files.absolute(place) for name, place in given.items()}
        for name in ("human", "evaluation"):
            found[f"{name}_images"] = found[f"{name}_images"] or files.parent(found[name])
        return cls(**found, vocabulary=pretrain.vocabulary)

    def check(self) -> None:
        """Look at everything, before hours of training end at a misspelt name.

        Raises:
            CapfiltError: Something is missing or has no form that is known.
        """
        open_dataset("web", self.web_texts())
        open_dataset("human", self.human_texts())
        pictures = Pictures(self.evaluation_images)
        pictures.check(pair.image for pair in read_captioned(self.evaluation))
        if self.pairs:
            pictures.check(pair.image for pair in read_labelled(self.pairs))

    def web_texts(self) -> DatasetConfig:
        """The web as it came."""
        return DatasetConfig(self.web, texts="pairs", sources=("web",))

    def human_texts(self) -> DatasetConfig:
        """The human set."""
        return DatasetConfig(self.human, images=self.human_images, texts="pairs")


def make(folder: Path, world: WorldConfig) -> bool:
    """Write the emoji world and its vocabulary; False where it is there already."""
    if (folder / _MADE).exists():
        return False
    make_world(
        folder,
        web=world.web,
        human=world.human,
        evaluation=world.evaluation,
        seed=world.seed,
        side=world.side,
        nouns=world.nouns,
    )
    lines = vocabulary([*words(), *web_words(), *_PROMPT.split()])
    write_bytes(str(folder / "vocab.txt"), ("\n".join(lines) + "\n").encode())
    write_bytes(str(folder / _MADE), b"")
    return True
