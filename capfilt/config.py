"""What a run does: one frozen dataclass per part, YAML in, one resolved config out.

Where things lie (input, output, cluster) are the command's options and not part of this. Values
come in this order, later ones winning: defaults, preset, YAML file, command options, `--set a.b=c`.
Everything is checked before a model is loaded; an error names the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capfilt.errors import ConfigError
from capfilt.schema import build, check, merge, nest, parse_overrides, parse_yaml

NONE = "none"  # `captioner: none` and `filter: none` switch a module off (the paper's ablations)


@dataclass(frozen=True)
class CaptionConfig:
    """How the captioner decodes.

    Lengths count every token of the decoder, `[DEC]` and the prompt included, as BLIP's published
    code and transformers do. `top_k` is off as in the paper; the published code inherits 50 from
    transformers without saying so.

    Source: BLIP, arXiv:2201.12086, sections 3.3 and 4.2, and its code (`models/blip.py`).
    """

    per_image: int = 1
    method: Literal["nucleus", "beam", "greedy"] = "nucleus"
    prompt: str | None = None  # None: that of the captioner's paper
    top_p: float = 0.9
    top_k: int = 0  # 0 is off
    temperature: float = 1.0
    repetition_penalty: float | None = None  # None: 1.1 for nucleus, else 1.0, as in BLIP's code
    num_beams: int = 3
    min_length: int = 5
    max_length: int = 20

    def __post_init__(self) -> None:
        if self.repetition_penalty is None:
            penalty = 1.1 if self.method == "nucleus" else 1.0
            object.__setattr__(self, "repetition_penalty", penalty)
        assert self.repetition_penalty is not None
        check(self.per_image >= 1, f"per_image must be at least 1, is {self.per_image}")
        check(0 < self.top_p <= 1, f"top_p must be in (0, 1], is {self.top_p}")
        check(self.top_k >= 0, f"top_k must be 0 (off) or more, is {self.top_k}")
        check(self.temperature > 0, f"temperature must be above 0, is {self.temperature}")
        check(
            self.repetition_penalty > 0,
            f"repetition_penalty must be above 0, is {self.repetition_penalty}",
        )
        check(self.num_beams >= 1, f"num_beams must be at least 1, is {self.num_beams}")
        check(
            0 <= self.min_length <= self.max_length,
            f"min_length must be between 0 and max_length ({self.max_length}), "
            f"is {self.min_length}",
        )
        distinct = {"nucleus": self.per_image, "beam": self.num_beams, "greedy": 1}[self.method]
        check(
            self.per_image <= distinct,
            f"per_image is {self.per_image}, but {self.method} decoding gives only {distinct}",
        )


@dataclass(frozen=True)
class ScoringConfig:
    """Which scores the filter gives, and what of a text it sees.

    Source: BLIP's code: retrieval evaluation puts `[ENC]` first, reads 35 tokens and 30 words.
    """

    match_prob: bool = True
    similarity: bool = False
    itm_token: Literal["enc", "cls"] = "enc"
    max_tokens: int = 35
    max_words: int = 30

    def __post_init__(self) -> None:
        check(3 <= self.max_tokens <= 512, f"max_tokens must be in [3, 512], is {self.max_tokens}")
        check(self.max_words >= 1, f"max_words must be at least 1, is {self.max_words}")


@dataclass(frozen=True)
class SelectionConfig:
    """Which texts are kept. Rules that are not None hold together.

    Source: BLIP section 3.3 (unmatched texts are dropped; the authors use 0.5) and BLIP-2,
    arXiv:2301.12597, section 3.4 (the two most similar of web and synthetic).
    """

    min_match_prob: float | None = 0.5
    top_k: int | None = None  # most similar texts of an image, web and synthetic together

    def __post_init__(self) -> None:
        if self.min_match_prob is not None:
            check(
                0 <= self.min_match_prob <= 1,
                f"min_match_prob is a probability in [0, 1], is {self.min_match_prob}",
            )
        if self.top_k is not None:
            check(self.top_k >= 1, f"top_k must be at least 1, is {self.top_k}")


# Pillow's names of what is decoded; with others it would ask programs of the machine, as for EPS.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class ImageConfig:
    """Which images are worth decoding; others fail, or are dropped, with a reason."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 2**27  # 134 megapixels, 400 MB as RGB
    min_side: int = 16  # shorter side in pixels; tracking pixels and spacers are below
    dedupe: Literal["exact", "perceptual"] | None = None  # of copies the first one stays
    exclude: tuple[str, ...] = ()  # evaluation sets: folders of images, or lists of hashes

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "min_side"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1")


