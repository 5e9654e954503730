from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.config import RunConfig
from capfilt.errors import ModelError
from capfilt.run.models import inspect_models, load_models
from capfilt.run.task import Task


@pytest.mark.parametrize("role", ["captioner", "filter"])
def test_load_models_refuses_other_weights_than_the_driver_saw(
    role: str, config: RunConfig, tmp_path: Path
) -> None:
    """A node with another checkpoint under the same name; its shards would be another run's."""
    models = inspect_models(config)
    captioner, filter_ = load_models(Task(config, models, str(tmp_path)))
    assert captioner is not None
    assert filter_ is not None
    assert {"captioner": captioner.identity, "filter": filter_.identity} == models
    models[role] = replace(models[role], sha256="0" * 64)
    found = rf"^{role} .* there are other weights \(sha256 \w{{12}}\) than the driver's \(0{{12}}\)"
    with pytest.raises(ModelError, match=found):
        load_models(Task(config, models, str(tmp_path)))


def test_load_models_leaves_out_what_is_off(config: RunConfig, tmp_path: Path) -> None:
    without = replace(config, filter="none")
    models = inspect_models(without)
    assert models.keys() == {"captioner"}
    _, filter_ = load_models(Task(without, models, str(tmp_path)))
    assert filter_ is None
