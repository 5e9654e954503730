"""`capfilt submit --watch` on a real cluster of two nodes, beside a real download."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capfilt.io.outputs import LEASE
from tests.run.conftest import captioner, commits, filter_, hashes, write_shard  # noqa: F401
from tests.run.test_cluster import half_written, wait_for
from tests.service.test_cluster import capfilt, options, server  # noqa: F401 - fixtures
from tests.web_server import WebServer, encoded, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

Command = Callable[..., subprocess.CompletedProcess[str]]
SHARDS, PER_SHARD = 4, 4
LONG_S = 900  # on a machine that has more to do


@contextmanager
def slow_download(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real img2dataset that fetches one image after the other, each a second long."""
    with WebServer() as web:
        lines = ["caption,url"]
        for number in range(SHARDS * PER_SHARD):
            url = web.put(f"/{number}.jpg", encoded(picture()), wait_s=1.0)
            lines.append(f"a picture,{url}")
        (folder / "list.csv").write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "capfilt", "ingest", str(folder / "list.csv")]
        command += [str(folder / "web"), "--allow-private-hosts", "--processes", "1"]
        command += ["--threads", "1", "--samples-per-shard", str(PER_SHARD)]
        downloading = subprocess.Popen(command, start_new_session=True)
        try:
            yield downloading
        finally:
            if downloading.poll() is None:
                os.killpg(downloading.pid, signal.SIGKILL)


def submitted(capfilt: Command, *arguments: object) -> str:  # noqa: F811
    """The id of a watch as a job."""
    done = capfilt("submit", *arguments, "--watch")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def alone(web: Path, out: Path, options: list[str]) -> dict[str, str]:  # noqa: F811
    """The same work by one process, when everything is there."""
    command = [sys.executable, "-m", "capfilt", "run", str(web), str(out), "--local", *options[:6]]
    subprocess.run(command, check=True)
    return hashes(out)


def test_watch_on_a_cluster_takes_what_a_slow_download_has_finished(
    capfilt: Command,  # noqa: F811
    options: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """It begins before INPUT is there; what is finished is done while the rest is not there yet."""
    web, out = tmp_path / "web", tmp_path / "out"
    job = submitted(capfilt, web, out, *options, "--limit", SHARDS)
    wait_for((out / LEASE).exists, LONG_S)  # it has looked, and found no INPUT
    with slow_download(tmp_path) as downloading:
        wait_for(lambda: (web / "00001_stats.json").exists(), LONG_S)
        os.killpg(downloading.pid, signal.SIGSTOP)  # a line that hangs
        there = {file.name.partition("_")[0] for file in web.glob("*_stats.json")}
        assert {"00000", "00001"} <= there < {f"{shard:05d}" for shard in range(SHARDS)}
        wait_for(lambda: set(commits(out)) == there, LONG_S)
        os.killpg(downloading.pid, signal.SIGCONT)
        assert downloading.wait(timeout=LONG_S) == 0
    followed = capfilt("logs", job, "-f")
    assert followed.returncode == 0, followed.stdout
    assert f"{SHARDS} done" in followed.stdout
    assert sorted(commits(out)) == [f"{shard:05d}" for shard in range(SHARDS)]
    fetched = sum(json.loads(f.read_text())["successes"] for f in web.glob("*_stats.json"))
    assert sum(commit["counts"]["read"] for commit in commits(out).values()) == fetched > 0
    assert not (out / LEASE).exists()
    assert hashes(out) == alone(web, tmp_path / "alone", options)


def test_watch_on_a_cluster_that_gets_sigterm_gives_its_shard_back(
    capfilt: Command,  # noqa: F811
    options: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """To the driver, as Ray, Kubernetes and Slurm send it; nothing else would end the watch."""
    web, out = tmp_path / "web", tmp_path / "out"
    write_shard(web, 0, 12)
    job = submitted(capfilt, web, out, *options)
    wait_for(lambda: "00000" in commits(out), LONG_S)
    write_shard(web, 1, 150)
    wait_for(lambda: half_written(out), LONG_S)
    os.kill(json.loads((out / LEASE).read_text())["pid"], signal.SIGTERM)
    followed = capfilt("logs", job, "-f")
    assert followed.returncode == 1
    assert "interrupted; the same command goes on where it stopped" in followed.stdout
    assert sorted(commits(out)) == ["00000"]
    assert list(out.rglob("*.tmp")) == []
    assert not (out / LEASE).exists()
    again = submitted(capfilt, web, out, *options, "--limit", "1")
    assert capfilt("logs", again, "-f").returncode == 0
    assert hashes(out) == alone(web, tmp_path / "alone", options)
