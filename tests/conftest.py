from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 - hooks
from tests.web_server import WebServer


_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note how the tests ended; see `pytest_unconfigure`."""
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without C++'s exit handlers where Ray was a driver here.

    Its threads outlive `ray.shutdown` (a dozen after all tests), and what they work on is destroyed
    under them: once every test had passed, and the process died of a segmentation fault.
    """
    if "ray" in sys.modules and _STATUS in config.stash:
        config.get_terminal_writer().flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


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
