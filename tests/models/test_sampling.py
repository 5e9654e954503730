"""Greedy and nucleus decoding against transformers' and plain sampling, on the same weights."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from capfilt.config import CaptionConfig
from capfilt.models import sampling
from capfilt.models.med import CaptionModel
from capfilt.models.sampling import sample_nucleus
from tests.models.conftest import make_images, normalised
from tests.models.decoding import END, PROMPT, ours, transformers_generate
from tests.models.test_uniforms import documented


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_on_200_images_gives_transformers_tokens(
    penalty: float, model: CaptionModel, hf_captioner: BlipForConditionalGeneration
) -> None:
    config = CaptionConfig(method="greedy", repetition_penalty=penalty)
    images = make_images(200)
    captions = ours(model, images, config)
    assert len({tuple(c[0]) for c in captions}) > 50
    assert len({len(c[0]) for c in captions}) > 5
    assert captions == transformers_generate(hf_captioner, images, config)


def plain_nucleus(
    reference: BlipForConditionalGeneration, images: Tensor, config: CaptionConfig, seed: int
) -> list[list[list[int]]]:
    """Nucleus sampling as one would first write it: no cache, no batch tricks, no early leaving."""
    assert config.repetition_penalty is not None
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
            MinLengthLogitsProcessor(config.min_length, END),
            TemperatureLogitsWarper(config.temperature),
            *([TopKLogitsWarper(config.top_k)] if config.top_k else []),
            *([TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []),
        ]
    )
    pixels = normalised(images).repeat_interleave(config.per_image, dim=0)
    rows = torch.tensor(PROMPT).repeat(len(pixels), 1)
    for step in range(config.max_length - len(PROMPT)):
        with torch.inference_mode():
            logits = reference(pixel_values=pixels, input_ids=rows).logits[:, -1].float()
        probabilities = processors(rows, logits).double().softmax(-1).tolist()
        chosen = []
        for row, weights in enumerate(probabilities):
            image, caption = divmod(row, config.per_image)
            number = documented(seed, f"key{image}", caption, step)
            order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
            reached = 0.0
            for token in order:
                reached += weights[token]
                if reached > number:
                    break
            chosen.append(token)
        rows = torch.cat([rows, torch.tensor(chosen)[:, None]], dim=1)
    captions = [row[len(PROMPT) :] for row in rows.tolist()]
    captions = [row[: row.index(END)] if END in row else row for row in captions]
    return [captions[i : i + config.per_image] for i in range(0, len(captions), config.per_image)]


@pytest.mark.parametrize(
    "config",
    [
        CaptionConfig(per_image=2),
        CaptionConfig(top_p=0.5, repetition_penalty=1.0, min_length=0),
        CaptionConfig(top_k=5, top_p=0.6, temperature=1.7, min_length=12),
        CaptionConfig(top_p=1.0, temperature=0.5, repetition_penalty=2.0),
        CaptionConfig(top_k=3, top_p=1.0),
    ],
)
def test_nucleus_gives_tokens_of_plain_sampling_with_the_same_numbers(
    config: CaptionConfig, model: CaptionModel, hf_captioner: BlipForConditionalGeneration
) -> None:
    images = make_images(24)
    captions = ours(model, images, config)
    assert len({tuple(c) for of_image in captions for c in of_image}) > 20
    assert captions == plain_nucleus(hf_captioner, images, config, seed=3)


def test_nucleus_first_tokens_follow_the_distribution(
    model: CaptionModel, hf_captioner: BlipForConditionalGeneration
) -> None:
    config = CaptionConfig(per_image=2000, max_length=len(PROMPT) + 1, min_length=0)
    images = make_images(1).expand(10, -1, -1, -1)  # one image under ten keys: 20,000 draws
    drawn = Counter(
        caption[0] if caption else END
        for of_image in ours(model, images, config)
        for caption in of_image
    )
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        logits = hf_captioner(pixel_values=normalised(images[:1]), input_ids=ids).logits[:, -1]
    penalised = RepetitionPenaltyLogitsProcessor(1.1)(ids, logits)
    probabilities = TopPLogitsWarper(0.9)(ids, penalised).double().softmax(-1)[0]
    inside = probabilities.nonzero().squeeze(1).tolist()
    assert drawn.keys() <= set(inside)
    assert len(inside) > 5
    expected = probabilities[inside] * 20_000
    counts = torch.tensor([drawn[token] for token in inside], dtype=torch.float64)
    large = expected >= 5  # the others go into one cell, as the test asks for
    if not large.all():
        expected = torch.cat([expected[large], expected[~large].sum()[None]])
        counts = torch.cat([counts[large], counts[~large].sum()[None]])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, chi_square / 2) > 1e-3


def test_sample_nucleus_breaks_ties_by_lower_id() -> None:
    # Four equal tokens of 0.25: the nucleus of 0.6 is the first three.
    scores = torch.zeros(5, 4)
    numbers = torch.tensor([0.0, 0.33, 0.34, 0.67, 0.999], dtype=torch.float64)
    config = CaptionConfig(top_p=0.6)
    assert sample_nucleus(scores, numbers, config).tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("top_k", [0, 700, 2000])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 4.0])
def test_sample_nucleus_among_candidates_is_that_of_the_whole_vocabulary(
    top_k: int, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # Rounded scores make ties by the hundred; low sharpness makes nuclei of nearly all tokens.
    scores = (torch.randn(64, 3000) * sharpness).round(decimals=1)
    numbers = torch.rand(64, dtype=torch.float64)
    config = CaptionConfig(top_k=top_k)
    among_candidates = sample_nucleus(scores, numbers, config)
    monkeypatch.setattr(sampling, "_CANDIDATES", 3000)
    assert torch.equal(among_candidates, sample_nucleus(scores, numbers, config))


@pytest.mark.parametrize("method", ["greedy", "nucleus"])
def test_ended_captions_leave_the_batch(method: str, model: CaptionModel) -> None:
    config = CaptionConfig(method=method)  # type: ignore[arg-type]
    rows = []
    hook = model.text.layers[0].register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    captions = [c[0] for c in ours(model, make_images(40), config)]
    hook.remove()
    assert rows[0] == 40 * len(PROMPT)
    # Every token but a caption's last runs once: the end, or the one that reaches max_length.
    room = config.max_length - len(PROMPT)
    assert sum(rows[1:]) == sum(min(len(caption), room - 1) for caption in captions)
    assert min(rows) < 40


@pytest.mark.parametrize("method", ["greedy", "nucleus"])
@pytest.mark.parametrize("steps", [3, 4, 100])
def test_captions_do_not_depend_on_when_the_host_looks_for_ended_rows(
    steps: int, method: str, model: CaptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CaptionConfig(method=method, min_length=0)  # type: ignore[arg-type]
    images = make_images(60)
    expected = ours(model, images, config)
    assert len({len(c[0]) for c in expected}) > 5
    monkeypatch.setattr(sampling, "_STEPS_BETWEEN_CHECKS", {"cpu": steps})
    assert ours(model, images, config) == expected
