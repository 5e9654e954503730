"""Jobs by name, a log over connections that do not last, and a server that has hiccups."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import ray
from ray.job_submission import JobDetails, JobStatus, JobType

from capfilt.errors import CapfiltError
from capfilt.service import cluster
from capfilt.service.cluster import JobServer
from capfilt.service.job import name_of


class Client:
    """Stands in for Ray's: the first connections are closed after the first line."""

    def __init__(self, closed: int, error: Exception | None) -> None:
        self.closed, self.error = closed, error

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "one\n"
        if self.closed:
            self.closed -= 1
            if self.error is not None:
                raise self.error
            return
        yield "two\nthree\n"

    def list_jobs(self) -> list[JobDetails]:
        return [
            JobDetails(
                type=JobType.SUBMISSION,
                submission_id="out-1",
                status=JobStatus.RUNNING if self.closed else JobStatus.SUCCEEDED,
                entrypoint="",
                metadata={"capfilt": "1", "input": "/web", "output": "/out"},
            )
        ]


@pytest.mark.parametrize("name", ["out-1", "/out", "/out/", name_of("/out")])
def test_job_is_found_by_what_a_person_calls_it(name: str) -> None:
    client: Any = Client(0, None)
    assert JobServer(client).job(name).id == "out-1"


@pytest.mark.parametrize("error", [None, RuntimeError("WebSocket connection closed"), OSError()])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_log_is_followed_until_the_job_ends_and_each_line_told_once(
    closed: int, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_LOOK_EVERY_S", 0.0)
    client: Any = Client(closed, error)
    server = JobServer(client)
    with ThreadPoolExecutor(1) as thread:  # the browser of other tests has its loop in this one
        told = thread.submit(lambda: "".join(server.follow(server.job("out-1")))).result()
    assert told == "one\ntwo\nthree\n"
    assert client.closed == 0


class Scripted(ThreadingHTTPServer):
    """A job server of one job that answers as it is told: the last of `says` for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.says: list[str] = ["RUNNING"]  # or an HTTP status; or "cut", "silent"
        self.asked_to_stop = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        if self.path == "/api/version":
            return self._send(200, {"ray_version": ray.__version__})
        self._tell()

    def do_POST(self) -> None:
        self.server.asked_to_stop += 1
        self._tell()

    def _tell(self) -> None:
        says = self.server.says.pop(0) if len(self.server.says) > 1 else self.server.says[0]
        if says == "silent":
            self.server.closing.wait(30)
        if says in ("silent", "cut"):
            return
        if says.isdigit():
            return self._send(int(says), {"result": "an error"})
        if self.command == "POST":
            return self._send(200, {"stopped": True})
        job = {"type": "SUBMISSION", "submission_id": "out-1", "status": says, "entrypoint": ""}
        facts = {"capfilt": "1", "input": "/web", "output": "/out"}
        self._send(200, [{**job, "metadata": facts}])

    def _send(self, status: int, tree: Any) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(cluster, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(cluster, "_ANSWER_WITHIN_S", 0.3)
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_stop_outlasts_hiccups_of_the_server_and_waits_for_the_end(scripted: Scripted) -> None:
    server = JobServer.at(scripted.url)
    job = server.job("out-1")
    scripted.says = ["503", "cut", "silent", "RUNNING", "RUNNING", "500", "cut", "STOPPED"]
    assert server.stop(job).status == "STOPPED"
    assert scripted.asked_to_stop == 4  # three were not heard


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("RUNNING", r"out-1 is running still, \d+ s after .* `capfilt logs out-1` shows what it"),
        ("PENDING", r"out-1 is pending still, \d+ s after .* waits for a place on the head"),
    ],
)
def test_stop_of_a_job_that_does_not_end_says_what_it_does(
    scripted: Scripted, status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_STOP_WITHIN_S", 0)
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.3)
    server = JobServer.at(scripted.url)
    scripted.says = [status]
    with pytest.raises(CapfiltError, match=said):
        server.stop(server.job("out-1"))
    assert scripted.asked_to_stop == 1


@pytest.mark.parametrize(("says", "is_asked_again"), [("503", True), ("404", False)])
def test_server_that_does_not_recover_is_one_line(
    scripted: Scripted, says: str, is_asked_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.3)
    server = JobServer.at(scripted.url)
    job = server.job("out-1")
    scripted.says = [says]
    with pytest.raises(CapfiltError, match=rf"the job server fails: .* status code {says}.*"):
        server.stop(job)
    assert (scripted.asked_to_stop > 1) == is_asked_again
