from __future__ import annotations

import pytest
import torch

from capfilt.train.precision import fast_products

CPU = torch.device("cpu")


def test_products_keep_the_digits_of_fp32() -> None:
    x, y = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    with fast_products(CPU):
        found = x @ y
    torch.testing.assert_close(found.double(), x.double() @ y.double(), atol=1e-4, rtol=0)


def test_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), fast_products(CPU):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_products_on_cuda_are_left_as_they_are() -> None:
    with fast_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
