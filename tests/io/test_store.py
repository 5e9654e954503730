from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.errors import InputError
from capfilt.io import files


def test_resolve_unknown_protocol_is_an_input_error() -> None:
    with pytest.raises(InputError, match="nonsense://x: Protocol not known"):
        files.read_bytes("nonsense://x")


def test_resolve_server_not_there_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/x"):
        files.read_bytes("http://127.0.0.1:9/x")


def test_pipe_url_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not found"):
        files.read_bytes("pipe:touch ran")
    assert list(tmp_path.iterdir()) == []
