from __future__ import annotations

import pytest
import torch

from capfilt.models.attention import Cache, Grid, Packed, attend

CPU = torch.device("cpu")


@pytest.mark.parametrize("counts", [[2, 2], [3, 0, 1], [1, 4, 2]])
def test_grid_spread_and_gather_are_inverse(counts: list[int]) -> None:
    grid = Grid.of(counts, CPU)
    rows = torch.arange(1.0, 1 + sum(counts))[:, None]
    spread = grid.spread(rows)
    assert spread.shape == (len(counts), max(counts), 1)
    assert [int((row != 0).sum()) for row in spread] == counts
    assert torch.equal(grid.gather(spread), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 33])  # both sides of the choice of kernel
def test_attend_is_softmax_attention(dtype: torch.dtype, queries: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8).to(dtype) for n in (queries, 33, 33))
    scores = q.double() @ k.double().transpose(-1, -2) / 8**0.5
    expected = scores.softmax(-1) @ v.double()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(attend(q, k, v).double(), expected, atol=tolerance, rtol=0)


def test_packed_texts_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 8) for _ in range(3))
    together = Packed(Grid.of([2, 3], CPU), 2).attend(0, q, k, v)
    alone = Packed(Grid.of([3], CPU), 2).attend(0, q[2:], k[2:], v[2:])
    torch.testing.assert_close(together[2:], alone)


def test_packed_causal_token_does_not_see_later_ones() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 8) for _ in range(3))
    whole = Packed(Grid.of([4, 3], CPU), 2, causal=True).attend(0, q, k, v)
    start = Packed(Grid.of([2], CPU), 2, causal=True).attend(0, q[:2], k[:2], v[:2])
    torch.testing.assert_close(whole[:2], start)


def test_cache_in_pieces_is_causal_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 8) for _ in range(3))  # 2 rows of 5 tokens
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    expected = Packed(Grid.of([5, 5], CPU), 2, causal=True).attend(0, *flat).view(2, 5, 8)
    cache = Cache(1, 2, rows=2, room=5, like=q)
    for start, end in ((0, 3), (3, 4), (4, 5)):
        piece = cache.attend(0, *(x[:, start:end].flatten(0, 1) for x in (q, k, v)))
        cache.length = end
        torch.testing.assert_close(piece.view(2, end - start, 8), expected[:, start:end])
