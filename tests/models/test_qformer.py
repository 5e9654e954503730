from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2QFormerModel

from capfilt.errors import ModelError
from capfilt.models.blip2_load import load_qformer, save_qformer
from capfilt.models.med import PackedTexts
from capfilt.models.qformer import QFormer, QFormerConfig
from capfilt.models.query_attention import Mask
from tests import blip2_checkpoints
from tests.blip2_checkpoints import QFORMER, randomise

CONFIG = QFormerConfig(
    vocabulary=20, width=32, layers=4, heads=4, ffn=48, max_tokens=16, image_width=24, queries=3
)
TEXTS = [[[4, 5, 6, 7], [8, 9]], [[10, 11, 12]]]  # two of the first image, one of the second
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> QFormer:
    made = QFormer(CONFIG).eval().requires_grad_(False)
    randomise(made, 0)
    return made


def states(seed: int = 0) -> Tensor:
    return torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(seed))


def run(model: QFormer, mask: Mask, texts: list[list[list[int]]] = TEXTS) -> tuple[Tensor, Tensor]:
    packed = PackedTexts.of(texts, CPU)
    return model.read_pairs(packed, model.remember(states()), mask)


def moved(old: Tensor, new: Tensor) -> list[bool]:
    """Which rows differ, of [*, D]."""
    return ((old - new).abs().amax(-1) > 1e-6).flatten().tolist()


# Rows: the queries of pair 0, its tokens. What a change of one row may reach, by mask.
def reached(mask: Mask, row: int, queries: int, tokens: int) -> list[bool]:
    if mask is Mask.BIDIRECTIONAL:
        return [True] * (queries + tokens)
    if row < queries:  # a query
        return [True] * queries + [mask is Mask.CAUSAL] * tokens
    if mask is Mask.UNIMODAL:
        return [False] * queries + [True] * tokens
    return [False] * queries + [token >= row - queries for token in range(tokens)]


@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("token", range(4))
def test_a_changed_token_reaches_what_the_mask_allows(
    model: QFormer, mask: Mask, token: int
) -> None:
    old_queries, old_tokens = run(model, mask)
    changed = [[list(text) for text in of_image] for of_image in TEXTS]
    changed[0][0][token] = 19
    queries, tokens = run(model, mask, changed)
    expected = reached(mask, 3 + token, 3, 4)
    found = moved(old_queries[0], queries[0]) + moved(old_tokens[:4], tokens[:4])
    assert found == expected
    assert not any(moved(old_queries[1:], queries[1:]) + moved(old_tokens[4:], tokens[4:]))


@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("query", range(3))
def test_a_changed_query_reaches_what_the_mask_allows(
    model: QFormer, mask: Mask, query: int
) -> None:
    old_queries, old_tokens = run(model, mask)
    other = QFormer(CONFIG).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    other.queries[0, query] += torch.linspace(-1, 1, CONFIG.width)
    queries, tokens = run(other, mask)
    found = moved(old_queries[0], queries[0]) + moved(old_tokens[:4], tokens[:4])
    assert found == reached(mask, query, 3, 4)


@pytest.mark.parametrize("mask", list(Mask))
def test_a_changed_image_reaches_its_queries_and_who_sees_them(model: QFormer, mask: Mask) -> None:
    packed = PackedTexts.of(TEXTS, CPU)
    images = states()
    images[1] += 1
    old_queries, old_tokens = run(model, mask)
    queries, tokens = model.read_pairs(packed, model.remember(images), mask)
    assert moved(old_queries, queries) == [False] * 6 + [True] * 3
    assert moved(old_tokens, tokens) == [False] * 6 + [mask is not Mask.UNIMODAL] * 3


def test_queries_alone_are_those_that_see_no_text(model: QFormer) -> None:
    alone, _ = model.read(2, model.remember(states()))
    for mask in (Mask.UNIMODAL, Mask.CAUSAL):
        beside, _ = run(model, mask)
        torch.testing.assert_close(beside, alone[[0, 0, 1]], atol=1e-5, rtol=0)


def test_texts_after_a_trace_are_those_under_the_causal_mask(model: QFormer) -> None:
    packed = PackedTexts.of(TEXTS, CPU)
    _, trace = model.read(2, model.remember(states()))
    _, tokens = run(model, Mask.CAUSAL)
    torch.testing.assert_close(model.read_after(packed, trace), tokens, atol=1e-5, rtol=0)
    one_each = PackedTexts.of([TEXTS[0][:1], TEXTS[1]], CPU)
    found = model.read_after(one_each, trace)
    torch.testing.assert_close(found, tokens[[0, 1, 2, 3, 6, 7, 8]], atol=1e-5, rtol=0)


