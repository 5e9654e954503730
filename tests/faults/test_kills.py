"""`capfilt run` on a cluster of several nodes whose workers, nodes and driver are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Undisturbed, command

WORKERS = 2
# Of ten kills, in this order again and again: a driver and its workers take seconds to start.
VICTIMS = ("worker",) * 4 + ("node",) + ("worker",) * 3 + ("driver", "node")
PATIENCE_S = 240.0
# A dead node is noticed in about two seconds, not in a quarter of a minute.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 4,
}


@dataclass
class Nodes:
    """A real Ray cluster: a head that computes nothing, and nodes of one core each."""

    cluster: Any
    computing: list[Any] = field(default_factory=list)

    def add(self) -> None:
        self.computing.append(self.cluster.add_node(num_cpus=1, wait=False))

    def workers(self) -> list[int]:
        """The processes that hold models."""
        return [
            pid for node in self.computing for pid in _children(_raylet(node)) if _is_worker(pid)
        ]

    def kill_one(self, rng: random.Random) -> None:
        """Kill a whole node at once, and give the cluster another."""
        node = self.computing.pop(rng.randrange(len(self.computing)))
        raylet = _raylet(node)
        for pid in (*_children(raylet), raylet):
            _kill(pid)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()


def _raylet(node: Any) -> int:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


def _children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(line) for line in listing.stdout.split()]


def _is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Actor")
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "_system_config": HEALTH, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    found = Nodes(cluster)
    for _ in range(WORKERS):
        found.add()
    yield found
    cluster.shutdown()


class Driver:
    """`capfilt run`, started again whenever it has ended."""

    def __init__(self, found: Undisturbed, out: Path, address: str) -> None:
        options = ("--address", address, "--workers", str(WORKERS), "--gpus-per-worker", "0")
        self._arguments = command(found, out, *options)
        self.ends: Counter[int] = Counter()
        self._out = out
        self._start()

    def _start(self) -> None:
        with (self._out.parent / "driver.log").open("ab") as log:
            self.process = subprocess.Popen(self._arguments, stdout=log, stderr=log)

    def restart_if_ended(self) -> bool:
        code = self.process.poll()
        if code is None:
            return False
        self.ends[code] += 1
        self._start()
        return True

    def kill(self) -> None:
        _kill(self.process.pid)
        self.process.wait()


def half_written(out: Path) -> bool:
    """Whether a living worker is at a shard: what a dead one has left has not changed lately."""
    now = time.time()
    for file in (out / "data").glob(".*.tmp"):
        try:
            if now - file.stat().st_mtime < 1.0:
                return True
        except FileNotFoundError:
            continue
    return False


def lose_commits(out: Path, rng: random.Random) -> None:
    """So that there is work left for the kills that are to come."""
    commits = sorted((out / "commits").glob("*.json"))
    for commit in rng.sample(commits, k=max(1, len(commits) // 2)):
        commit.unlink()


def kill_during_a_run(
    found: Undisturbed, nodes: Nodes, out: Path, kills: int, seed: int
) -> Counter[str]:
    """Kill at random moments of its work, then let the run come to its end.

    Returns:
        Who was killed.
    """
    rng = random.Random(seed)
    driver = Driver(found, out, nodes.cluster.address)
    done: Counter[str] = Counter()
    until = time.monotonic() + PATIENCE_S
    while done.total() < kills:
        assert time.monotonic() < until, (done, (out.parent / "driver.log").read_text()[-3000:])
        if driver.process.poll() == 0:
            lose_commits(out, rng)
        driver.restart_if_ended()
        if not half_written(out):
            time.sleep(0.02)
            continue
        time.sleep(rng.uniform(0.0, 1.0))
        workers = nodes.workers()
        if not workers:
            continue
        victim = VICTIMS[done.total() % len(VICTIMS)]
        if victim == "worker":
            _kill(rng.choice(workers))
        elif victim == "node":
            nodes.kill_one(rng)
        else:
            driver.kill()
        done[victim] += 1
        until = time.monotonic() + PATIENCE_S
    while driver.process.wait(timeout=PATIENCE_S) != 0:
        driver.restart_if_ended()
    # Shards are given up after three tries alone on a worker; the next call takes them up again.
    last = subprocess.run(driver._arguments, capture_output=True, text=True, timeout=PATIENCE_S)
    assert last.returncode == 0, last.stderr
    return done


@pytest.mark.timeout(900)
def test_ten_kills_of_workers_nodes_and_driver_change_nothing(
    undisturbed: Undisturbed, nodes: Nodes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = kill_during_a_run(undisturbed, nodes, out, kills=10, seed=0)
    assert done == {"worker": 7, "node": 2, "driver": 1}
    undisturbed.assert_equal(out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_of_workers_nodes_and_driver_change_nothing(
    undisturbed: Undisturbed, nodes: Nodes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = kill_during_a_run(undisturbed, nodes, out, kills=100, seed=1)
    assert done == {"worker": 70, "node": 20, "driver": 10}
    undisturbed.assert_equal(out)
