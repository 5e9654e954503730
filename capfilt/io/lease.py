"""The lease: a file in an OUTPUT that says who works on it, so that nobody else begins the same.

Its holder writes it anew every few seconds, counting. Whoever finds one watches it: where it
changes, its holder lives, and the newcomer is refused with the holder's name; where it does not for
`LASTS_S`, its holder is dead, and the newcomer takes its place. So only changes count, by the
newcomer's own steady clock: the times in it are for people. A process that is known to have ended,
because it was of this machine, is not waited for.

Of several that come at once one is let in: the file system or the store decides which
(`capfilt.io.claim`). Where neither may have, each looks after `SETTLE_S` whether what it has
written is still there.

A lease can be lost after all: a driver was frozen for minutes, a person has removed the file. Who
has lost it notices within `EVERY_S` and ends; as well where its lease ran out and is gone, since
another may have come and finished. Before that no worker publishes for it: each looks at the lease
itself (`Fence`) before a shard's files go to their places, and again before its commit. Nothing
guards the moment between such a look and what follows it, so the bytes do not depend on a lease:
every shard is committed whole, whoever does it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from capfilt.errors import CapfiltError, CommitError
from capfilt.io import claim, files, outputs, publish
from capfilt.io.commits import encode
from capfilt.io.store import local_path

EVERY_S = 5.0  # between renewals: 17,000 small writes a day
LASTS_S = 60.0  # without one; longer than a store is waited for
SETTLE_S = 1.0  # in which others that found the same in a store have written theirs
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps
JOB = "CAPFILT_JOB"  # environment variable: what the job that runs this process is called

log = logging.getLogger("capfilt")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease. Times are seconds of its own clock, for people alone."""

    token: str
    name: str  # of the job, or of the command that a person has started
    host: str
    pid: int
    machine: str  # where that number means a process; "" where a machine has no name for itself
    began: str  # which process of that number
    since: float
    renewed: float
    renewals: int = 0

    @classmethod
    def here(cls, command: str) -> Self:
        """The holder that this process is to be."""
        now, pid, name = time.time(), os.getpid(), os.environ.get(JOB) or command
        token = uuid.uuid4().hex
        return cls(token, name, socket.gethostname(), pid, _machine(), _began(pid), now, now)

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended: it was one of this machine."""
        if not self.machine or self.machine != _machine():
            return False
        return not publish.is_alive(self.pid) or _began(self.pid) not in ("", self.began)

    def __str__(self) -> str:
        return (
            f"{self.name} (process {self.pid} on {self.host}) since {_moment(self.since)}; its "
            f"lease was renewed at {_moment(self.renewed)} and lasts {LASTS_S:g} s from then"
        )


class Lease:
    """Holds an OUTPUT inside the `with` block.

    Raises:
        CommitError: Another process holds it: says who. Or no lease can be written.
    """

    def __init__(self, output: str, command: str) -> None:
        self._output, self._url = output, _place(output)
        self._me = Holder.here(command)
        self._renewed_at = 0.0  # by `_CLOCK`
        self._lost: str | None = None  # how
        self._lock = threading.Lock()  # for looks by the thread and by `check`
        self._closing = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._is_new = False  # the OUTPUT's folder

    def __enter__(self) -> Self:
        self._is_new = not files.exists(self._output)
        left = None
        while not self._take(left):
            left = await_free(self._output)
        self._renewed_at = time.clock_gettime(_CLOCK)
        self._renewing.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._renewing.join()
        try:
            if self._is_mine(claim.read(self._url)):
                files.remove(self._url)
            if self._is_new:
                files.remove_folder(self._output)  # where nothing has come of it
        except CapfiltError as unreachable:
            log.warning("the lease is not given back and ends by itself: %s", unreachable)

    @property
    def token(self) -> str:
        """What its holder is known by, for a `Fence`."""
        return self._me.token

    def check(self) -> None:
        """To be called now and then, and before anything is written.

        Raises:
            CommitError: Another has taken the lease, believing this process dead, or may have.
        """
        if time.clock_gettime(_CLOCK) - self._renewed_at > LASTS_S:
            self._try_to_renew()  # this thread has woken before the one that does so
        if self._lost is not None:
            raise CommitError(
                f"{self._output}: {self._lost}; this process was still for longer than "
                f"{LASTS_S:g} s, or its lease was removed. What it has committed counts"
            )

    def _take(self, left: bytes | None) -> bool:
        """Write the lease where there is none, or in place of a dead one's."""
        mine = encode(self._me)
        if left is None:
            taken = claim.create(self._url, mine)
        else:
            taken = claim.replace(self._url, left, mine)
        if not taken or (left is None and local_path(self._url) is not None):
            return taken
        time.sleep(SETTLE_S)
        return claim.read(self._url) == mine

    def _renew(self) -> None:
        while self._lost is None and not self._closing.wait(EVERY_S):
            self._try_to_renew()

    def _try_to_renew(self) -> None:
        with self._lock:
            try:
                if self._lost is None:
                    self._renew_once()
            except Exception as error:  # noqa: BLE001 - the store is away, the disk full: it may pass
                log.warning("the lease is not renewed: %s", error)

    def _renew_once(self) -> None:
        found, now = claim.read(self._url), time.clock_gettime(_CLOCK)
        if found is None and now - self._renewed_at > LASTS_S:
            self._lost = "its lease has ended and is gone: another may have been at work since"
        elif found is None:  # a person has removed it
            claim.create(self._url, encode(self._me))
        elif not self._is_mine(found):
            self._lost = f"another has taken over, {_holder(found)}"
        else:
            me = replace(self._me, renewed=time.time(), renewals=self._me.renewals + 1)
            publish.write_bytes(self._url, encode(me))
            self._me, self._renewed_at = me, now

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and _holder(content).token == self._me.token


