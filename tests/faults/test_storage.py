"""Disks, stores and clocks that fail a run, which ends with the same bytes afterwards."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import resolve
from capfilt.errors import InputError
from capfilt.io.inputs import find_shards
from capfilt.io.publish import clean_temporary
from capfilt.models.checkpoint import CAPTIONER, PROMPTS
from capfilt.models.images import PixelSpec
from capfilt.models.load import load_captioner, load_filter
from capfilt.record import ModelIdentity
from capfilt.run.device import CPU_BATCH
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.run.verify import verify
from capfilt.run.worker import Worker
from tests.faults.conftest import EVERY, IMAGES, Undisturbed, command, complete, local
from tests.run.conftest import hashes, write_shard

log = logging.getLogger(__name__)


def test_write_that_fails_half_way_is_named_and_leaves_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """No file may grow above 30 kB, which is less than any data shard has."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    arguments = command(undisturbed, tmp_path, "--local", "--set", "compute.max_attempts=1")
    done = complete(arguments, preexec_fn=limited)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data").iterdir()) == []
    assert list((tmp_path / "commits").glob("*")) == []
    local(undisturbed, tmp_path)
    assert list((tmp_path / "failures").iterdir()) == []
    undisturbed.assert_equal(tmp_path)


@pytest.fixture
def small_disk(undisturbed: Undisturbed, tmp_path: Path) -> Iterator[Path]:
    """Has room for three quarters of the output."""
    made = [file for commit in undisturbed.commits.values() for file in commit["outputs"].values()]
    room = sum(file["size_bytes"] for file in made) * 3 // 4
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_keeps_what_is_committed_and_goes_on_when_there_is_room(
    undisturbed: Undisturbed, small_disk: Path
) -> None:
    out = small_disk / "out"
    done = complete(command(undisturbed, out, "--local", "--set", "compute.max_attempts=1"))
    assert done.returncode in (1, 2), done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    committed = list((out / "commits").glob("*.json"))
    assert 0 < len(committed) < len(undisturbed.commits)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert local(undisturbed, out).shards_before == len(committed)
    undisturbed.assert_equal(out)


class Stuck(BaseHTTPRequestHandler):
    """Serves a folder; while `hangs`, a tar's answer stops half way."""

    folder: Path
    hangs: threading.Event
    released: threading.Event

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        content = self._head()
        if content is None:
            return
        if self.hangs.is_set() and self.path.endswith("00002.tar"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.released.wait()
            return
        self.wfile.write(content)

    def _head(self) -> bytes | None:
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        self.end_headers()
        return file.read_bytes()

    def log_message(self, *_: Any) -> None:
        pass


def test_read_that_hangs_fails_its_shard_alone_and_later_changes_nothing(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    hangs, released = threading.Event(), threading.Event()
    hangs.set()
    members = {"folder": Path(undisturbed.web), "hangs": hangs, "released": released}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Stuck,), members)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}/{{00000..00003}}.tar"
        started = time.monotonic()
        summary = local(undisturbed, tmp_path, web, read_timeout_s=1.5, max_attempts=2)
        assert time.monotonic() - started < 30
        [failed] = summary.shards_failed
        assert failed.shard.id == "00002"
        assert "nothing came of it for 1.5 s" in failed.error
        hangs.clear()
        released.set()
        assert local(undisturbed, tmp_path, web).shards_done == 1
        server.shutdown()
    assert hashes(tmp_path) == undisturbed.hashes


def test_commit_lost_after_its_data_is_made_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    local(undisturbed, tmp_path)
    for name in ("00001", "00003"):
        (tmp_path / "commits" / f"{name}.json").unlink()
    assert local(undisturbed, tmp_path).shards_done == 2
    undisturbed.assert_equal(tmp_path)


