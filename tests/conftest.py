from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web_server import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A loopback web server; see `tests/web_server.py`."""
    with WebServer() as server:
        yield server