@dataclass(frozen=True)
class OutputConfig:
    """What a data shard looks like."""

    format: Literal["webdataset", "parquet"] = "webdataset"
    images: bool = True  # False: texts and scores only


@dataclass(frozen=True)
class ComputeConfig:
    """How the hardware is used.

    Of these only `precision` is part of the fingerprint. The batch size changes the last digits of
    a score (about 1e-6 in fp32), as hardware and library versions do, but no caption.
    """

    batch_size: int = 0  # images; 0: 64 on CUDA, 8 on a CPU core
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 on CPU
    decode_threads: int = 0  # image decoding threads per worker; 0: from the cores at hand
    max_attempts: int = 3  # per shard, before it is recorded as failed
    checkpoint_every: int = 2000  # images after which what a shard has is put aside; 0: never
    read_timeout_s: float = 600.0  # a shard of which nothing has come for so long has failed
    memory_limit_gb: float = 0.0  # 10^9 bytes, of each worker's own process; 0: none

    def __post_init__(self) -> None:
        check(self.batch_size >= 0, "batch_size must be 0 (automatic) or more")
        check(self.decode_threads >= 0, "decode_threads must be 0 (automatic) or more")
        check(self.max_attempts >= 1, f"max_attempts must be at least 1, is {self.max_attempts}")
        check(self.checkpoint_every >= 0, "checkpoint_every must be 0 (never) or more")
        check(self.read_timeout_s > 0, "read_timeout_s must be above 0")
        check(self.memory_limit_gb >= 0, "memory_limit_gb must be 0 (none) or more")


@dataclass(frozen=True)
class RunConfig:
    """The resolved config of `capfilt run`."""

    captioner: str = ""  # checkpoint folder or hub id, or "none"
    filter: str = ""
    seed: int = 0
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        for role in ("captioner", "filter"):
            check(
                bool(getattr(self, role)),
                f"{role} is not set: give a checkpoint folder or hub id, or `none`",
            )
        check(
            not (self.captioner == NONE and self.filter == NONE),
            "captioner and filter are both none: nothing to do",
        )
        if self.filter == NONE:  # nothing is scored, so no rule applies; the record says so
            off = dataclasses.replace(self.scoring, match_prob=False, similarity=False)
            object.__setattr__(self, "scoring", off)
            object.__setattr__(self, "selection", SelectionConfig(min_match_prob=None))
            return
        check(
            self.scoring.match_prob or self.scoring.similarity,
            "scoring.match_prob and scoring.similarity are both off: "
            "use `filter: none` to keep every text",
        )
        check(
            self.selection.min_match_prob is None or self.scoring.match_prob,
            "selection.min_match_prob needs scoring.match_prob",
        )
        check(
            self.selection.top_k is None or self.scoring.similarity,
            "selection.top_k ranks by similarity and needs scoring.similarity",
        )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "blip": {},  # the defaults are BLIP's
    "blip2": {
        "captions": {"per_image": 10},
        "scoring": {"match_prob": False, "similarity": True},
        "selection": {"min_match_prob": None, "top_k": 2},
    },
}


def resolve(
    *,
    yaml_text: str = "",
    yaml_name: str = "config",
    preset: str | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Make the one config of a run from all its sources.

    Args:
        yaml_text: A YAML mapping of `RunConfig`'s keys, plus an optional `preset`.
        yaml_name: What to call it in errors.
        preset: A name in `PRESETS`; None takes the YAML's, else "blip".
        options: Values of command options by dotted key; None values are left out.
        overrides: `a.b=c` strings, values read as YAML.

    Raises:
        ConfigError: An unknown key or preset, a value of the wrong type or out of range.
    """
    from_file = parse_yaml(yaml_text, yaml_name)
    from_overrides = parse_overrides(overrides, example="captions.top_p=0.95")
    in_file = from_file.pop("preset", None)
    name = from_overrides.pop("preset", None) or preset or in_file or "blip"
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset: {name!r} is none of {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    merge(tree, PRESETS[name])
    merge(tree, from_file)
    for key, value in (options or {}).items():
        if value is not None:
            merge(tree, nest(key, value))
    merge(tree, from_overrides)
    for role in ("captioner", "filter"):  # YAML's own `null` means the same as `none`
        if role in tree and tree[role] is None:
            tree[role] = NONE
    return build(RunConfig, tree, also=("preset",))
