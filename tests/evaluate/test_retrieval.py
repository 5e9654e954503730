"""Retrieval against transformers' forward, one image and one text at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval

from capfilt.config import ComputeConfig, ScoringConfig
from capfilt.errors import InputError, ModelError
from capfilt.evaluate import retrieval
from capfilt.evaluate.pairs import Captioned
from capfilt.evaluate.pictures import Pictures
from capfilt.evaluate.retrieval import Recall, Retrieval, evaluate_retrieval
from capfilt.models.filter import MatchFilter
from capfilt.models.load import load_filter
from capfilt.models.med import PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.text import normalise
from tests import checkpoints
from tests.evaluate.conftest import PICTURES
from tests.models.conftest import make_images, normalised

WORDS = ("a the dog", "cat red", "blue", "big snow", "house street", "on in with two", "car bus")


def some_pairs() -> list[Captioned]:
    """1 to 4 texts per image, of 1 to 28 words."""
    chooser = random.Random(0)

    def text() -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(1, 7)))

    return [Captioned(f"{i}.png", tuple(text() for _ in range(1 + i % 4))) for i in range(PICTURES)]


@pytest.fixture(scope="module")
def scores(hf_filter: BlipForImageTextRetrieval) -> tuple[Tensor, Tensor]:
    """Similarities and match logits [images, texts] of all pairs."""
    names, pairs = checkpoints.tokenizer(), some_pairs()
    texts = [normalise(text, max_words=30) for pair in pairs for text in pair.captions]
    similarity, logit = torch.zeros(2, len(pairs), len(texts))
    images = normalised(make_images(PICTURES))
    with torch.inference_mode():
        for j, text in enumerate(texts):
            ids = names(text, truncation=True, max_length=35, return_tensors="pt").input_ids
            itc = hf_filter(input_ids=ids, pixel_values=images, use_itm_head=False)
            similarity[:, j] = itc.itm_score[:, 0]
            ids[:, 0] = names.convert_tokens_to_ids("[ENC]")
            itm = hf_filter(input_ids=ids.expand(PICTURES, -1), pixel_values=images)
            logit[:, j] = itm.itm_score[:, 1]
    return similarity, logit


def plain_recall(similarity: Tensor, logit: Tensor | None, right: Tensor, k_test: int) -> Recall:
    """Of queries in rows: sort all by similarity, then the first k by logit + similarity."""
    found = []
    for row in range(len(similarity)):
        order = sorted(range(similarity.shape[1]), key=lambda item: -similarity[row, item].item())
        if logit is not None:
            first = sorted(order[:k_test], key=lambda item: -(logit + similarity)[row, item].item())
            order = first + order[k_test:]
        found.append([bool(right[row, item]) for item in order])
    r1, r5, r10 = (sum(any(hits[:k]) for hits in found) / len(found) for k in (1, 5, 10))
    return Recall(r1, r5, r10)


def load(folder: Path) -> MatchFilter:
    made = load_filter(str(folder), ScoringConfig(similarity=True), device="cpu")
    assert isinstance(made, MatchFilter)
    return made


def found(filter_folder: Path, pictures: Path, *, batch: int = 5, **options: int) -> Retrieval:
    place = Pictures(str(pictures), compute=ComputeConfig(batch_size=batch))
    return evaluate_retrieval(load(filter_folder), some_pairs(), place, **options)


@pytest.mark.parametrize("k_test", [1, 3, 8, 256])
def test_recalls_are_those_of_a_plain_loop_over_transformers(
    k_test: int, filter_folder: Path, pictures: Path, scores: tuple[Tensor, Tensor]
) -> None:
    similarity, logit = scores
    pairs = some_pairs()
    owner = torch.tensor([i for i, pair in enumerate(pairs) for _ in pair.captions])
    right = owner == torch.arange(len(pairs))[:, None]
    made = found(filter_folder, pictures, k_test=k_test)
    assert (made.images, made.texts) == (len(pairs), len(owner))
    assert made.k_test == min(k_test, len(owner))
    assert made.itc.image_to_text == plain_recall(similarity, None, right, k_test)
    assert made.itc.text_to_image == plain_recall(similarity.T, None, right.T, k_test)
    assert made.itm is not None
    assert made.itm.image_to_text == plain_recall(similarity, logit, right, k_test)
    assert made.itm.text_to_image == plain_recall(similarity.T, logit.T, right.T, k_test)
    if k_test == 8:  # or the lines above say little
        assert made.itm != made.itc
        assert 0 < made.itm.text_to_image.r1 < made.itm.text_to_image.r10 < 1


def test_recalls_do_not_depend_on_batches_memory_or_groups(
    filter_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = found(filter_folder, pictures, k_test=8)
    one_batch = 5 * 17 * 80 * 4  # images x tokens x width x bytes
    for batch, room in ((5, 0), (5, one_batch), (1, 2**30), (64, 0)):
        made = found(filter_folder, pictures, batch=batch, k_test=8, kept_bytes=room)
        assert (made.itc, made.itm) == (wanted.itc, wanted.itm)
    monkeypatch.setattr(retrieval, "TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(retrieval, "_QUERIES_AT_ONCE", 4)
    made = found(filter_folder, pictures, k_test=8)
    assert (made.itc, made.itm) == (wanted.itc, wanted.itm)


def test_itm_judges_each_asked_pair_once_and_images_pass_once(
    filter_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filter_ = load(filter_folder)
    judged: list[int] = []
    seen: list[int] = []
    match_logits = filter_.model.match_logits

    def counted(texts: PackedTexts, memory: ImageMemory) -> Tensor:
        judged.append(sum(texts.texts_per_image))
        return match_logits(texts, memory)

    monkeypatch.setattr(filter_.model, "match_logits", counted)
    filter_.model.vit.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    pairs = some_pairs()
    evaluate_retrieval(filter_, pairs, Pictures(str(pictures)), k_test=256)
    assert sum(seen) == PICTURES
    assert sum(judged) == PICTURES * sum(len(pair.captions) for pair in pairs)
    seen.clear()
    evaluate_retrieval(filter_, pairs, Pictures(str(pictures)), k_test=3, kept_bytes=0)
    assert sum(seen) == 2 * PICTURES


def test_groups_keep_order_and_cut_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "TEXTS_AT_ONCE", 3)
    groups = list(retrieval._groups([[1, 2], [], [3, 4, 5, 6, 7], [8]]))
    assert groups == [[(0, [1, 2]), (2, [3])], [(2, [4, 5, 6])], [(2, [7]), (3, [8])]]


def test_missing_and_broken_images_are_named(filter_folder: Path, tmp_path: Path) -> None:
    filter_ = load(filter_folder)
    with pytest.raises(InputError, match=r"12 of 12 images are not there, the first is 0\.png"):
        evaluate_retrieval(filter_, some_pairs(), Pictures(str(tmp_path)))
    (tmp_path / "0.png").write_text("no image")
    with pytest.raises(InputError, match=r"0\.png: image_not_an_image"):
        evaluate_retrieval(filter_, some_pairs()[:1], Pictures(str(tmp_path)))
    with pytest.raises(InputError, match="is no path below"):
        evaluate_retrieval(filter_, [Captioned("../0.png", ("a",))], Pictures(str(tmp_path)))


def test_a_filter_that_gives_no_numbers_is_refused(filter_folder: Path, pictures: Path) -> None:
    filter_ = load(filter_folder)
    with torch.no_grad():
        filter_.model.vit.class_token.fill_(float("nan"))
    with pytest.raises(ModelError, match="not a finite number"):
        evaluate_retrieval(filter_, some_pairs(), Pictures(str(pictures)))


def test_reranked_goes_by_logit_plus_similarity_and_leaves_the_others_behind() -> None:
    candidates = retrieval._Candidates(
        index=torch.tensor([[7, 5, 3, 1]]),
        similarity=torch.tensor([[0.75, 0.5, 0.25, 0.0]]),
        right=torch.tensor([[False, False, True, True]]),
    )
    made = candidates.reranked(torch.tensor([[0.0, 0.125, 0.5]]))  # sums 0.75, 0.625, 0.75
    assert made.index.tolist() == [[7, 3, 5, 1]]
    assert made.right.tolist() == [[False, True, False, True]]
    assert made.recall() == Recall(0.0, 1.0, 1.0)
