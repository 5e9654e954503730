from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from capfilt.train.itm import Matching, itm_loss
from capfilt.train.negatives import Negatives
from tests.train.small import TOKENS, Reference, make_batch, make_model

TEXTS = [[10, 3], [11, 3], [12, 3], [13, 3]]


def test_every_pair_makes_itself_and_two_negatives_image_by_image() -> None:
    drawn = Negatives(texts=[2, 0, 1], images=[1, 2, 1])
    found = Matching.of(drawn, TEXTS[:3])
    a, b, c = TEXTS[:3]
    assert found.texts == [[a, c], [a, b, a, c], [b, c, b]]
    assert found.matched == [1, 0, 0, 1, 0, 0, 0, 1, 0]
    assert found.others == []


def test_pair_that_drew_nothing_makes_none() -> None:
    drawn = Negatives(texts=[-1, 2, 1], images=[-1, 2, 1])
    _, b, c = TEXTS[:3]
    found = Matching.of(drawn, TEXTS[:3])
    assert found.texts == [[], [b, c, c], [b, c, b]]
    assert found.matched == [1, 0, 0, 0, 1, 0]


def test_images_of_other_ranks_come_after_the_own_ones() -> None:
    drawn = Negatives(texts=[0, 2], images=[1, 1])  # of the second of two ranks with two images
    found = Matching.of(drawn, TEXTS, first=2)
    a, _, c, d = TEXTS
    assert found.others == [1]
    assert found.texts == [[c, a], [d, c], [c, d]]
    assert found.matched == [1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("absent", [False, True])
def test_loss_is_that_of_padded_texts_in_transformers(absent: bool, tmp_path: Path) -> None:
    model, batch = make_model(), make_batch(5)
    reference = Reference(model, tmp_path)
    texts, images = [3, 0, 1, 4, 0], [4, 4, 0, 4, 2]
    if absent:
        texts[1] = images[1] = -1
    with torch.no_grad():
        encoder = model.matcher.model
        memory = encoder.text.remember(encoder.vit(batch.images))
        matching = Matching.of(Negatives(texts, images), batch.texts)
        loss = itm_loss(encoder, memory, matching, TOKENS.match)
        pairs = [
            pair
            for i in range(5)
            if texts[i] >= 0
            for pair in ((i, i, 1), (i, texts[i], 0), (images[i], i, 0))
        ]
        states = reference.states(batch.images)[[image for image, _, _ in pairs]]
        logits = reference.match_logits(states, [batch.texts[text] for _, text, _ in pairs])
        expected = F.cross_entropy(logits, torch.tensor([label for _, _, label in pairs]))
    assert logits.std() > 0.1
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
