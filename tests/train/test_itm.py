from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from capfilt.train.itm import Matching, evened, itm_loss
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


def test_image_drawn_by_most_gets_more_rows() -> None:
    few = [[[1, 2]], [[1, 2]] * 3, [], [[1, 2]]]
    assert evened(few) == (few, [0, 1, 2, 3])
    many = [[[1, 2]], *[[[1, 2]]] * 8, [[i, i] for i in range(11)]]  # 4 on the mean
    rows, images = evened(many)
    assert images == [*range(10), 9]
    assert [len(row) for row in rows] == [1] * 9 + [8, 3]
    assert rows[9] + rows[10] == many[9]


def both(texts: list[int], images: list[int], folder: Path) -> tuple[float, float]:
    """The loss of so many pairs that drew these, here and in transformers, pair by pair."""
    count = len(texts)
    model, batch = make_model(), make_batch(count)
    reference = Reference(model, folder)
    pairs = [
        pair
        for i in range(count)
        if texts[i] >= 0
        for pair in ((i, i, 1), (i, texts[i], 0), (images[i], i, 0))
    ]
    with torch.no_grad():
        encoder = model.matcher.model
        memory = encoder.text.remember(encoder.vit(batch.images))
        matching = Matching.of(Negatives(texts, images), batch.texts)
        loss = itm_loss(encoder, memory, matching, TOKENS.match)
        states = reference.states(batch.images)[[image for image, _, _ in pairs]]
        logits = reference.match_logits(states, [batch.texts[text] for _, text, _ in pairs])
    assert logits.std() > 0.1
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits, torch.tensor([label for _, _, label in pairs]))
    return loss.item(), expected.item()


@pytest.mark.parametrize(
    ("texts", "images"),
    [
        ([3, 0, 1, 4, 0], [4, 4, 0, 4, 2]),
        ([3, -1, 1, 4, 0], [4, -1, 0, 4, 2]),
        ([1] + [0] * 15, [1] + [0] * 15),  # one image gets several rows
    ],
)
def test_loss_is_that_of_padded_texts_in_transformers(
    texts: list[int], images: list[int], tmp_path: Path
) -> None:
    loss, expected = both(texts, images, tmp_path)
    assert loss == pytest.approx(expected, abs=1e-5)
