from __future__ import annotations

import pytest
import torch

from capfilt.train.blip import BlipConfig, BlipPretrain
from capfilt.train.itc import ItcConfig
from capfilt.train.sharing import Sharing
from capfilt.train.tokens import Tokens
from tests.train.small import make_batch, make_model

# Table 3 of the paper, millions of parameters.
PUBLISHED: dict[Sharing, int] = {
    "all": 224,
    "all_but_cross_attention": 252,
    "all_but_self_attention": 252,
    "none": 361,
}


@pytest.mark.parametrize("sharing", PUBLISHED)
def test_size_is_the_published_one(sharing: Sharing) -> None:
    config = BlipConfig(sharing=sharing, itc=ItcConfig(queue=0))
    with torch.device("meta"):
        model = BlipPretrain(config, Tokens(101, 30523, 30522, 30524), seed=0)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(size / 1e6) == PUBLISHED[sharing]


@pytest.mark.parametrize(
    ("sharing", "own"),
    [
        ("all", set()),
        ("all_but_self_attention", {"attention"}),
        ("all_but_cross_attention", {"cross"}),
        ("none", {"attention", "cross", "ffn", "words", "positions", "norm"}),
    ],
)
def test_decoder_has_its_own_of_what_is_not_shared(sharing: Sharing, own: set[str]) -> None:
    model = make_model(sharing=sharing)
    encoders = {id(p) for p in model.matcher.model.parameters()}
    text = model.captioner.text
    found = {
        name.split(".")[2 if name.startswith("layers") else 0]
        for name, parameter in text.named_parameters()
        if id(parameter) not in encoders
    }
    assert found == own
    assert model.captioner.vit is model.matcher.model.vit


@pytest.mark.parametrize(
    ("sharing", "projections"),
    [("all", 2), ("all_but_self_attention", 2), ("all_but_cross_attention", 4), ("none", 4)],
)
def test_image_is_encoded_once_and_projected_once_wherever_that_is_shared(
    sharing: Sharing, projections: int
) -> None:
    model, calls = make_model(sharing=sharing), {"projections": 0, "towers": 0}

    def count(name: str) -> None:
        calls[name] += 1

    texts = (model.matcher.model.text, model.captioner.text)
    for projection in {layer.cross.key_value for text in texts for layer in text.layers}:
        projection.register_forward_hook(lambda *_: count("projections"))
    model.matcher.model.vit.norm.register_forward_hook(lambda *_: count("towers"))
    model(make_batch(4), 0)
    assert calls == {"projections": projections, "towers": 1}  # of two layers
