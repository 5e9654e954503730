"""JSON lines, of a process of its own: every line of stderr is one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from capfilt import logs
from capfilt.errors import ConfigError
from tests.run.conftest import captioner, filter_, write_shard  # noqa: F401

SECRET = "T0P-S3CR3T"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capfilt", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | environment,
        check=False,
    )


def test_json_lines_tell_shard_and_worker_and_no_secret(
    captioner: str,  # noqa: F811
    filter_: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    for index in range(2):
        write_shard(tmp_path / "web", index, 4)
    (tmp_path / "web/00001.tar").write_bytes(b"no tar")
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run(
            *("--log-format", "json", "run", tmp_path / "web", tmp_path / "out", "--local"),
            *("--captioner", captioner, "--filter", filter_, "--json"),
            CAPFILT_WEBHOOK=f"http://127.0.0.1:{server.server_address[1]}/{SECRET}",
        )
        server.shutdown()
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"time", "level", "message", "host", "pid"} <= set.intersection(*map(set, lines))
    by_message = {line["message"]: line for line in lines}
    good = by_message["shard 00000 is done"]
    commit = json.loads((tmp_path / "out/commits/00000.json").read_text())
    assert (good["shard"], good["worker"]) == ("00000", commit["telemetry"]["worker"])
    assert good["read"] == good["kept"] + good["dropped"] + good["failed"] == 4
    again = [line for line in lines if "tried again" in line["message"]]
    assert [(line["shard"], line["attempts"]) for line in again] == [("00001", 1), ("00001", 2)]
    (bad,) = (line for line in lines if line["level"] == "error")
    assert (bad["shard"], bad["attempts"]) == ("00001", 3)
    assert by_message["the run has ended"]["shards"] == json.loads(done.stdout)["shards"]
    assert (heard[0]["event"], heard[0]["exit_code"]) == ("finished", 1)
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in data for data in written)
    assert SECRET not in done.stderr + done.stdout


def test_an_error_is_a_json_line_too() -> None:
    done = run("status", "/nowhere", CAPFILT_LOG_FORMAT="json")
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["level"]) == (2, "error")
    assert line["message"] == "/nowhere: no run here (no manifest.json)"


def test_json_line_is_one_line_whatever_a_stranger_wrote() -> None:
    formatter = logs._JsonLines("host:1")
    record = logging.LogRecord("capfilt", logging.INFO, "", 1, "\x1b[2J%s\n", ("\x7f",), None)
    record.about = {"shard": "a\u202eb"}
    line = formatter.format(record)
    assert line.isprintable()
    found = json.loads(line)
    assert (found["worker"], found["message"], found["shard"]) == (
        "host:1",
        "\x1b[2J\x7f\n",
        "a\u202eb",
    )


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of text, json"):
        logs.set_up("xml")
