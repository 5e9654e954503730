"""Jobs by name, and a log as it is followed over connections that do not last."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

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
