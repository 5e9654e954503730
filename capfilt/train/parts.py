"""What stage files put together: data of a rank, vocabularies, and folders to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capfilt.data.loader import Loader
from capfilt.data.maker import Encoder
from capfilt.errors import ConfigError, ModelError
from capfilt.models.checkpoint import Role
from capfilt.models.convert import blip_tokenizer
from capfilt.models.harmless import open_folder
from capfilt.models.vocabulary import Vocabulary
from capfilt.train.config import TrainConfig
from capfilt.train.itc import ItcConfig
from capfilt.train.output import RECORD, SUMMARY
from capfilt.train.ranks import Ranks


def load_data(config: TrainConfig, ranks: Ranks, vocabulary: Path | Encoder) -> Loader:
    """The batches of this rank.

    Args:
        config: Of the training.
        ranks: Those who share a batch.
        vocabulary: What makes tokens of texts, or where BERT's lies.

    Raises:
        ConfigError: The ranks cannot divide a batch.
        InputError: A dataset is missing, empty, or has no texts.
    """
    words = _bert(vocabulary) if isinstance(vocabulary, Path) else vocabulary
    return Loader(
        config.data,
        rank=ranks.rank,
        world=ranks.count,
        batch_size=images_per_pass(config, ranks),
        vocabulary=words,
        seed=config.seed,
    )


def _bert(vocabulary: Path) -> Vocabulary:
    tokenizer = blip_tokenizer(vocabulary)
    return Vocabulary(
        tokenizer,
        start=tokenizer.bos_token_id,
        end=tokenizer.sep_token_id,
        size=len(tokenizer),
    )


def images_per_pass(config: TrainConfig, ranks: Ranks) -> int:
    """Of one rank.

    Raises:
        ConfigError: The ranks cannot divide a pass evenly.
    """
    loop = config.loop
    return ranks.share(loop.batch_size // loop.accumulate, "loop.batch_size / loop.accumulate")


def vocabulary_of(vocabulary: str, weights: str, key: str = "model.text.weights") -> Path:
    """Where a pre-training's tokens are from: its own key, else the BERT that it starts from.

    Args:
        vocabulary: The key `vocabulary`.
        weights: The folder of BERT.
        key: What names that folder.

    Raises:
        ConfigError: Neither is given.
        ModelError: There is no such folder or hub id.
    """
    given = vocabulary or weights
    if not given:
        raise ConfigError(
            "vocabulary is not set: give BERT's vocab.txt or a tokenizer's folder, or a BERT "
            f"checkpoint as {key}"
        )
    return Path(given) if Path(given).is_file() else resolved("vocabulary", given)


def start_folder(start: str, role: Role, stage: str = "blip_pretrain") -> Path:
    """The checkpoint that a finetuning starts from.

    Args:
        start: A folder or hub id of transformers' layout, or the output folder of a training,
            whose module of that role is taken.
        role: "captioner" or "filter".
        stage: That makes such a module.

    Raises:
        ConfigError: It is not given.
        ModelError: There is no such folder or hub id.
    """
    if not start:
        which = "-2" if stage.startswith("blip2") else ""
        raise ConfigError(
            f"model.start is not set: give the output folder of {stage}, or a BLIP{which} "
            f"{role}'s folder or hub id"
        )
    training = Path(start).expanduser()
    if not (training / RECORD).is_file():
        return resolved("model.start", start)
    if (training / role / "config.json").is_file():
        return resolved("model.start", str(training / role))
    why = f"made no {role}" if (training / SUMMARY).is_file() else "is not finished: train it on"
    raise ModelError(f"model.start: the training in {start} {why}")


def resolved(key: str, source: str) -> Path:
    """The folder that a key names.

    Raises:
        ModelError: There is no such folder or hub id, or it is not harmless (`open_folder`).
    """
    try:
        return open_folder(source)
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from None


def ramped(itc: ItcConfig, epochs: float, steps_per_epoch: float) -> ItcConfig:
    """Soft targets that grow over the first epochs, unless the config says over which steps."""
    steps = itc.ramp_steps or max(1, round(epochs * steps_per_epoch))
    return replace(itc, ramp_steps=steps)
