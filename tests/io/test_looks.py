from __future__ import annotations

from pathlib import Path

import numpy as np

from capfilt.io.likeness import EvaluationSet, Likeness
from capfilt.io.looks import Looks, find_duplicates
from capfilt.record import Reason

SAME, NEAR = Reason.DUPLICATE_IMAGE, Reason.NEAR_DUPLICATE_IMAGE


def like(byte: int, phash: int | None) -> Likeness:
    return Likeness(bytes([byte] * 32), phash)


def test_looks_are_recalled_as_they_were_kept_and_for_the_same_alone(tmp_path: Path) -> None:
    looks = Looks.of([0, 3, 4], [like(1, 2**63), like(2, None), like(3, 5)])
    looks.keep(str(tmp_path), "part/0", of="a shard")
    again = Looks.recall(str(tmp_path), "part/0", of="a shard")
    assert again is not None
    assert again.numbers.tolist() == [0, 3, 4]
    assert (again.sha256 == looks.sha256).all()
    assert again.phash[again.visible].tolist() == [2**63, 5]
    assert Looks.recall(str(tmp_path), "part/0", of="another version") is None
    assert Looks.recall(str(tmp_path), "part/1", of="a shard") is None
    file = tmp_path / "looks/part/0.npz"
    file.write_bytes(file.read_bytes()[:-30])
    assert Looks.recall(str(tmp_path), "part/0", of="a shard") is None


def test_find_duplicates_across_shards_and_without_what_is_excluded() -> None:
    looks = {
        "a": Looks.of([0, 1], [like(1, 0), like(2, 0b111)]),
        "b": Looks.of([1, 2, 5], [like(1, 0), like(3, 1 << 40), like(4, None)]),
    }
    assert find_duplicates(looks, "exact") == {"a": {}, "b": {1: SAME}}
    assert find_duplicates(looks, "perceptual") == {"a": {1: NEAR}, "b": {1: SAME, 2: NEAR}}
    excluded = EvaluationSet(frozenset({bytes([1] * 32)}), np.zeros(0, dtype=np.uint64))
    left = {name: of.only(~of.held_by(excluded)) for name, of in looks.items()}
    assert [of.numbers.tolist() for of in left.values()] == [[1], [2, 5]]
    assert find_duplicates(left, "perceptual") == {"a": {}, "b": {2: NEAR}}
    assert find_duplicates({}, "perceptual") == {}
