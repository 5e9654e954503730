"""Clusters whose workers are unlike each other, whose nodes join and leave: real nodes of Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from capfilt.config import resolve
from capfilt.errors import CapfiltError
from capfilt.io.inputs import find_shards
from capfilt.record import ModelIdentity
from capfilt.run import fleet
from capfilt.run.actor import LoadWorker
from capfilt.run.cluster import ClusterEngine
from capfilt.run.engine import Done, Outcome, Work
from capfilt.run.local import LocalEngine
from capfilt.run.task import Task
from tests.run.conftest import commits, hashes, write_shard

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

SHARDS, IMAGES = 8, 12
STUB = ModelIdentity("stub", "0" * 64, "stub")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and a node of one core."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        started.add_node(num_cpus=1)
        ray.init(address=started.address, logging_level="ERROR", log_to_driver=False)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("web")
    for index in range(SHARDS):
        write_shard(folder, index, IMAGES)
    return str(folder)


def loads(seconds: float, slow: Path | None = None, held: Path | None = None) -> LoadWorker:
    """Workers that take this long for a batch, and wait while there is a file `held`.

    The first that makes the file `slow` takes a minute.
    """

    def load(task: Task, cpus: int) -> Worker:
        from capfilt.models.images import PixelSpec
        from capfilt.run.worker import Worker

        pause_s = seconds
        if slow is not None:
            try:
                os.close(os.open(slow, os.O_CREAT | os.O_EXCL))
                pause_s = 60.0
            except FileExistsError:
                pass

        class Captioner:
            pixels = PixelSpec(16)
            identity = task.models["captioner"]

            def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
                time.sleep(pause_s)
                while held is not None and held.exists():
                    time.sleep(0.05)
                return [(f"caption of {key}",) for key in keys]

        return Worker(task, Captioner(), None)

    return load


def make_task(out: Path) -> Task:
    config = resolve(
        options={"captioner": "stub", "filter": "none"},
        overrides=["compute.batch_size=2", "compute.checkpoint_every=2"],
    )
    return Task(config, {"captioner": STUB}, str(out))


def undisturbed(web: str, out: Path) -> dict[str, str]:
    """The bytes of a run in this process."""
    task = make_task(out)
    works = [Work(shard) for shard in find_shards(web).shards]
    engine = LocalEngine(loads(0.0)(task, 1), task)
    assert sum(isinstance(o, Done) for o in engine.execute(works)) == SHARDS
    return hashes(out)


def needs(workers: int) -> Any:
    from capfilt.cluster import Resources

    return Resources(workers, 0, 1)


def workers_of(out: Path) -> dict[str, str]:
    """Who made each shard."""
    return {
        file.stem: json.loads(file.read_text())["telemetry"]["worker"]
        for file in (out / "commits").glob("*.json")
    }


def test_last_shards_do_not_wait_for_a_slow_worker(cluster: Any, web: str, tmp_path: Path) -> None:
    """The slow one takes six minutes for a shard, and the other a moment."""
    node = cluster.add_node(num_cpus=1)
    out = tmp_path / "out"
    load = loads(0.05, slow=tmp_path / "slow")
    engine = ClusterEngine(make_task(out), needs(2), load)
    works = [Work(shard) for shard in find_shards(web).shards]
    outcomes: list[Outcome] = []
    begun = None
    for outcome in engine.execute(works):
        if outcome is not None:
            begun = begun or time.monotonic()
            outcomes.append(outcome)
    assert begun is not None
    seconds = time.monotonic() - begun
    done = [o.commit.shard for o in outcomes if isinstance(o, Done)]
    assert sorted(done) == sorted(commits(out)) == [f"{i:05d}" for i in range(SHARDS)]
    assert len(done) == SHARDS  # none twice
    assert hashes(out) == undisturbed(web, tmp_path / "alone")
    assert list(out.rglob("*.tmp")) == []
    assert [path for path in (out / "partial").rglob("*") if path.is_file()] == []
    assert len(set(workers_of(out).values())) == 1  # the slow one finished none
    assert seconds < 50, "it waited for the slow worker"
    cluster.remove_node(node)


def test_referee_lives_where_the_driver_does(cluster: Any, tmp_path: Path) -> None:
    """Ray puts what asks for nothing on any node, and the other one may be taken away."""
    import ray
    from ray._private import state

    for _ in range(5):
        referee = ClusterEngine(make_task(tmp_path), needs(1))._get_referee()
        assert ray.get(referee.claim.remote(0, "first"))
        lies = state.actors(referee._actor_id.hex())["Address"]["NodeID"]
        assert lies == ray.get_runtime_context().get_node_id()


def test_worker_that_cannot_load_its_models_does_not_end_those_that_can(
    cluster: Any, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sick GPU among healthy ones; where there is no healthy one, the run ends."""
    for most in ("MAX_FAILED_STARTS", "MAX_TAKEN_AWAY"):  # a worker takes seconds to start
        monkeypatch.setattr(f"capfilt.run.fleet.{most}", 2)
    node = cluster.add_node(num_cpus=1)
    healthy, held, sick = tmp_path / "healthy", tmp_path / "held", tmp_path / "sick"
    held.touch()
    sick.mkdir()

    def load(task: Task, cpus: int) -> Worker:
        try:
            os.close(os.open(healthy, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            until = time.monotonic() + 120
            while not (healthy.stat().st_size or time.monotonic() > until):
                time.sleep(0.05)  # until the other is there
            (sick / str(os.getpid())).touch()
            if len(list(sick.iterdir())) >= 2:
                held.unlink(missing_ok=True)  # it works on while they die
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered") from None
        worker = loads(0.1, held=held)(task, cpus)
        healthy.write_text("loaded")
        return worker

    works = [Work(shard) for shard in find_shards(web).shards]
    engine = ClusterEngine(make_task(tmp_path / "out"), needs(2), load, grows=True)
    assert sum(isinstance(outcome, Done) for outcome in engine.execute(works)) == SHARDS
    assert len(list(sick.iterdir())) >= 2
    with pytest.raises(CapfiltError, match="2 workers in a row died while loading"):
        list(ClusterEngine(make_task(tmp_path / "none"), needs(1), load).execute(works))
    cluster.remove_node(node)


def test_node_that_joins_gets_workers_and_one_that_leaves_loses_only_its_shards(
    cluster: Any, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first shard's end until the node has left again, every worker is held."""
    monkeypatch.setattr("capfilt.run.fleet.LOOK_FOR_NODES_S", 1.0)
    out, held = tmp_path / "out", tmp_path / "held"
    engine = ClusterEngine(make_task(out), needs(1), loads(0.1, held=held), grows=True)
    works = [Work(shard) for shard in find_shards(web).shards]
    done: list[str] = []
    joined: list[Any] = []
    leaving: list[threading.Thread] = []

    def leave() -> None:
        cluster.remove_node(joined[0])
        held.unlink()

    before_s = time.monotonic()
    for outcome in engine.execute(works):
        if isinstance(outcome, Done):
            done.append(outcome.commit.shard)
        if done and not joined:
            held.touch()
            joined.append(cluster.add_node(num_cpus=1))
        busy = [slot for slot in engine._fleet if slot.running]
        if joined and not leaving and len(busy) == 2:
            leaving.append(threading.Thread(target=leave))
            leaving[0].start()
        assert time.monotonic() - before_s < 240
    assert leaving, "no worker came to the node that joined"
    leaving[0].join()
    assert sorted(done) == [f"{i:05d}" for i in range(SHARDS)]
    assert hashes(out) == undisturbed(web, tmp_path / "alone")
    assert list(out.rglob("*.tmp")) == []


def test_stopped_worker_is_replaced_and_its_shards_are_made_by_others(
    cluster: Any, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is there, and Ray does not miss it."""
    monkeypatch.setattr(fleet, "SILENT_LOOKS", 10)
    out = tmp_path / "out"
    engine = ClusterEngine(make_task(out), needs(1), loads(0.2))
    works = [Work(shard) for shard in find_shards(web).shards]
    done: list[str] = []
    stopped = 0
    until = time.monotonic() + 400
    try:
        for outcome in engine.execute(works):
            if isinstance(outcome, Done):
                done.append(outcome.commit.shard)
                if not stopped:
                    stopped = int(outcome.commit.telemetry["worker"].rpartition(":")[2])
                    os.kill(stopped, signal.SIGSTOP)
            assert time.monotonic() < until
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert sorted(done) == [f"{i:05d}" for i in range(SHARDS)]
    assert len(set(workers_of(out).values())) > 1
    assert hashes(out) == undisturbed(web, tmp_path / "alone")
    assert list(out.rglob("*.tmp")) == []