def test_clock_that_jumps_changes_nothing(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time, itertools.cycle((0.0, 86400.0, -86400.0, 4e9, -1.5e9))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    (tmp_path / "data").mkdir()
    for age in (1e6, -1e6):  # half-written by another machine, whose clock is another
        left = tmp_path / "data" / f".0000{age:g}.tar.elsewhere-1-00000000.tmp"
        left.write_bytes(b"half")
        os.utime(left, (now() - age, now() - age))
    local(undisturbed, tmp_path)
    monkeypatch.undo()
    for left in (tmp_path / "data").glob(".*.tmp"):
        os.utime(left, (now() - 1e6, now() - 1e6))
    local(undisturbed, tmp_path)
    undisturbed.assert_equal(tmp_path)


class Counting:
    """The real captioner, which counts images and does something before one of its batches."""

    def __init__(self, captioner: Any, before: dict[int, Any]) -> None:
        self.pixels, self.identity = captioner.pixels, captioner.identity
        self.images = 0
        self._captioner, self._before = captioner, before

    def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> Any:
        action = self._before.get(self.images)
        if action is not None:
            action()
        self.images += len(keys)
        return self._captioner.caption(pixels, keys)


def worker(found: Undisturbed, out: Path, before: dict[int, Any]) -> tuple[Worker, Counting]:
    captions = replace(found.config.captions, prompt=PROMPTS[CAPTIONER])  # as a run settles it
    config = replace(found.config, captions=captions)
    captioner = Counting(load_captioner(config.captioner, captions, seed=config.seed), before)
    task = Task(config, inspect_models(config), str(out))
    return Worker(task, captioner, load_filter(config.filter, config.scoring)), captioner


def _taken() -> None:
    raise SystemError("the machine is taken away")


def test_worker_taken_away_loses_no_more_than_was_not_put_aside(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    shard = find_shards(undisturbed.web).shards[0]
    at = IMAGES - 4
    first, _ = worker(undisturbed, tmp_path, {at: _taken})
    with pytest.raises(SystemError):
        first.process(shard)
    assert list((tmp_path / "partial" / shard.id).iterdir()) != []
    second, asked = worker(undisturbed, tmp_path, {})
    second.process(shard)
    assert asked.images <= IMAGES - at + EVERY + 4  # a batch is written after the next has begun
    local(undisturbed, tmp_path)
    undisturbed.assert_equal(tmp_path)


class Quick:
    """A captioner without a model, which counts its images and kills its process at one of them."""

    pixels = PixelSpec(size=32)
    identity = ModelIdentity("Quick", "0" * 64, "quick")

    def __init__(self, last: int | None) -> None:
        self.images, self._last = 0, last

    def caption(self, pixels: Sequence[Any], keys: Sequence[str]) -> list[tuple[str, ...]]:
        if self._last is not None and self.images + len(keys) > self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.images += len(keys)
        return [(f"a picture of {key}",) for key in keys]


def annotate_quickly(web: str, out: str, last: int | None, results: Any) -> None:
    """Work on a shard in a process of its own; tell how many images the captioner saw."""
    config = resolve(options={"captioner": "quick", "filter": "none"})
    captioner = Quick(last)
    task = Task(config, {"captioner": captioner.identity}, out)
    worker = Worker(task, captioner, None)
    worker.process(find_shards(web).shards[0])
    results.put(captioner.images)
    worker.close()


@pytest.mark.slow
def test_worker_killed_in_a_shard_of_10_000_images_loses_2_000_at_most(tmp_path: Path) -> None:
    """With `compute.checkpoint_every` as it is by default, and by SIGKILL, at its last batch."""
    write_shard(tmp_path / "web", 0, 10_000)
    spawn = multiprocessing.get_context("spawn")

    def work(out: str, last: int | None) -> tuple[int, int | None]:
        results = spawn.SimpleQueue()
        arguments = (str(tmp_path / "web"), str(tmp_path / out), last, results)
        process = spawn.Process(target=annotate_quickly, args=arguments)
        process.start()
        process.join()
        return process.exitcode or 0, None if results.empty() else results.get()

    assert work("whole", None) == (0, 10_000)
    assert work("out", 9_950) == (-signal.SIGKILL, None)
    code, images = work("out", None)
    assert code == 0
    assert images is not None
    log.info("%d of 10,000 images were asked for again", images)
    assert 50 <= images <= 2_000 + 2 * CPU_BATCH  # a batch is written after the next has begun
    assert len(clean_temporary(str(tmp_path / "out"))) == 2  # as the next run begins
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole") != {}


class Changing(Stuck):
    """A web that replaces a shard by another in the middle of the first answer with it."""

    other: Path

    def do_GET(self) -> None:
        content = self._head()
        if content is None:
            return
        self.wfile.write(content[: len(content) // 2])
        if self.path.endswith("00002.tar") and self.other.exists():
            self.other.replace(self.folder / "00002.tar")
        self.wfile.write(content[len(content) // 2 :])


def test_input_that_changes_between_attempts_is_taken_whole_by_the_next_call(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    web, out = tmp_path / "web", tmp_path / "out"
    shutil.copytree(undisturbed.web, web)
    write_shard(tmp_path / "other", 7, IMAGES)
    members = {"folder": web, "other": tmp_path / "other" / "00007.tar"}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Changing,), members)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{00000..00003}}.tar"
        summary = local(undisturbed, out, url, max_attempts=2)
        [failed] = summary.shards_failed  # the old one was gone, and the new one is not what it was
        assert (failed.shard.id, failed.attempts) == ("00002", 2)
        assert "has changed since this run began" in failed.error
        assert not (out / "commits" / "00002.json").exists()
        assert not (out / "data" / "00002.tar").exists()
        assert local(undisturbed, out, url).shards_done == 1
        server.shutdown()
    local(undisturbed, tmp_path / "fresh", str(web))
    assert hashes(out) == hashes(tmp_path / "fresh") != undisturbed.hashes
    assert verify(str(out)).problems == ()
    assert [p for p in (out / "partial").rglob("*") if p.is_file()] == []


def test_input_that_changes_while_it_is_read_is_not_committed(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.web, tmp_path / "web")
    shards = find_shards(str(tmp_path / "web")).shards
    tar = tmp_path / "web" / "00000.tar"
    first, _ = worker(undisturbed, tmp_path / "out", {8: lambda: os.utime(tar, (1, 1))})
    with pytest.raises(InputError, match=r"00000\.tar: has changed since this run began"):
        first.process(shards[0])
    assert list((tmp_path / "out" / "data").iterdir()) == []
    assert not (tmp_path / "out" / "commits").exists()
    (tmp_path / "web" / "00002.tar").replace(tmp_path / "web" / "00001.tar")  # since listed
    with pytest.raises(InputError, match="has changed"):
        first.process(shards[1])
    with pytest.raises(InputError, match="not found"):
        first.process(shards[2])
