"""Ray's job server: the part of a cluster's dashboard that takes jobs, by HTTP from anywhere.

The cluster's ports are not guarded: whoever reaches the job server can run anything there. So it
listens on loopback, or in a private network, and is reached through a tunnel or a login.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from capfilt.errors import CapfiltError, ConfigError, InputError
from capfilt.io.files import absolute
from capfilt.service.job import Job, name_of

HERE = "http://127.0.0.1:8265"
_ENVIRONMENT = "RAY_API_SERVER_ADDRESS"  # Ray's own; it goes before any argument
_STOP_WITHIN_S = 60  # after SIGTERM; Ray's 3 s are too few to give shards and the lease back
_PATIENCE_S = 60.0  # with a server that has a hiccup, and with a job that Ray should have killed
_ANSWER_WITHIN_S = 60.0  # one that does not has a hiccup
_LOOK_EVERY_S = 0.5
_HICCUP = re.compile("status code 5")  # else what was asked is wrong, and stays so

Answer = TypeVar("Answer")

log = logging.getLogger("capfilt")


class JobServer:
    """A cluster's jobs that capfilt has submitted."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client

    @classmethod
    def at(cls, address: str | None) -> JobServer:
        """Reach a job server.

        Args:
            address: `http://host:port`; None takes RAY_API_SERVER_ADDRESS, else this machine's.

        Raises:
            ConfigError: None answers there.
        """
        address = address or os.environ.get(_ENVIRONMENT) or HERE
        place = urlsplit(address)
        try:
            if place.scheme not in ("http", "https") or not place.hostname:
                raise ConfigError("it is to be http://HOST:8265, the address of the dashboard")
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname, port), timeout=10).close()
            with _environment(_ENVIRONMENT, address):
                return cls(_Client(address))
        except (ConfigError, OSError, RuntimeError, ValueError, AuthenticationError) as error:
            raise ConfigError(
                f"--address {address}: no Ray job server there ({_one_line(error)})"
            ) from None

    def jobs(self) -> list[Job]:
        """All, in the order in which they were submitted.

        Raises:
            CapfiltError: The server does not answer any more.
        """
        found = [
            Job(
                id=str(details.submission_id),
                status=str(details.status.value),
                input=details.metadata["input"],
                output=details.metadata["output"],
                began=_seconds(details.start_time),
                ended=_seconds(details.end_time),
                message=" ".join((details.message or "").split()),
            )
            for details in self._ask(self._client.list_jobs)
            if details.metadata and details.metadata.get("capfilt")
        ]
        return sorted(found, key=lambda job: (job.began or float("inf"), job.number))

    def of(self, output: str) -> list[Job]:
        """Those of an OUTPUT, in their order."""
        mine = [job for job in self.jobs() if job.name == name_of(output)]
        return sorted(mine, key=lambda job: job.number)

    def job(self, name: str) -> Job:
        """The job that a person means: by its id, or the last one by its name or its OUTPUT.

        Raises:
            InputError: There is none.
        """
        jobs = self.jobs()
        for job in reversed(jobs):
            if name in (job.id, job.name) or absolute(name) == job.output:
                return job
        known = ", ".join(job.id for job in jobs[-3:]) or "none"
        raise InputError(f"{name}: no such job here; the latest: {known} (`capfilt jobs` has all)")

    def submit(
        self,
        command: Sequence[str],
        folder: Path,
        job_id: str,
        facts: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> None:
        """Start a command in a copy of a folder, with variables that its line does not show.

        Raises:
            ConfigError: The server does not take it; there is a job of that id.
        """
        try:
            self._client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {
                        **environment,
                        "CAPFILT_JOB": job_id,
                        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WITHIN_S),
                    },
                },
                metadata={"capfilt": "1", **facts},
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"the job server did not take {job_id}: {_one_line(error)}") from None

    def logs(self, job: Job) -> str:
        """What it has written until now."""
        return str(self._ask(lambda: self._client.get_job_logs(job.id)))

    def follow(self, job: Job) -> Iterator[str]:
        """What it has written and writes, in pieces, until it ends.

        A connection that a tunnel or a proxy closes before is made anew.
        """
        shown, is_over = 0, False
        while not is_over:
            is_over = self.job(job.id).is_over  # before the look: then that one sees everything
            for piece in self._tail(job, shown):
                shown += len(piece)
                yield piece
            time.sleep(_LOOK_EVERY_S)

    def _tail(self, job: Job, skip: int) -> Iterator[str]:
        """Its log from a character on, until it ends or the connection does."""
        pieces = self._client.tail_job_logs(job.id)
        with asyncio.Runner() as runner, suppress(RuntimeError, OSError, ClientError):
            while (piece := runner.run(_next(pieces))) is not None:
                yield piece[skip:]
                skip = max(0, skip - len(piece))

    def stop(self, job: Job) -> Job:
        """Ask a job to give its shards back, and wait until it has ended.

        Raises:
            CapfiltError: It has not, though its time was over: says what it is doing.
        """
        asked_s = time.monotonic()
        self._ask(lambda: self._client.stop_job(job.id))
        log.info("%s is asked to stop; it has %d s to give its shards back", job.id, _STOP_WITHIN_S)
        while not (now := self.job(job.id)).is_over:
            waited_s = time.monotonic() - asked_s
            if waited_s > _STOP_WITHIN_S + _PATIENCE_S:
                raise CapfiltError(_still_there(now, waited_s))
            time.sleep(_LOOK_EVERY_S)
        return now

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the server answers; where it has a hiccup, it is asked again for a while."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return question()
            except (OSError, RuntimeError) as error:  # those of `requests` are of the first kind
                is_hiccup = isinstance(error, OSError) or _HICCUP.search(str(error))
                if not is_hiccup or time.monotonic() > until:
                    raise CapfiltError(f"the job server fails: {_one_line(error)}") from error
            time.sleep(_LOOK_EVERY_S)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's waits for an answer for ever."""

    def _do_request(self, *request: Any, **options: Any) -> Any:
        return super()._do_request(*request, **{"timeout": _ANSWER_WITHIN_S, **options})


def _still_there(job: Job, waited_s: float) -> str:
    if job.status == "PENDING":
        doing = "it waits for a place on the head, `ray status` says for what"
    else:
        doing = (
            f"`capfilt logs {job.id}` shows what it does, `ray status` whether its node is there"
        )
    return (
        f"{job.id} is {job.status.lower()} still, {waited_s:.0f} s after it was asked to stop: "
        f"{doing}; the same command asks it again"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


async def _next(pieces: object) -> str | None:
    return await anext(pieces, None)  # type: ignore[call-overload, no-any-return]


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
