"""The webhook, against a real server on loopback that is well, ill, slow or gone."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from capfilt.cli import app
from capfilt.errors import ConfigError, InputError
from capfilt.run import webhook
from capfilt.run.summary import Summary
from capfilt.run.webhook import Webhook

SECRET = "T0P-S3CR3T"
SUMMARY = Summary("out", 3, 1, (), (), 0, 40, 2.0)


class Listener(ThreadingHTTPServer):
    """Keeps what is posted and answers with each of `statuses` in turn, then with 200."""

    daemon_threads = True

    def __init__(self, statuses: tuple[int, ...], wait_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.wait_s = list(statuses), wait_s
        self.heard: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/{SECRET}?key={SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, json.loads(body)))
        time.sleep(self.server.wait_s)
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(*statuses: int, wait_s: float = 0.0) -> Iterator[Listener]:
    with Listener(statuses, wait_s) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE_S", 0.05)


def test_webhook_tells_what_came_of_a_run() -> None:
    with listening() as server:
        Webhook(server.url, command="run", output="out").finished(SUMMARY)
    ((path, told),) = server.heard
    assert path == f"/hooks/{SECRET}?key={SECRET}"
    assert (told["event"], told["exit_code"], told["output"]) == ("finished", 0, "out")
    assert told["text"] == "capfilt run of out finished: 40 images, 3 shards done"
    assert told["summary"] == json.loads(json.dumps(SUMMARY.to_dict()))


@pytest.mark.parametrize(
    ("error", "event", "code"),
    [(InputError("no shards"), "failed", 2), (KeyboardInterrupt(), "interrupted", 130)],
)
def test_webhook_tells_of_an_early_end_and_lets_it_pass(
    error: BaseException, event: str, code: int
) -> None:
    with listening() as server:
        hook = Webhook(server.url, command="run", output="out")
        with pytest.raises(type(error)), hook.following():
            raise error
    ((_, told),) = server.heard
    assert (told["event"], told["exit_code"]) == (event, code)
    assert told.get("error") == (str(error) or None)


@pytest.mark.parametrize(
    ("statuses", "heard", "said"),
    [
        ((500, 429), 3, None),
        ((503, 503, 503), 3, "HTTP 503"),
        ((404,), 1, "HTTP 404"),
        ((302,), 1, "HTTP 302"),  # would arrive without its body
    ],
)
def test_webhook_tries_again_where_that_may_help(
    statuses: tuple[int, ...], heard: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(*statuses) as server:
        Webhook(server.url, command="run", output="out").finished(SUMMARY)
    assert len(server.heard) == heard
    expected = [] if said is None else [f"webhook http://127.0.0.1: nobody was told ({said})"]
    assert caplog.messages == expected


def test_webhook_that_nobody_answers_costs_a_bounded_time_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "DEADLINE_S", 0.5)
    caplog.set_level(logging.DEBUG)
    with listening(wait_s=60.0) as server:
        gone = server.url
        started = time.monotonic()
        Webhook(gone, command="run", output="out").finished(SUMMARY)
        assert time.monotonic() - started < 30
    Webhook(gone, command="run", output="out").finished(SUMMARY)
    assert "no answer within 0.5 s" in caplog.messages[0]
    assert "Connection refused" in caplog.messages[-1]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"ftp://host/{SECRET}", f"http:///{SECRET}", f"https://me:{SECRET}@host/", SECRET]
)
def test_webhook_that_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="--webhook") as raised:
        Webhook(url, command="run", output="out")
    assert SECRET not in str(raised.value)


def test_commands_tell_how_they_ended(
    web: str, captioner: str, filter_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a failed shard, by the option; its retry, by the variable; one without INPUT."""
    out, mended = tmp_path / "out", (Path(web) / "00001.tar").read_bytes()
    (Path(web) / "00001.tar").write_bytes(mended[:3000])
    models = ["--captioner", captioner, "--filter", filter_, "--local"]
    with listening() as server:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        run = ["run", web, str(out), *models, "--webhook", server.url]
        assert CliRunner().invoke(app, run).exit_code == 1
        (Path(web) / "00001.tar").write_bytes(mended)
        monkeypatch.setenv(webhook.ENVIRONMENT, server.url)
        assert CliRunner().invoke(app, ["retry-failed", str(out), "--local"]).exit_code == 0
        nowhere = ["run", str(tmp_path / "wbe"), str(tmp_path / "none"), *models]
        assert isinstance(CliRunner().invoke(app, nowhere).exception, InputError)
        signal.signal(signal.SIGTERM, on_sigterm)
    told = [content for _, content in server.heard]
    assert [(t["command"], t["event"], t["exit_code"]) for t in told] == [
        ("run", "finished", 1),
        ("retry-failed", "finished", 0),
        ("run", "failed", 2),
    ]
    assert [failed["id"] for failed in told[0]["summary"]["shards"]["failed"]] == ["00001"]
    assert told[1]["summary"]["shards"]["done"] == 1
    assert "wbe: not found" in told[2]["error"]
    assert SECRET not in (out / "manifest.json").read_text()


def test_webhook_without_a_url_is_nothing() -> None:
    hook = Webhook(None, command="run", output="out")
    with hook.following():
        hook.finished(SUMMARY)
