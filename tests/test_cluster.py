"""Dividing what a cluster has among workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from capfilt.cluster import Node, Resources, divide
from capfilt.errors import ConfigError

HEAD = (0, 0)  # a head that computes nothing


def nodes(*has: tuple[int, int], group: str | None = None) -> list[Node]:
    """As Ray lists them: by cores and GPUs, where a kind of which there is none is left out."""
    labels = {} if group is None else {"ray.io/node-group": group}
    kinds = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in has]
    return [{"Resources": {k: n for k, n in r.items() if n}, "Labels": labels} for r in kinds]


MIXED = nodes(HEAD, (8, 2), (1, 1), (4, 0))  # with a node of CPUs alone


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, Resources(3, 1, 1)),
        ({"gpus_per_worker": 0.5}, Resources(5, 0.5, 1)),  # a core each: one fits on the third node
        ({"gpus_per_worker": 0.4}, Resources(5, 0.4, 1)),  # a fraction never spans two GPUs
        ({"gpus_per_worker": 0.25}, Resources(9, 0.25, 1)),
        ({"gpus_per_worker": 2}, Resources(1, 2, 1)),  # a worker never spans two nodes
        ({"workers": 2}, Resources(2, 1, 1)),
        ({"shards": 1}, Resources(1, 1, 1)),
        ({"gpus_per_worker": 0}, Resources(3, 0, 4)),
        ({"gpus_per_worker": 0, "workers": 13}, Resources(13, 0, 1)),
    ],
)
def test_mixed_nodes_are_divided_node_by_node(asked: dict[str, Any], found: Resources) -> None:
    assert divide(MIXED, **{"workers": None, "gpus_per_worker": None, **asked}) == found


@pytest.mark.parametrize(
    ("has", "workers", "gpus", "said"),
    [
        (MIXED, 4, 1, r"4 workers .* 3 GPUs and 13 CPUs on 4 nodes, room for 3: lower --workers"),
        (MIXED, 14, 0, "room for 13"),
        (MIXED, None, 3, "room for 0"),
        (MIXED, None, 1.5, "above 1 it must be a whole number"),
        (nodes((4, 0)), None, 1, "room for 0: --gpus-per-worker 0 uses CPUs"),
        (nodes(HEAD), None, None, "room for 0"),
        (nodes(HEAD), 4, 1, "room for 0"),
    ],
)
def test_what_is_not_there_is_refused(
    has: Sequence[Node], workers: int | None, gpus: float | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        divide(has, workers=workers, gpus_per_worker=gpus, shards=1000)


def test_more_than_there_is_may_be_asked_for_by_number_where_nodes_are_of_groups() -> None:
    """An autoscaler's cluster without any GPU: how many it would bring is not known to Ray."""
    empty, small = nodes(HEAD, group="head"), nodes((2, 0), group="cpu")
    assert divide(empty, workers=4, gpus_per_worker=1, shards=1000) == Resources(4, 1, 1)
    assert divide(empty, workers=4, gpus_per_worker=1, shards=2) == Resources(2, 1, 1)
    assert divide(small, workers=4, gpus_per_worker=0, shards=1000) == Resources(4, 0, 2)
    assert divide(small, workers=2, gpus_per_worker=0, shards=1000) == Resources(2, 0, 1)
    with pytest.raises(ConfigError, match="room for 0"):
        divide(empty, workers=None, gpus_per_worker=1, shards=1000)


def test_ray_labels_a_node_of_a_group_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own part that says a node's labels; KubeRay and the launcher set the variable."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "cpu")
    labels = ResourceAndLabelSpec(num_cpus=1, num_gpus=0).resolve(is_head=True).labels
    node = {"Resources": {"CPU": 1.0}, "Labels": labels}
    assert divide([node], workers=4, gpus_per_worker=1) == Resources(4, 1, 1)
