from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.train.itc import Itc, ItcConfig, Pairs

WIDTH = 6


def embeddings(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)


def pairs(seed: int, image_ids: list[int], text_ids: list[int] | None = None) -> Pairs:
    count = len(image_ids)
    return Pairs(
        embeddings(count, seed),
        embeddings(count, seed + 500),
        torch.tensor(image_ids),
        torch.tensor(text_ids or image_ids),
    )


def reference(own: Pairs, known: list[Pairs], alpha: float, temperature: float) -> float:
    """From the formulas, pair by pair in fp64; `known` starts with the teacher's of this step.

    Source: ALBEF, arXiv:2107.07651, equations 1, 2 and 6; the targets' hard part is spread evenly
    over all positives.
    """
    teacher = known[0]
    everyone = [(p, j) for p in known for j in range(len(p.image_ids))]
    total = 0.0
    for mine, taught, theirs in (("image", "image", "text"), ("text", "text", "image")):
        for i in range(len(own.image_ids)):
            scores, soft, hard = [], [], []
            for p, j in everyone:
                there = getattr(p, theirs)[j].double()
                scores.append((getattr(own, mine)[i].double() @ there).item() / temperature)
                soft.append((getattr(teacher, taught)[i].double() @ there).item() / temperature)
                is_same = own.image_ids[i] == p.image_ids[j] or own.text_ids[i] == p.text_ids[j]
                hard.append(float(is_same))
            log_p = torch.tensor(scores, dtype=torch.float64).log_softmax(0)
            q = torch.tensor(soft, dtype=torch.float64).softmax(0)
            y = torch.tensor(hard, dtype=torch.float64) / sum(hard)
            total -= ((alpha * q + (1 - alpha) * y) * log_p).sum().item() / len(own.image_ids)
    return total / 2


def test_loss_follows_the_formulas_while_the_queue_fills_and_wraps_round() -> None:
    itc = Itc(ItcConfig(queue=12, temperature=0.2), WIDTH).train()
    queue: list[Pairs] = []
    for step in range(7):
        first = 4 * (step % 5)  # the pairs of step 5 are those of step 0, and so on
        ids = list(range(first, first + 4))
        own, teacher = pairs(step, ids), pairs(100 + step, ids)
        alpha = 0.1 * step
        found = itc(own, teacher, alpha).loss.item()
        assert found == pytest.approx(reference(own, [teacher, *queue], alpha, 0.2), abs=1e-5)
        queue = [*queue, teacher][-3:]


def test_equal_images_and_equal_texts_are_positives_also_in_the_queue() -> None:
    itc = Itc(ItcConfig(queue=8, temperature=0.3), WIDTH).train()
    earlier = pairs(0, [1, 2, 3, 4], [10, 20, 30, 40])
    itc(earlier, earlier, 0.4)
    # Two captions of image 5; text 60 twice; image 2 and text 40 from the queue.
    own = pairs(1, [5, 5, 6, 2], [50, 60, 60, 40])
    teacher = pairs(2, [5, 5, 6, 2], [50, 60, 60, 40])
    contrast = itc(own, teacher, 0.4)
    expected = reference(own, [teacher, earlier], 0.4, 0.3)
    assert contrast.loss.item() == pytest.approx(expected, abs=1e-5)
    wanted = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert contrast.same.int().tolist() == wanted


def test_without_a_queue_and_soft_targets_it_is_cross_entropy_of_the_diagonal() -> None:
    itc = Itc(ItcConfig(queue=0, temperature=0.1), WIDTH).train()
    own = pairs(0, [1, 2, 3])
    teacher = pairs(1, [1, 2, 3])
    label = torch.arange(3)
    expected = (
        F.cross_entropy(own.image @ teacher.text.T / 0.1, label)
        + F.cross_entropy(own.text @ teacher.image.T / 0.1, label)
    ) / 2
    assert itc(own, teacher, 0.0).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_gradient_reaches_own_embeddings_and_temperature_and_nothing_else() -> None:
    itc = Itc(ItcConfig(queue=4), WIDTH).train()
    own, teacher = pairs(0, [1, 2]), pairs(1, [1, 2])
    for tensor in (own.image, own.text, teacher.image, teacher.text):
        tensor.requires_grad_(True)
    itc(own, teacher, 0.4).loss.backward()
    assert own.image.grad is not None
    assert own.image.grad.abs().min() > 0
    assert own.text.grad is not None
    assert itc.temperature.grad is not None
    assert itc.temperature.grad.abs() > 0
    assert teacher.image.grad is None
    assert teacher.text.grad is None
    assert not any(buffer.requires_grad for buffer in itc.buffers())


@pytest.mark.parametrize(("value", "clamped"), [(0.0, 0.001), (2.0, 0.5), (0.1, 0.1)])
def test_temperature_is_clamped(value: float, clamped: float) -> None:
    itc = Itc(ItcConfig(queue=0), WIDTH)
    with torch.no_grad():
        itc.temperature.fill_(value)
    itc(pairs(0, [1, 2]), pairs(1, [1, 2]), 0.0)
    assert itc.temperature.item() == pytest.approx(clamped)


def test_evaluation_leaves_the_queue_alone() -> None:
    itc = Itc(ItcConfig(queue=4), WIDTH).eval()
    itc(pairs(0, [1, 2]), pairs(1, [1, 2]), 0.4)
    assert itc.queue.empty().all()


def test_queue_goes_on_from_its_state() -> None:
    made = [pairs(i, [2 * i, 2 * i + 1]) for i in range(4)]
    whole = Itc(ItcConfig(queue=4), WIDTH)
    losses = [whole(p, p, 0.4).loss.item() for p in made]
    first, second = (Itc(ItcConfig(queue=4), WIDTH) for _ in range(2))
    for p in made[:3]:
        first(p, p, 0.4)
    second.load_state_dict(first.state_dict())
    assert second(made[3], made[3], 0.4).loss.item() == losses[3]


def test_alpha_ramps_linearly_and_stays() -> None:
    config = ItcConfig(ramp_steps=10)
    assert [config.alpha_at(step) for step in (0, 5, 10, 99)] == [0.0, 0.2, 0.4, 0.4]
    assert ItcConfig().alpha_at(0) == 0.4


def test_queue_that_the_step_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"itc.queue is 57600, no multiple of the 7 images"):
        ItcConfig().check_batch(7)
    with pytest.raises(ConfigError, match="no multiple of the 3 images"):
        Itc(ItcConfig(queue=4), WIDTH)(pairs(0, [1, 2, 3]), pairs(1, [1, 2, 3]), 0.4)


@pytest.mark.parametrize("change", [{"temperature": 0.0005}, {"alpha": 1.1}, {"queue": -1}])
def test_config_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ItcConfig(**change)  # type: ignore[arg-type]
