from __future__ import annotations

import pytest
import torch

from capfilt.models.attention import Grid, attend
from capfilt.models.vit import Block, VitConfig
from capfilt.train.towers import (
    DropConfig,
    ImageTower,
    RecomputeConfig,
    TextTower,
    med_config,
    resized,
    trained,
)

SIZES = med_config(ImageTower(32, 3, 4, 32, 8), TextTower(24, 2, 4), embedding=12, vocabulary=50)


def test_sizes_follow_the_towers() -> None:
    assert SIZES.image.tokens == 17
    assert (SIZES.image.ffn, SIZES.text.ffn) == (128, 96)
    assert SIZES.text.image_width == 32
    assert resized(SIZES, 48).image.tokens == 37
    made = trained(SIZES, DropConfig(text=0.2, path=0.4), RecomputeConfig(image=True))
    assert (made.text.dropout, made.image.drop_path) == (0.2, 0.4)
    assert (made.image.recompute, made.text.recompute) == (True, False)


def test_size_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the patch size 8, is 50"):
        resized(SIZES, 50)


@pytest.mark.parametrize("change", [{"text": 1.0}, {"path": -0.1}])
def test_dropping_everything_or_less_than_nothing_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        DropConfig(**change)


def test_drop_path_grows_with_depth_and_leaves_whole_branches_out() -> None:
    config = VitConfig(width=8, layers=3, heads=2, ffn=16, drop_path=0.4)
    blocks = [Block(config, i).train() for i in range(3)]
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.2, 0.4])
    torch.manual_seed(0)
    kept = blocks[2]._branch(torch.ones(4000, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)
    x = torch.ones(2, 3)
    assert blocks[0]._branch(x) is x
    assert blocks[2].eval()._branch(x) is x


def test_attention_drops_weights_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 20, 4), torch.randn(1, 1, 30, 4)
    ones = torch.ones(1, 1, 30, 4)
    assert torch.allclose(attend(query, key, ones), torch.ones(1))
    found = torch.cat([attend(query, key, ones, dropout=0.1) for _ in range(200)])
    assert found.std() > 0.01
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)


def test_padding_is_not_looked_at_with_dropout() -> None:
    torch.manual_seed(0)
    filled = Grid.of([2, 5], torch.device("cpu")).filled()
    assert filled is not None
    value = torch.zeros(2, 1, 5, 4).masked_fill(~filled[:, None, :, None], torch.inf)
    query = torch.randn(2, 1, 5, 4)
    found = attend(query, query, value.nan_to_num(posinf=1e9), filled[:, None, None], dropout=0.3)
    assert found.abs().max() == 0