class Fence:
    """A worker's look at the lease under which its run works, wherever the worker is."""

    def __init__(self, output: str, token: str | None) -> None:
        """Make one.

        Args:
            output: The OUTPUT that the lease is for.
            token: Of the run's `Lease`; None where there is no lease, and so nothing to look at.
        """
        self._output, self._token = output, token

    def check(self) -> None:
        """To be called before anything is published.

        Raises:
            CommitError: Another has taken the lease, or it has ended.
            InputError: The store cannot be reached or denies access.
        """
        if self._token is None:
            return
        until = time.monotonic() + 2 * EVERY_S
        while (found := claim.read(_place(self._output))) is None and time.monotonic() < until:
            time.sleep(EVERY_S / 10)  # where a person has removed it, its holder writes it again
        if found is None or _holder(found).token != self._token:
            now = "it is gone" if found is None else f"another has taken over, {_holder(found)}"
            raise CommitError(
                f"{self._output}: the lease of this worker's run was lost: {now}. The shard is "
                "not published"
            )


def await_free(output: str) -> bytes | None:
    """Wait until nobody holds an OUTPUT: the time of a look, or until a dead one's lease has ended.

    Returns:
        What a dead one has left.

    Raises:
        CommitError: Somebody does; says who.
        InputError: The store cannot be reached or denies access.
    """
    url = _place(output)
    left = claim.read(url)
    until = time.monotonic() + LASTS_S
    if left is not None and not _holder(left).is_gone:
        log.info("%s: is held by %s; looking whether it is renewed", output, _holder(left))
    while left is not None and not _holder(left).is_gone and time.monotonic() < until:
        time.sleep(EVERY_S / 10)
        now = claim.read(url)
        if now not in (None, left):
            raise CommitError(
                f"{output} is being worked on by {_holder(now)}. Wait for it, or end it: Ctrl-C or "
                "SIGTERM, for a job `capfilt stop`"
            )
        left = now
    return left


def holder(output: str) -> Holder | None:
    """Who holds an OUTPUT, or has held it when it died.

    Raises:
        InputError: The store cannot be reached or denies access.
    """
    content = claim.read(_place(output))
    return None if content is None else _holder(content)


def _place(output: str) -> str:
    return files.join(output, outputs.LEASE)


def _holder(content: bytes) -> Holder:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # being written, or another version's
        return Holder("", "somebody", "a host unknown", 0, "", "", 0.0, 0.0)


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _machine() -> str:
    """This machine since its start, and the container in which process numbers mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began, in the machine's ticks; "" where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]
