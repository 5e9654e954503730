"""`capfilt verify` of outputs that were spoilt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.run.verify import verify
from tests.run.conftest import local


def test_verify_finds_a_flipped_byte_a_missing_file_and_a_wrong_count(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    local(config, web, out)
    assert verify(str(out)).problems == ()
    data = out / "data" / "00000.tar"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    (out / "ledger" / "00001.parquet").unlink()
    commit = out / "commits" / "00002.json"
    counts = json.loads(commit.read_text())
    counts["counts"]["kept"] += 1
    counts["counts"]["read"] += 1
    commit.write_text(json.dumps(counts))
    (out / "data" / "99999.tar").write_bytes(b"left by a kill")
    found = verify(str(out))
    problems = "\n".join(found.problems)
    assert "data/00000.tar" in problems
    assert "ledger/00001.parquet" in problems
    assert "shard 00002: samples are" in problems
    assert found.uncommitted == ("data/99999.tar",)
    assert "00003" not in problems


def test_verify_names_shards_of_another_config(config: RunConfig, web: str, tmp_path: Path) -> None:
    local(config, web, tmp_path / "out")
    local(replace(config, seed=9), web, tmp_path / "out", overwrite=True, limit=1)
    problems = verify(str(tmp_path / "out")).problems
    assert len(problems) == 3
    assert all("made by another config" in problem for problem in problems)
