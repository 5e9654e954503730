from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from capfilt.errors import ModelError
from capfilt.models.checkpoint import weight_files
from capfilt.models.placement import check_fits, free_bytes, size_bytes, target
from tests import checkpoints

CPU = torch.device("cpu")


def test_target_is_bf16_on_cuda_and_fp32_on_a_cpu_unless_told() -> None:
    assert target("auto", "cuda:1") == (torch.device("cuda:1"), torch.bfloat16)
    assert target("auto", "cpu") == (CPU, torch.float32)
    assert target("bf16", "cpu") == (CPU, torch.bfloat16)
    assert target("fp32", "cuda") == (torch.device("cuda"), torch.float32)


def test_size_counts_elements_in_the_dtype_to_come(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.float16),
        "b": torch.zeros(()),
        "c": torch.zeros(7),
    }
    save_file(tensors, path)
    assert size_bytes(path, torch.float32) == 4 * (15 + 1 + 7)
    assert size_bytes(path, torch.bfloat16) == 2 * (15 + 1 + 7)


def test_weights_beyond_the_devices_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    count = free_bytes(CPU) // 2  # one byte each in the file, which is a hole; four in memory
    header = {"all": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + count)
    with pytest.raises(
        ModelError, match=r"--captioner big: its weights take .* GiB in float32, but"
    ):
        check_fits("--captioner big", [path], "fp32", "cpu")
    check_fits("--captioner big", [], "fp32", "cpu")


def test_weights_that_fit_pass(tmp_path: Path) -> None:
    folder = checkpoints.make_captioner(tmp_path)
    check_fits("small", weight_files(folder), "auto", "cpu")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        check_fits("small", [tmp_path / "model.safetensors"], "auto", "cpu")
