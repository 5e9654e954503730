from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 - hooks
from tests.web_server import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A loopback web server; see `tests/web_server.py`."""
    with WebServer() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """A run in the tests' own process leaves Ray connected, and the next module starts another."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
