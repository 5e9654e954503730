from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.load import load_captioner, load_filter
from capfilt.train.sharing import Sharing
from tests.models.conftest import make_images, normalised
from tests.train.small import TOKENIZER, TOKENS, make_model, vocabulary

SHARINGS: tuple[Sharing, ...] = (
    "all_but_self_attention", "all", "all_but_cross_attention", "none",
)  # fmt: skip


@pytest.mark.parametrize("sharing", SHARINGS)
@torch.inference_mode()
def test_captioner_gives_the_same_in_transformers_and_here(
    sharing: Sharing, tmp_path: Path
) -> None:
    model = make_model(sharing=sharing).eval()
    model.export_captioner(tmp_path, vocabulary(tmp_path / "names"))
    theirs, loading = BlipForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    images = make_images(3)
    states = theirs.eval().vision_model(pixel_values=normalised(images)).last_hidden_state
    torch.testing.assert_close(model.captioner.vit(images), states, atol=1e-5, rtol=0)
    weights = theirs.text_decoder.bert.encoder.layer[1].attention.self.query.weight
    ours = model.captioner.text.layers[1].attention.qkv.weight
    assert torch.equal(weights, ours[: len(weights)])
    config = CaptionConfig(method="greedy", max_length=12)
    captioner = load_captioner(str(tmp_path), config, seed=0, device="cpu")
    ids = torch.tensor([[TOKENS.decode, *TOKENS.prompt, TOKENIZER.sep_token_id]] * 3)
    made = theirs.generate(
        pixel_values=normalised(images), input_ids=ids, min_length=5, max_length=12
    )
    processor = BlipProcessor.from_pretrained(tmp_path)
    expected = [
        (text.removeprefix("a picture of").strip(),)
        for text in processor.batch_decode(made, skip_special_tokens=True)
    ]
    assert captioner.caption(list(images), ["0", "1", "2"]) == expected
    pixels = processor(images=list(images), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, normalised(images), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_filter_gives_the_same_in_transformers_and_here(tmp_path: Path) -> None:
    model = make_model().eval()
    model.export_filter(tmp_path, vocabulary(tmp_path / "names"))
    theirs, loading = BlipForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    images, text = make_images(2), "a dog on the grass"
    scores = load_filter(str(tmp_path), ScoringConfig(similarity=True), device="cpu").score(
        list(images), [[text]] * 2
    )
    ids = torch.tensor([TOKENIZER(text)["input_ids"]] * 2)
    itc = theirs(input_ids=ids, pixel_values=normalised(images), use_itm_head=False).itm_score
    ids[:, 0] = TOKENS.match
    itm = theirs(input_ids=ids, pixel_values=normalised(images)).itm_score.softmax(-1)[:, 1]
    for i, [score] in enumerate(scores):
        assert score.match_prob == pytest.approx(itm[i].item(), abs=1e-5)
        assert score.similarity == pytest.approx(itc[i, i].item(), abs=1e-5)


def test_export_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not found; give BERT"):
        make_model().export_filter(tmp_path, tmp_path / "nothing")
