"""Checkpoints by hub id, from a loopback hub through the real huggingface_hub client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from capfilt.demo.tiny import make_captioner, make_filter

COMMIT = "a" * 40


class Hub:
    """Serves folders as hub repositories and notes which files were asked for."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0].strip("/").split("/")
                if path[:2] == ["api", "models"]:
                    name = "/".join(path[2:4])
                    files = sorted(repositories[name].iterdir())
                    if "tree" in path:
                        tree = [
                            {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                            for f in files
                        ]
                        self._send(json.dumps(tree).encode(), body=body)
                    else:
                        siblings = [{"rfilename": f.name} for f in files]
                        about = {"id": name, "sha": COMMIT, "siblings": siblings}
                        self._send(json.dumps(about).encode(), body=body)
                elif "resolve" in path:
                    hub.asked.append(path[-1])
                    file = repositories["/".join(path[:2])] / path[-1]
                    self._send(file.read_bytes(), body=body)
                else:
                    self.send_error(404)

            def _send(self, content: bytes, *, body: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    captioner = make_captioner(tmp_path / "captioner")
    (captioner / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    (captioner / "modeling_evil.py").write_text("raise SystemExit('remote code ran')")
    hub = Hub({"org/captioner": captioner, "org/filter": make_filter(tmp_path / "filter")})
    yield hub
    hub.server.shutdown()


INSPECT = """
import sys
from capfilt.models.checkpoint import inspect
for source, role in zip(sys.argv[1::2], sys.argv[2::2]):
    print(inspect(source, role).sha256)
"""


def identities(*models: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Inspect checkpoints in a process of its own: the client reads its settings at import."""
    return subprocess.run(
        [sys.executable, "-c", INSPECT, *models],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_hub_id_gives_the_folders_identity_without_fetching_pickles_or_code(
    hub: Hub, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    by_id = identities(
        "org/captioner", "captioner", "org/filter", "filter", HF_ENDPOINT=hub.url, HF_HOME=cache
    )
    assert by_id.returncode == 0, by_id.stderr
    by_folder = identities(
        str(tmp_path / "captioner"), "captioner", str(tmp_path / "filter"), "filter"
    )
    assert by_id.stdout == by_folder.stdout
    assert len(set(by_id.stdout.split())) == 2
    assert "model.safetensors" in hub.asked
    assert not [name for name in hub.asked if name.endswith((".bin", ".py"))]


def test_hub_id_is_found_in_the_cache_without_a_network(hub: Hub, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    online = identities("org/captioner", "captioner", HF_ENDPOINT=hub.url, HF_HOME=cache)
    offline = identities("org/captioner", "captioner", HF_HUB_OFFLINE="1", HF_HOME=cache)
    assert offline.stdout == online.stdout != ""
