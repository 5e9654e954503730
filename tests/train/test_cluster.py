"""What a cluster of ranks may be asked for; that they train together is in `test_stages`."""

from __future__ import annotations

import pytest

from capfilt.errors import ConfigError
from capfilt.train.cluster import Cluster


@pytest.mark.parametrize("workers", [0, -2])
def test_fewer_than_one_worker_is_refused_before_ray_starts(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"--num-workers must be at least 1, is {workers}"):
        Cluster(workers=workers)


@pytest.mark.parametrize("gpus", [-1.0, 0.5, float("nan")])
def test_parts_of_a_gpu_are_refused_before_ray_starts(gpus: float) -> None:
    with pytest.raises(ConfigError, match="training takes whole GPUs, or 0"):
        Cluster(gpus_per_worker=gpus)
