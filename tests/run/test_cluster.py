"""`capfilt run` on a real local Ray cluster, whole and with its processes killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from capfilt.config import RunConfig, resolve
from capfilt.errors import ConfigError
from capfilt.io.inputs import find_shards
from capfilt.run.engine import Done, GaveUp, Outcome, Work
from capfilt.run.job import run
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.run.verify import verify
from capfilt.run.where import Where
from capfilt.shard import InputShard
from tests.run.conftest import commits, hashes, write_shard

if TYPE_CHECKING:
    from capfilt.run.worker import Worker

SHARDS = 5


@pytest.fixture(scope="module")
def big_web(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards that take long enough to be killed in the middle of."""
    folder = tmp_path_factory.mktemp("web")
    for index in range(SHARDS):
        write_shard(folder, index, 90)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(
    big_web: str, captioner: str, filter_: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run, in-process and left alone."""
    out = tmp_path_factory.mktemp("undisturbed")
    command(big_web, out, captioner, filter_, "--local").wait()
    assert len(commits(out)) == SHARDS
    return out


def command(
    web: str, out: Path, captioner: str, filter_: str, *options: str, verb: str = "run"
) -> subprocess.Popen[bytes]:
    """Start `capfilt run` as a user does."""
    arguments = [sys.executable, "-m", "capfilt.cli", verb, web, str(out), "--json"]
    models = ["--captioner", captioner, "--filter", filter_]
    # Small batches and every thread alike, so that a kill lands inside a shard.
    settings = ["--set", "compute.batch_size=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*arguments, *models, *settings, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # by which its descendants are known
        # A suite that a shell has put into the background hands down that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition: Callable[[], Any], timeout_s: float = 300) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to pass in time")


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Every process of the session of `pid` with its command line: Ray's are reparented."""
    session = os.getsid(pid)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if os.getsid(int(entry.name)) == session:
                yield int(entry.name), line
        except (OSError, ProcessLookupError):
            continue


def half_written(out: Path, by: int | None = None) -> list[Path]:
    """Temporary files of shards that are being written, by any process or by this one."""
    found = []
    for file in (out / "data").glob(".*.tmp" if by is None else f".*-{by}-*.tmp"):
        with suppress(FileNotFoundError):  # written by now
            if file.stat().st_size > 0:
                found.append(file)
    return found


def stop_at_a_shard(pid: int, out: Path) -> None:
    """Stop a process in the middle of a shard, which a busy machine lets nobody see in passing."""
    while True:
        wait_for(lambda: half_written(out, pid))
        os.kill(pid, signal.SIGSTOP)
        if half_written(out, pid):
            return
        os.kill(pid, signal.SIGCONT)


def test_cluster_two_workers_give_the_bytes_of_one(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = command(big_web, tmp_path, captioner, filter_, "--workers", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["shards"]["done"] == SHARDS
    assert hashes(tmp_path) == hashes(undisturbed)
    assert commits(tmp_path) == commits(undisturbed)
    workers = {
        json.loads(file.read_text())["telemetry"]["worker"]
        for file in (tmp_path / "commits").iterdir()
    }
    assert len(workers) == 2


@pytest.mark.slow  # tests/faults/test_kills.py kills ten, a worker among them
def test_cluster_worker_killed_in_mid_shard_changes_nothing(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = command(big_web, tmp_path, captioner, filter_, "--workers", "1")
    wait_for(lambda: list((tmp_path / "commits").glob("*.json")))
    [victim] = [pid for pid, line in descendants(process.pid) if line.startswith("ray::Actor")]
    stop_at_a_shard(victim, tmp_path)
    os.kill(victim, signal.SIGKILL)
    assert len(commits(tmp_path)) < SHARDS, "the kill came too late to mean anything"
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert "a worker died and is replaced" in err.decode()
    assert json.loads(out)["shards"]["done"] == SHARDS
    assert hashes(tmp_path) == hashes(undisturbed)
    assert commits(tmp_path) == commits(undisturbed)
    assert verify(str(tmp_path)).problems == ()


@pytest.mark.slow  # tests/faults/test_kills.py kills ten, a driver among them
def test_cluster_driver_killed_in_mid_shard_then_resumed_changes_nothing(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = command(big_web, tmp_path, captioner, filter_, "--workers", "1")
    wait_for(lambda: list((tmp_path / "commits").glob("*.json")))
    wait_for(lambda: half_written(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = set(commits(tmp_path))
    assert 0 < len(done) < SHARDS, "the kill came too late to mean anything"
    again = command(big_web, tmp_path, captioner, filter_, "--workers", "1")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err.decode()
    assert json.loads(out)["shards"]["done"] <= SHARDS - len(done)
    assert hashes(tmp_path) == hashes(undisturbed)
    assert commits(tmp_path) == commits(undisturbed)
    assert list(tmp_path.rglob("*.tmp")) == []


def deadly_worker(task: Task, cpus: int) -> Worker:
    """A worker whose process ends at one sample, as a segfault in a decoder would end it."""
    from capfilt.models.images import PixelSpec
    from capfilt.run.worker import Worker

    class Deadly:
        pixels = PixelSpec(16)
        identity = task.models["captioner"]

        def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
            if "000000207" in keys:
                os._exit(1)
            return [(f"caption of {key}",) for key in keys]

    return Worker(task, Deadly(), None)


@contextmanager
def ray_on_this_machine() -> Iterator[None]:
    import ray

    from capfilt.cluster import connect

    connect(None)
    try:
        yield
    finally:
        ray.shutdown()


def test_cluster_shard_that_kills_workers_fails_alone(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    from capfilt.cluster import resources
    from capfilt.run.cluster import ClusterEngine

    config = resolve(options={"captioner": config.captioner, "filter": "none"})
    task = Task(config, inspect_models(config), str(tmp_path))
    with ray_on_this_machine():
        needs = resources(workers=1, gpus_per_worker=0, shards=4)
        engine = ClusterEngine(task, needs, deadly_worker)
        works = [Work(shard) for shard in find_shards(web).shards]
        outcomes: list[Outcome] = [o for o in engine.execute(works) if o is not None]
    errors = [o.error for o in outcomes if isinstance(o, GaveUp)]
    assert {o.commit.shard for o in outcomes if isinstance(o, Done)} == {
        "00000",
        "00001",
        "00003",
    }, errors
    [failed] = [o for o in outcomes if isinstance(o, GaveUp)]
    assert (failed.shard.id, failed.attempts) == ("00002", 3)
    assert "died while it held this shard alone" in failed.error


def test_cluster_worker_killed_for_its_memory_is_a_death_like_any_other(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    """Ray's monitor kills it, and its calls end in an error of Ray's that is none of an actor's.

    A result which is such an error is raised by Ray in the same way.
    """
    from capfilt.cluster import Resources
    from capfilt.run.cluster import ClusterEngine

    def load(task: Task, cpus: int) -> Any:
        from ray.exceptions import OutOfMemoryError

        from capfilt.io.commits import Commit, InputRecord
        from capfilt.run.meter import Meter

        class Starved:
            name, device, meter = "starved", "none", Meter(lanes=1)

            def process(self, shard: InputShard, **_: Any) -> Any:
                if shard.id == "00001":
                    return OutOfMemoryError("Task was killed due to the node running low on memory")
                counts = dict.fromkeys(("read", "kept", "dropped", "failed"), 0)
                return Commit(shard.id, InputRecord.of(shard), "", {}, counts, {})

            def in_flight(self) -> dict[str, Any]:
                return {}

        return Starved()

    compute = replace(config.compute, max_attempts=2)
    task = Task(replace(config, compute=compute), {}, str(tmp_path))
    with ray_on_this_machine():
        engine = ClusterEngine(task, Resources(1, 0, 1), load)
        works = [Work(shard) for shard in find_shards(web).shards[:3]]
        outcomes = [o for o in engine.execute(works) if o is not None]
    assert {o.commit.shard for o in outcomes if isinstance(o, Done)} == {"00000", "00002"}
    [failed] = [o for o in outcomes if isinstance(o, GaveUp)]
    assert (failed.shard.id, failed.attempts) == ("00001", 2)
    assert "died while it held this shard alone" in failed.error


def test_cluster_asking_for_more_than_there_is_is_an_error_not_a_wait(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    with ray_on_this_machine():
        where = Where(web, str(tmp_path / "out"), gpus_per_worker=1)
        with pytest.raises(
            ConfigError, match=r"the cluster has 0 GPUs.*--gpus-per-worker 0 uses CPUs"
        ):
            run(config, where)


def test_cluster_unreachable_address_is_one_line(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--address 127.0.0.1:1: no Ray cluster answers"):
        run(config, Where(web, str(tmp_path / "out"), address="127.0.0.1:1"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_local_interrupted_gives_back_its_shards_and_leaves_no_file(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = command(big_web, tmp_path, captioner, filter_, "--local")
    wait_for(lambda: list((tmp_path / "commits").glob("*.json")))
    stop_at_a_shard(process.pid, tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err.decode()
    assert err.decode().endswith("interrupted; the same command goes on where it stopped\n")
    assert "Traceback" not in err.decode()
    assert list(tmp_path.rglob("*.tmp")) == []
    assert 0 < len(commits(tmp_path)) < SHARDS
    command(big_web, tmp_path, captioner, filter_, "--local").communicate(timeout=300)
    assert hashes(tmp_path) == hashes(undisturbed)


def test_drivers_that_join_a_run_change_nothing(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Each starts while the others are in the middle of a shard, whose lease has been removed."""
    drivers = [command(big_web, tmp_path, captioner, filter_, "--local")]
    for _ in range(2):
        stop_at_a_shard(drivers[-1].pid, tmp_path)
        (tmp_path / "lease.json").unlink()
        drivers.append(command(big_web, tmp_path, captioner, filter_, "--local"))
        wait_for((tmp_path / "lease.json").exists)
    for driver in drivers[:-1]:
        driver.send_signal(signal.SIGCONT)
    ends = [(*driver.communicate(timeout=300), driver.returncode) for driver in drivers]
    for _, err, code in ends[:-1]:  # unless it was done before it noticed
        assert code == 0 or b"another has taken over, capfilt run" in err, err.decode()
    out, err, code = ends[-1]
    assert code == 0, err.decode()
    assert json.loads(out)["shards"]["failed"] == []
    assert hashes(tmp_path) == hashes(undisturbed)
    assert commits(tmp_path) == commits(undisturbed)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_driver_beside_another_is_refused_by_name(
    big_web: str, captioner: str, filter_: str, tmp_path: Path
) -> None:
    """The first is a watch, which does not end by itself however slow the second is."""
    first = command(big_web, tmp_path, captioner, filter_, "--local", verb="watch")
    wait_for((tmp_path / "lease.json").exists)
    second = command(big_web, tmp_path, captioner, filter_, "--local")
    out, err = second.communicate(timeout=300)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    assert (second.returncode, out) == (2, b"")
    named = f"{tmp_path} is being worked on by capfilt watch (process {first.pid} on "
    assert named in err.decode().splitlines()[-1]
    assert not (tmp_path / "lease.json").exists()


def test_cluster_terminated_leaves_one_line_and_resumes(
    big_web: str, captioner: str, filter_: str, undisturbed: Path, tmp_path: Path
) -> None:
    """As Slurm and Kubernetes stop a job."""
    process = command(big_web, tmp_path, captioner, filter_, "--workers", "1")
    wait_for(lambda: half_written(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.decode().endswith("interrupted; the same command goes on where it stopped\n")
    command(big_web, tmp_path, captioner, filter_, "--local").communicate(timeout=300)
    assert hashes(tmp_path) == hashes(undisturbed)


def test_resources_are_divided_node_by_node() -> None:
    """Two nodes of two cores: four cores in all, but no worker can have more than two."""
    import ray
    from ray.cluster_utils import Cluster

    from capfilt.cluster import Resources, resources

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    cluster.add_node(num_cpus=2, num_gpus=1)
    try:
        ray.init(address=cluster.address, logging_level="ERROR")

        def of(workers: int | None, gpus: float | None, shards: int) -> Resources:
            return resources(workers=workers, gpus_per_worker=gpus, shards=shards)

        assert of(None, 0, 100) == Resources(2, 0, 2)
        assert of(None, 0, 1) == Resources(1, 0, 2)
        assert of(3, 0, 100) == Resources(3, 0, 1)
        assert of(None, None, 100) == Resources(2, 1, 1)
        assert of(None, 0.5, 100) == Resources(4, 0.5, 1)
        with pytest.raises(ConfigError, match="room for 4"):
            of(5, 0, 100)
        with pytest.raises(ConfigError, match="room for 0"):
            of(None, 2, 100)  # two GPUs, but not on one node
    finally:
        ray.shutdown()
        cluster.shutdown()