def test_texts_alone_are_those_under_the_unimodal_mask(model: QFormer) -> None:
    packed = PackedTexts.of(TEXTS, CPU)
    _, tokens = run(model, Mask.UNIMODAL)
    torch.testing.assert_close(model.read_text(packed), tokens[packed.first], atol=1e-5, rtol=0)


def test_read_queries_are_the_queries_of_read_pairs(model: QFormer) -> None:
    packed = PackedTexts.of(TEXTS, CPU)
    queries, _ = run(model, Mask.BIDIRECTIONAL)
    found = model.read_queries(packed, model.remember(states()))
    torch.testing.assert_close(found, queries, atol=1e-5, rtol=0)


def test_text_does_not_depend_on_its_batch(model: QFormer) -> None:
    queries, tokens = run(model, Mask.BIDIRECTIONAL)
    memory = model.remember(states()[1:])
    alone, own = model.read_pairs(PackedTexts.of(TEXTS[1:], CPU), memory)
    torch.testing.assert_close(alone[0], queries[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(own, tokens[6:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_while_training_reaches_every_parameter(recompute: bool) -> None:
    config = QFormerConfig(**{**vars(CONFIG), "dropout": 0.1, "recompute": recompute})
    trained = QFormer(config).train()
    randomise(trained, 0)
    packed = PackedTexts.of(TEXTS, CPU)
    memory = trained.remember(states())
    queries, trace = trained.read(2, memory)
    again, _ = trained.read(2, memory)
    assert not torch.allclose(queries, again)
    total = queries.sum() + trained.read_after(packed, trace).square().sum()
    (total + trained.read_queries(packed, memory).square().sum()).backward()
    assert [name for name, p in trained.named_parameters() if p.grad is None] == []


def test_recomputed_gradients_are_the_same() -> None:
    packed = PackedTexts.of(TEXTS, CPU)
    found = []
    for recompute in (False, True):
        trained = QFormer(QFormerConfig(**{**vars(CONFIG), "recompute": recompute})).train()
        randomise(trained, 0)
        queries, trace = trained.read(2, trained.remember(states()))
        (queries.square().mean() + trained.read_after(packed, trace).square().mean()).backward()
        found.append([p.grad for p in trained.parameters() if p.grad is not None])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `Blip2QFormerModel`."""
    made = Blip2QFormerModel(Blip2QFormerConfig(**QFORMER, use_qformer_text_input=True))
    randomise(made, 3)
    path = tmp_path_factory.mktemp("qformer")
    made.save_pretrained(path)
    return path


@torch.inference_mode()
def test_outputs_are_those_of_transformers_qformer(folder: Path) -> None:
    reference = Blip2QFormerModel.from_pretrained(folder).eval()
    ours = load_qformer(folder, reference.config, queries=5).eval()
    images = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    memory = ours.remember(images)
    alone = reference(ours.queries.expand(2, -1, -1), encoder_hidden_states=images)
    found, _ = ours.read(2, memory)
    torch.testing.assert_close(found, alone.last_hidden_state, atol=1e-4, rtol=0)

    texts = [[[1, 2, 3, 4], [5, 6]], [[7, 8, 9]]]
    packed = PackedTexts.of(texts, CPU)
    queries, tokens = ours.read_pairs(packed, memory)
    start = 0
    for row, (ids, image) in enumerate(zip([*texts[0], *texts[1]], (0, 0, 1), strict=True)):
        words = ours.words(torch.tensor([ids])) + ours.positions(torch.arange(len(ids)))
        output = reference(
            torch.cat([ours.queries, words], dim=1),
            query_length=5,
            encoder_hidden_states=images[image : image + 1],
        ).last_hidden_state[0]
        torch.testing.assert_close(queries[row], output[:5], atol=1e-4, rtol=0)
        mine = tokens[start : start + len(ids)]
        torch.testing.assert_close(mine, output[5:], atol=1e-4, rtol=0)
        start += len(ids)


def test_saved_qformer_is_transformers_again(folder: Path, tmp_path: Path) -> None:
    reference = Blip2QFormerModel.from_pretrained(folder)
    save_qformer(load_qformer(folder, reference.config), tmp_path, reference.config)
    again, report = Blip2QFormerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_qformer_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = blip2_checkpoints.make_filter(tmp_path)
    settings = Blip2ForImageTextRetrieval.from_pretrained(folder).config.qformer_config
    with pytest.raises(ModelError, match=r"tensor layernorm\.weight and \d+ more are missing"):
        load_qformer(folder, settings)
