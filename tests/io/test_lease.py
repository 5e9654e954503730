"""Who may work on an OUTPUT: one at a time, whatever becomes of the one before."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capfilt.errors import CommitError
from capfilt.io import claim, files, lease, publish
from capfilt.io.lease import Fence, Lease, await_free, holder
from tests.io.conftest import place, s3, s3_server  # noqa: F401 - fixtures

EVERY_S, LASTS_S = 0.05, 60.0
SHORT_S = 1.0  # where a test waits for the end of a lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EVERY_S", EVERY_S)
    monkeypatch.setattr(lease, "LASTS_S", LASTS_S)
    monkeypatch.setattr(lease, "SETTLE_S", EVERY_S)


@contextlib.contextmanager
def process(
    output: Path, lasts_s: float = LASTS_S, every_s: float = EVERY_S
) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lease until it is killed."""
    script = (
        "import time\n"
        "from capfilt.io import lease\n"
        f"lease.EVERY_S, lease.LASTS_S = {every_s}, {lasts_s}\n"
        f"with lease.Lease({str(output)!r}, 'capfilt run') as held:\n"
        "    print('held', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "        held.check()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "held\n"
        yield started
    finally:
        started.kill()
        started.communicate()


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_lease_is_held_by_one_and_gone_afterwards(place: str) -> None:  # noqa: F811
    with Lease(place, "capfilt run") as held:
        found = holder(place)
        assert found is not None
        assert (found.name, found.pid) == ("capfilt run", os.getpid())
        with pytest.raises(CommitError, match=rf"worked on by capfilt run \(process {os.getpid()}"):
            Lease(place, "capfilt watch").__enter__()
        held.check()
    assert holder(place) is None
    assert files.find(place) == []
    with Lease(place, "capfilt run"):
        pass


def test_lease_names_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPFILT_JOB", "dataset-1")
    named = pytest.raises(CommitError, match=r"worked on by dataset-1 .* since 20\d\d-.* UTC")
    with Lease(str(tmp_path), "capfilt run"), named:
        await_free(str(tmp_path))


def test_lease_leaves_no_folder_where_nothing_came_of_it(tmp_path: Path) -> None:
    with Lease(str(tmp_path / "new"), "capfilt run"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with Lease(str(tmp_path), "capfilt run"):
        pass
    assert tmp_path.exists()


def test_killed_processes_lease_is_taken_over_at_once(tmp_path: Path) -> None:
    with process(tmp_path) as other:
        other.kill()
        other.wait()
        started = time.monotonic()
        with Lease(str(tmp_path), "capfilt run") as held:
            assert time.monotonic() - started < 30
            held.check()
            assert holder(str(tmp_path)).pid == os.getpid()  # type: ignore[union-attr]


def test_another_process_of_the_same_number_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    with process(tmp_path) as other:
        other.kill()
        other.wait()
    left = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps({**left, "pid": os.getppid()}))
    with Lease(str(tmp_path), "capfilt run") as held:
        held.check()


def test_dead_holder_elsewhere_is_waited_for_until_its_lease_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is years ahead or behind; what it has written stays as it is."""
    monkeypatch.setattr(lease, "LASTS_S", SHORT_S)
    known = "nightly-7 (process 1 on elsewhere)"
    for name, renewed in ((known, 0.0), (known, 4e9), ("somebody", None)):
        left = {
            **{"token": "x", "name": "nightly-7", "host": "elsewhere", "pid": 1, "machine": "m"},
            **{"began": "5", "since": renewed, "renewed": renewed, "renewals": 3},
        }
        content = left if renewed is not None else {"not": "a lease"}
        (tmp_path / "lease.json").write_text(json.dumps(content))
        caplog.clear()
        started = time.monotonic()
        with caplog.at_level(logging.INFO), Lease(str(tmp_path), "capfilt run"):
            assert SHORT_S <= time.monotonic() - started < SHORT_S + 20
        assert f"is held by {name}" in caplog.text


def test_clock_that_jumps_neither_frees_a_lease_nor_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time, itertools.cycle((0.0, 86400.0, -86400.0, 4e9, -1.5e9))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    with Lease(str(tmp_path), "capfilt run") as held:
        for _ in range(3):
            with pytest.raises(CommitError, match="is being worked on"):
                await_free(str(tmp_path))
        held.check()


def test_frozen_holder_is_taken_over_and_ends_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LASTS_S", SHORT_S)
    with process(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        with Lease(str(tmp_path), "capfilt select") as held:
            other.send_signal(signal.SIGCONT)
            _, err = other.communicate(timeout=120)
            assert "another has taken over, capfilt select" in err
            held.check()
            assert holder(str(tmp_path)).name == "capfilt select"  # type: ignore[union-attr]


def test_frozen_holder_ends_when_it_wakes_after_its_successor_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows an OUTPUT that is no more: the successor may have been of another config."""
    monkeypatch.setattr(lease, "LASTS_S", SHORT_S)
    with process(tmp_path, lasts_s=SHORT_S) as other:
        other.send_signal(signal.SIGSTOP)
        with Lease(str(tmp_path), "capfilt run"):
            pass
        other.send_signal(signal.SIGCONT)
        _, err = other.communicate(timeout=120)
        assert "another may have been at work since" in err
        assert holder(str(tmp_path)) is None


def test_frozen_holder_knows_when_it_wakes_before_its_thread_has_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next renewal is an hour away."""
    monkeypatch.setattr(lease, "LASTS_S", SHORT_S)
    with process(tmp_path, lasts_s=SHORT_S, every_s=3600.0) as other:
        other.send_signal(signal.SIGSTOP)
        with Lease(str(tmp_path), "capfilt select"):
            other.send_signal(signal.SIGCONT)
            _, err = other.communicate(timeout=120)
            assert "another has taken over, capfilt select" in err


def test_fence_lets_the_holders_workers_through_alone(place: str) -> None:  # noqa: F811
    Fence(place, None).check()
    with Lease(place, "capfilt run") as held:
        Fence(place, held.token).check()
        with pytest.raises(CommitError, match=r"was lost: another has taken over, capfilt run \("):
            Fence(place, "another's").check()
    with pytest.raises(CommitError, match="was lost: it is gone"):
        Fence(place, held.token).check()


def test_fence_waits_for_a_lease_that_a_person_has_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EVERY_S", 0.5)
    with Lease(str(tmp_path), "capfilt run") as held:
        (tmp_path / "lease.json").unlink()
        Fence(str(tmp_path), held.token).check()


def test_lease_outlives_any_error_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a kind that no file system should raise."""

    def fail(url: str) -> bytes | None:
        failures.append(url)
        raise ZeroDivisionError

    failures: list[str] = []
    with Lease(str(tmp_path), "capfilt run") as held:
        with monkeypatch.context() as patch:
            patch.setattr(claim, "read", fail)
            wait_for(lambda: len(failures) >= 2)
        renewals = holder(str(tmp_path)).renewals  # type: ignore[union-attr]
        wait_for(lambda: holder(str(tmp_path)).renewals > renewals)  # type: ignore[union-attr]
        held.check()


def test_lease_that_was_removed_is_written_again(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "capfilt run") as held:
        (tmp_path / "lease.json").unlink()
        wait_for(lambda: holder(str(tmp_path)) is not None)
        held.check()


@pytest.mark.parametrize("left", [None, "a dead one's"])
def test_many_at_once_let_one_in(tmp_path: Path, left: str | None) -> None:
    """It stays until all others are refused, however late they come."""
    output = str(tmp_path)
    if left:
        with process(tmp_path) as other:
            other.kill()
        assert (tmp_path / "lease.json").exists()
    everybody, entered, refused = threading.Barrier(8), threading.Semaphore(0), []

    def attempt(number: int) -> None:
        everybody.wait()
        try:
            with Lease(output, f"run {number}") as held:
                entered.release()
                until = time.monotonic() + 60
                while len(refused) < 7 and time.monotonic() < until:
                    time.sleep(EVERY_S)
                    held.check()
        except CommitError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert entered.acquire(blocking=False)
    assert not entered.acquire(blocking=False), refused
    assert len(refused) == 7
    assert all("is being worked on by run" in error for error in refused), refused
    assert holder(output) is None
    assert list(tmp_path.iterdir()) == []


def test_store_without_conditional_writes_lets_one_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds nothing and writes; the one whose lease stays is let in, the others see it."""
    output = "memory://lease-of-many"
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    everybody, entered, refused = threading.Barrier(4), threading.Semaphore(0), []

    def write_after_all_have_looked(url: str, data: bytes) -> bool:
        is_there = claim.read(url) is not None
        with contextlib.suppress(threading.BrokenBarrierError):
            everybody.wait(timeout=5)
        if not is_there:
            publish.write_bytes(url, data)
        with contextlib.suppress(threading.BrokenBarrierError):
            everybody.wait(timeout=5)  # all have written before any looks
        return not is_there

    monkeypatch.setattr(claim, "create", write_after_all_have_looked)

    def attempt(number: int) -> None:
        try:
            with Lease(output, f"run {number}") as held:
                entered.release()
                until = time.monotonic() + 60
                while len(refused) < 3 and time.monotonic() < until:
                    time.sleep(EVERY_S)
                    held.check()
        except CommitError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attempt, range(4)))
    assert entered.acquire(blocking=False)
    assert not entered.acquire(blocking=False), refused
    assert len(refused) == 3
