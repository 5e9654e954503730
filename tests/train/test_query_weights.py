"""A Q-Former's start, against transformers' BERT of the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from capfilt.errors import ModelError
from capfilt.models.med import PackedTexts
from capfilt.models.qformer import QFormer, QFormerConfig
from capfilt.models.text_transformer import LanguageHead
from capfilt.train.initial import from_scratch, load_query_weights
from tests.blip2_checkpoints import randomise

CONFIG = QFormerConfig(
    vocabulary=21, width=24, layers=3, heads=4, ffn=40, max_tokens=16, image_width=20, queries=3
)


@pytest.fixture
def bert(tmp_path: Path) -> BertForMaskedLM:
    made = BertForMaskedLM(
        BertConfig(
            vocab_size=20, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=16,
        )
    ).eval()  # fmt: skip
    randomise(made, 0)
    made.save_pretrained(tmp_path)
    return made


def test_text_alone_gives_berts_states(bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = QFormer(CONFIG).eval()
    from_scratch(model)
    before = {name: x.clone() for name, x in model.named_parameters()}
    load_query_weights(model, str(tmp_path))
    texts = [[1, 2, 3, 4], [5, 6]]
    with torch.inference_mode():
        found = model.read_text(PackedTexts.of([texts], torch.device("cpu")))
        for ids, state in zip(texts, found, strict=True):
            expected = bert.bert(torch.tensor([ids])).last_hidden_state[0, 0]
            torch.testing.assert_close(state, expected, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        kept = ".cross." in name or name == "queries"
        assert torch.equal(parameter, before[name]) == kept, name
    assert torch.equal(model.words.weight[20], before["words.weight"][20])
    for layer in model.layers:
        for ours, theirs in zip(
            layer.query_ffn.parameters(), layer.text_ffn.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_head_of_itg_starts_as_berts(bert: BertForMaskedLM, tmp_path: Path) -> None:
    model, head = QFormer(CONFIG).eval(), LanguageHead(CONFIG)
    from_scratch(model, head)
    load_query_weights(model, str(tmp_path), head)
    with torch.inference_mode():
        states = model.read_text(PackedTexts.of([[[1, 2, 3, 4]]], torch.device("cpu")))
        found = head(states) @ model.words.weight.T + head.bias
        expected = bert(torch.tensor([[1, 2, 3, 4]])).logits[0, :1]
    torch.testing.assert_close(found[:, :20], expected, atol=1e-5, rtol=0)
    assert head.bias[20] == 0  # of [DEC], which BERT does not know


def test_bert_of_another_size_is_refused(bert: BertForMaskedLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 20 tokens, but the vocabulary has 23 with"):
        load_query_weights(
            QFormer(QFormerConfig(**{**vars(CONFIG), "vocabulary": 23})), str(tmp_path)
        )
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.3\..* missing"):
        load_query_weights(QFormer(QFormerConfig(**{**vars(CONFIG), "layers": 4})), str(tmp_path))


def test_bert_without_a_head_serves_too(bert: BertForMaskedLM, tmp_path: Path) -> None:
    BertModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "plain")
    load_query_weights(QFormer(CONFIG), str(tmp_path / "plain"))
