from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capfilt.train.lm import LmConfig, lm_loss
from tests.train.small import TOKENS, Reference, make_batch, make_model


def smoothed(logits: Tensor, texts: list[list[int]], smoothing: float) -> float:
    """Mean over all texts' tokens of -sum(q log p), q = (1 - s) one-hot + s / V, in fp64."""
    prompt, terms = len(TOKENS.prompt), []
    for row, text in zip(logits, texts, strict=True):
        for place, token in enumerate(text):
            log_p = row[prompt + place].log_softmax(0)
            terms.append(-(1 - smoothing) * log_p[token] - smoothing * log_p.mean())
    return torch.stack(terms).mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_cross_entropy_of_padded_texts_in_transformers(
    smoothing: float, tmp_path: Path
) -> None:
    model, batch = make_model(), make_batch(5)
    reference = Reference(model, tmp_path)
    decoder = model.captioner
    with torch.no_grad():
        memory = decoder.text.remember(decoder.vit(batch.images))
        loss = lm_loss(decoder, memory, batch.texts, TOKENS, label_smoothing=smoothing)
        logits = reference.token_logits(reference.states(batch.images), batch.texts)
    assert len(TOKENS.prompt) == 3
    expected = smoothed(logits, batch.texts, smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_prompt_is_read_and_not_learned() -> None:
    model, batch = make_model(), make_batch(3)
    decoder = model.captioner
    memory = decoder.text.remember(decoder.vit(batch.images))
    losses = []
    for prompt in (TOKENS.prompt, (), (20, 30)):
        tokens = replace(TOKENS, prompt=prompt)
        losses.append(lm_loss(decoder, memory, batch.texts, tokens, label_smoothing=0.0))
    assert len({round(loss.item(), 5) for loss in losses}) == 3
    biases = []
    for prompt in ((20, 30), (30, 20)):
        decoder.head.bias.grad = None
        tokens = replace(TOKENS, prompt=prompt)
        lm_loss(decoder, memory, [[7]] * 3, tokens, label_smoothing=0.0).backward(retain_graph=True)
        assert decoder.head.bias.grad is not None
        biases.append(decoder.head.bias.grad)
    # Only the token of the text is pulled up.
    assert [(grad < 0).nonzero().flatten().tolist() for grad in biases] == [[7], [7]]


def test_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        LmConfig(label_smoothing=1.0)
