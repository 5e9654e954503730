from __future__ import annotations

import json
import os
import re
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from capfilt.errors import ModelError
from capfilt.models import placement
from capfilt.models.checkpoint import weight_files
from capfilt.models.placement import check_fits, free_bytes, size_bytes, target
from tests import checkpoints

CPU = torch.device("cpu")


@contextmanager
def data_up_to(more: int) -> Iterator[None]:
    """This process's own memory may grow by so many bytes alone."""
    own = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert own is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(own[1]) * 1024 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


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


def write_hole(path: Path, count: int) -> None:
    """A safetensors file of so many bytes, one tensor, that takes no room on the disk."""
    header = {"all": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + count)


def test_weights_beyond_the_devices_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_hole(path, free_bytes(CPU) // 2)  # four bytes for each in memory
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


def test_what_others_use_is_not_left() -> None:
    all_of_it = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    before = free_bytes(CPU)
    held = bytearray(b"1") * 2**28
    assert free_bytes(CPU) < all_of_it - len(held)
    assert 0 < before < all_of_it


def test_limit_of_the_process_counts() -> None:
    with data_up_to(2**30):
        assert 0 < free_bytes(CPU) <= 2**30
        held = bytearray(2**28)  # not touched, and counted
        assert free_bytes(CPU) <= 2**30 - len(held)


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    """The container's is above that of the process, as in a job of Slurm in a container."""
    own, root = tmp_path / "own", tmp_path / "groups"
    own.write_text("0::/job/step\n")
    for folder, limit, used, unused in (("", "max", 9, 0), ("job", "1000", 700, 50)):
        group = root / folder
        (group / "step").mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 3\ninactive_file {unused}\nfile 5\n")
    assert placement._free_of_groups(root, own) == [350]
    assert placement._free_of_groups(tmp_path / "none", tmp_path / "none") == []
