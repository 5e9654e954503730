"""`capfilt submit` and its kin on a real local cluster of two nodes, with its job server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from capfilt.service.job import name_of
from tests.run.conftest import captioner, commits, filter_, hashes, write_shard  # noqa: F401
from tests.run.test_cluster import half_written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    port, *agents = free_ports(3)
    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # `python` is what a job starts: on a cluster, that of Ray's own environment.
        env.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        head = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        # The agent's own port, 52365, may be another cluster's; a head without takes no jobs.
        nodes = [{"num_cpus": 1, "dashboard_agent_listen_port": agent} for agent in agents]
        with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
            head = {**nodes[0], **head, "temp_dir": own}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            cluster.add_node(**nodes[1])
            # Else a job joins whichever cluster it finds on the machine.
            Path(own, "ray_current_cluster").write_text(cluster.address)
            yield f"http://127.0.0.1:{port}"
            cluster.shutdown()


@pytest.fixture
def capfilt(server: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command, whose job server is the cluster's."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "capfilt", *map(str, arguments), "--address", server]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return call


@pytest.fixture
def options(captioner: str, filter_: str) -> list[str]:  # noqa: F811
    models = ["--captioner", captioner, "--filter", filter_]
    return [*models, "--set", "compute.batch_size=3", "--gpus-per-worker", "0", "--workers", "2"]


def last_summary(text: str) -> Any:
    return json.loads(text[text.rindex('{\n "output"') :])


def test_submit_follow_and_increments(
    capfilt: Callable[..., subprocess.CompletedProcess[str]], options: list[str], tmp_path: Path
) -> None:
    """Nightly: the second and the third job do nothing, the fourth what has come."""
    web, out = tmp_path / "web", tmp_path / "dataset"
    for index in range(2):
        write_shard(web, index, 12)
    job_ids, done = [], []
    for night in range(4):
        if night == 3:
            write_shard(web, 2, 12)
        submitted = capfilt("submit", web, out, *options, *(["--ship-code"] if night == 0 else []))
        assert submitted.returncode == 0, submitted.stderr
        job_ids.append(submitted.stdout.strip())
        followed = capfilt("logs", out, "-f")
        assert followed.returncode == 0, followed.stdout
        done.append(sorted(commits(out)))
        assert not (out / "lease.json").exists()
    name = name_of(str(out))
    assert job_ids == [f"{name}-{number}" for number in (1, 2, 3, 4)]
    assert done == [["00000", "00001"]] * 3 + [["00000", "00001", "00002"]]
    listed = json.loads(capfilt("jobs", "--json").stdout)["jobs"]
    mine = [job for job in listed if job["output"] == str(out)]
    assert [(job["id"], job["status"]) for job in mine] == [(i, "SUCCEEDED") for i in job_ids]
    assert "2 done" in capfilt("logs", job_ids[0]).stdout
    assert "1 done, 2 before" in capfilt("logs", name).stdout


def hold_a_worker(out: Path) -> None:
    """Stop a worker's process while it is at a shard, so that the run cannot end by itself."""
    until = time.monotonic() + 120
    while True:
        assert time.monotonic() < until
        for file in half_written(out):
            pid = int(file.name.split("-")[-2])
            os.kill(pid, signal.SIGSTOP)
            if file.exists():
                return
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)


def test_submitted_twice_is_refused_and_stopped_goes_on(
    capfilt: Callable[..., subprocess.CompletedProcess[str]], options: list[str], tmp_path: Path
) -> None:
    web, out = tmp_path / "web", tmp_path / "out"
    for index in range(4):
        write_shard(web, index, 90)
    first = capfilt("submit", web, out, *options).stdout.strip()
    again = capfilt("submit", web, out, *options)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"is being worked on by job {first}" in again.stderr
    hold_a_worker(out)
    by_hand = [sys.executable, "-m", "capfilt", "run", str(web), str(out), "--local", *options[:6]]
    refused = subprocess.run(by_hand, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert f"is being worked on by {first} (process" in refused.stderr.splitlines()[-1]
    stopped = capfilt("stop", first)
    assert (stopped.returncode, stopped.stdout) == (0, f"{first}: stopped\n")
    assert len(commits(out)) < 4
    assert list(out.rglob("*.tmp")) == []
    assert not (out / "lease.json").exists()
    second = capfilt("submit", web, out, *options).stdout.strip()
    assert second == f"{first[:-1]}2"
    assert capfilt("logs", second, "-f").returncode == 0
    assert len(commits(out)) == 4
    alone = tmp_path / "alone"
    by_hand[by_hand.index(str(out))] = str(alone)
    assert subprocess.run(by_hand, capture_output=True, timeout=300, check=False).returncode == 0
    assert hashes(out) == hashes(alone)


def test_wrong_job_and_no_server_are_one_line(
    capfilt: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    unknown = capfilt("logs", "nobody-1")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "no such job" in unknown.stderr
    command = [sys.executable, "-m", "capfilt", "jobs", "--address", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Ray job server there" in done.stderr
