from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.models.uniforms import uniforms
from capfilt.train.itc import Contrast
from capfilt.train.negatives import Draws, Negatives, draw

SAME = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()


def contrast(same: Tensor, seed: int = 0) -> Contrast:
    generator = torch.Generator().manual_seed(seed)
    forth, back = torch.randn(2, *same.shape, generator=generator) * 2
    return Contrast(torch.tensor(0.0), forth, back, same)


def drawn(found: Contrast, step: int = 0) -> Negatives:
    return Draws(found, all_ranks=False, seed=1, stream=f"{step}/0").fetch()


def test_draws_follow_the_softmax_of_the_similarities_without_positives() -> None:
    found = contrast(SAME)
    steps = [drawn(found, step) for step in range(4000)]
    for similarity, of_step in (
        (found.image_to_text, [s.texts for s in steps]),
        (found.text_to_image, [s.images for s in steps]),
    ):
        weights = similarity.double().exp() * ~SAME
        expected = weights / weights.sum(1, keepdim=True) * len(steps)
        for row in range(4):
            counts = torch.bincount(torch.tensor([s[row] for s in of_step]), minlength=4)
            allowed = ~SAME[row]
            assert counts[~allowed].sum() == 0
            deviation = (counts - expected[row])[allowed] ** 2 / expected[row][allowed]
            # Chi-square of at most 2 degrees of freedom: above 18.4 once in 10,000 times.
            assert deviation.sum() < 18.4


def test_images_and_texts_are_drawn_by_their_own_similarities() -> None:
    same = torch.eye(3).bool()
    forth = torch.tensor([[0.0, 99, 0], [99, 0, 0], [99, 0, 0]])
    back = torch.tensor([[0.0, 0, 99], [0, 0, 99], [0, 99, 0]])
    found = drawn(Contrast(torch.tensor(0.0), forth, back, same))
    assert found == Negatives(texts=[1, 0, 0], images=[2, 2, 1])


def test_extreme_similarities_and_numbers_never_draw_a_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(200, 16, generator=generator) * 1000
    allowed = torch.rand(200, 16, generator=generator) < 0.3
    for number in (0.0, 0.5, 1 - 2.0**-53):
        columns = draw(similarity, allowed, torch.full((200,), number, dtype=torch.float64))
        some = allowed.any(1)
        assert allowed[some].gather(1, columns[some, None]).all()
        assert (columns[~some] == -1).all()


def test_row_without_negatives_draws_nothing() -> None:
    same = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]]).bool()
    assert drawn(contrast(same)) == Negatives(texts=[-1, 2, 1], images=[-1, 2, 1])


def test_batch_of_one_image_or_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no negatives: its images or its texts are all the same"):
        drawn(contrast(torch.ones(3, 3).bool()))


def test_draws_depend_on_seed_and_step_alone() -> None:
    same = torch.eye(64).bool()
    found = Contrast(torch.tensor(0.0), torch.zeros(64, 64), torch.zeros(64, 64), same)
    once, again, later = drawn(found, 3), drawn(found, 3), drawn(found, 4)
    assert once == again
    assert once != later
    assert once.texts != once.images
    numbers = uniforms(1, ["3/0"], 2, 64)[0]
    assert once.texts[5] == int(numbers[0, 5] * 63) + (int(numbers[0, 5] * 63) >= 5)
