"""Ray: connecting to a cluster, or starting one here, and dividing what it has among workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from capfilt.errors import ConfigError

# The label with a node's group, where whoever starts the nodes can start more of a kind:
# Ray's cluster launcher, KubeRay. Of groups that have no node yet Ray itself knows nothing.
_NODE_GROUP = "ray.io/node-group"

Node = Mapping[str, Any]  # as Ray lists it

log = logging.getLogger("capfilt")


@dataclass(frozen=True)
class Resources:
    """What each worker asks of the cluster."""

    workers: int
    gpus: float  # per worker, fractions allowed below 1
    cpus: int  # per worker; a CPU worker's models use each


def connect(address: str | None) -> None:
    """Connect to a Ray cluster, or start one on this machine with its dashboard on loopback.

    Raises:
        ConfigError: No cluster answers at the address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    if ray.is_initialized():
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(address)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place


def _init(address: str | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        log.info("starting Ray on this machine")
        ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", **settings)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({reason})") from None


def resources(
    *,
    workers: int | None,
    gpus_per_worker: float | None,
    shards: int | None = None,
    option: str = "--workers",
) -> Resources:
    """`divide` what the connected cluster's living nodes have.

    Raises:
        ConfigError: The cluster does not have what was asked for (Ray itself would wait forever).
    """
    return divide(
        _alive(), workers=workers, gpus_per_worker=gpus_per_worker, shards=shards, option=option
    )


def divide(
    nodes: Sequence[Node],
    *,
    workers: int | None,
    gpus_per_worker: float | None,
    shards: int | None = None,
    option: str = "--workers",
) -> Resources:
    """Divide nodes among workers, node by node: a worker never spans two.

    With GPUs: as many workers as they allow, with a core each. Without: one worker per node, with
    all its cores; or as many as asked for, with the most cores that leave room for all. Never more
    workers than there are shards, where it is shards that they work on.

    More than there is room for may be asked for by number where the nodes are of groups: an
    autoscaler brings them, be it from none, and the workers are waited for.

    Raises:
        ConfigError: There is not what was asked for.
    """
    cpus, gpus = _counts(nodes, "CPU"), _counts(nodes, "GPU")
    may_grow = workers is not None and any(_NODE_GROUP in node["Labels"] for node in nodes)
    each = gpus_per_worker if gpus_per_worker is not None else float(any(gpus))
    if each > 1 and not float(each).is_integer():
        raise ConfigError(f"--gpus-per-worker {each:g}: above 1 it must be a whole number")
    if each:
        fit = sum(min(_sharing(gpu, each), cpu) for gpu, cpu in zip(gpus, cpus, strict=True))
        count = workers or fit
    else:
        fit = sum(cpus)
        count = workers or min(fit, sum(cpu > 0 for cpu in cpus))
    count = count if shards is None or not count else min(count, shards)
    if count > fit and may_grow:
        log.warning("there is room for %d of %d workers until more nodes have joined", fit, count)
    elif not 1 <= (workers or count) <= fit:
        advice = f"lower {option} or --gpus-per-worker"
        if each and not any(gpus):
            advice = "--gpus-per-worker 0 uses CPUs"
        raise ConfigError(
            f"{workers or count or 1} workers with {each:g} GPU and a CPU core each were asked "
            f"for, but the cluster has {sum(gpus)} GPUs and {sum(cpus)} CPUs on {len(nodes)} "
            f"nodes, room for {fit}: {advice}"
        )
    if each:
        return Resources(count, each, 1)
    all_of_one = max(1, *cpus)  # for nodes that are yet to come, too
    choices = range(all_of_one, 0, -1)
    most = next((c for c in choices if sum(cpu // c for cpu in cpus) >= count), all_of_one)
    return Resources(count, 0, most)


def room(needs: Resources) -> int:
    """How many workers that ask for as much the cluster's living nodes hold, busy or not."""
    nodes = _alive()
    cpus = [cpu // needs.cpus for cpu in _counts(nodes, "CPU")]
    if not needs.gpus:
        return sum(cpus)
    gpus = [_sharing(gpu, needs.gpus) for gpu in _counts(nodes, "GPU")]
    return sum(min(pair) for pair in zip(cpus, gpus, strict=True))


def _alive() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def _counts(nodes: Sequence[Node], kind: str) -> list[int]:
    return [int(node["Resources"].get(kind, 0)) for node in nodes]


def _sharing(gpus: int, each: float) -> int:
    """Workers that a node's GPUs serve; a fraction never spans two GPUs: 0.4 makes two on each."""
    return gpus * int(1 / each) if each < 1 else int(gpus // each)
