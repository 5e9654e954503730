from __future__ import annotations

from typing import cast

import pytest

from capfilt.config import RunConfig
from capfilt.errors import ConfigError
from capfilt.run.where import Where
from capfilt.service.cluster import JobServer
from capfilt.service.submit import submit


def test_submit_looks_at_its_places_before_it_asks_a_server() -> None:
    nobody = cast("JobServer", None)
    with pytest.raises(ConfigError, match="holds INPUT"):
        submit(RunConfig("captioner", "filter"), Where("/data/web", "/data"), nobody)
