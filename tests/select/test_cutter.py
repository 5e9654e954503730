from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from capfilt.cut import CutConfig
from capfilt.errors import CommitError, InputError
from capfilt.io.commits import list_commits
from capfilt.io.lease import Fence, Lease
from capfilt.select.cutter import Cutter
from capfilt.select.origin import Origin
from capfilt.select.select import select
from capfilt.select.survey import Survey
from tests.run.conftest import hashes
from tests.select.conftest import Runs


def make_cutter(run: str, output: Path, fence: Fence) -> Cutter:
    survey = Survey.of(Origin.open(run), CutConfig(min_match_prob=0.5))
    return Cutter(survey, str(output), survey.origin.output, "fingerprint", fence)


def test_cutter_that_was_frozen_does_not_publish_over_its_successor(
    runs: Runs, tmp_path: Path
) -> None:
    output = tmp_path / "cut"
    frozen = make_cutter(runs["blip"], output, Fence(str(output), "of the frozen one"))
    select(runs["blip"], str(output), CutConfig(min_match_prob=0.49))
    made, commits = hashes(output), list_commits(str(output))
    with Lease(str(output), "capfilt select"):
        for shard in frozen.survey.origin.shards():
            with pytest.raises(CommitError, match="another has taken over, capfilt select"):
                frozen.process(shard, redo=True)
    assert (hashes(output), list_commits(str(output))) == (made, commits)


def test_cutter_whose_lease_is_lost_while_it_publishes_does_not_commit(
    runs: Runs, tmp_path: Path
) -> None:
    output = tmp_path / "cut"

    class Late(Fence):
        def check(self) -> None:
            super().check()
            (output / "lease.json").write_text("{}")

    with Lease(str(output), "capfilt select") as lease:
        cutter = make_cutter(runs["blip"], output, Late(str(output), lease.token))
        shard, *_ = cutter.survey.origin.shards()
        with pytest.raises(CommitError, match="another has taken over, somebody"):
            cutter.process(shard)
    assert list_commits(str(output)) == {}


def test_cutter_that_cannot_read_a_shard_leaves_its_older_commit(
    runs: Runs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["blip"], run)
    output = tmp_path / "cut"
    cutter = make_cutter(str(run), output, Fence(str(output), None))
    shard, *_ = cutter.survey.origin.shards()
    commit = cutter.process(shard)
    (run / "data" / f"{shard.id}.tar").write_bytes(b"damaged")
    with pytest.raises(InputError):
        cutter.process(shard, redo=True)
    assert list_commits(str(output)) == {shard.id: commit}
