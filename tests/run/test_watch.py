"""`capfilt watch`: shards are taken as they are finished."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import RunConfig
from capfilt.errors import ConfigError, InputError
from capfilt.io.commits import Failure, InputRecord, write_failure
from capfilt.io.inputs import Inputs, find_shards
from capfilt.run import watch
from capfilt.run.job import run
from capfilt.run.retry import retry_of
from capfilt.run.where import Where
from tests.call import capfilt
from tests.run.conftest import commits, hashes, write_shard
from tests.run.test_cluster import wait_for
from tests.web_server import WebServer, encoded, picture


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.1)


def test_watch_takes_what_is_there_and_what_comes_and_nothing_unfinished(
    config: RunConfig, tmp_path: Path
) -> None:
    web, out = tmp_path / "web", tmp_path / "out"
    where = Where(str(web), str(out), local=True, watch=True, limit=2)

    def download() -> None:
        write_shard(web, 0, 12, finished=False)  # no shard has stats yet: nothing is finished
        time.sleep(1.0)
        assert commits(out) == {}
        write_shard(web, 1, 12)
        wait_for(lambda: "00001" in commits(out))
        write_shard(web, 2, 12, finished=False)
        write_shard(web, 0, 12)

    with_errors: list[BaseException] = []

    def guarded() -> None:
        try:
            download()
        except BaseException as error:  # noqa: BLE001 - it crosses a thread
            with_errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    summary = run(config, where)
    thread.join()
    assert with_errors == []
    assert (summary.shards_done, summary.unfinished) == (2, ("00002",))
    assert sorted(commits(out)) == ["00000", "00001"]
    run(config, Where(str(web), str(tmp_path / "at once"), local=True))
    assert hashes(out) == hashes(tmp_path / "at once")
    assert not (out / "lease.json").exists()


def test_watch_ends_with_its_limit(config: RunConfig, web: str, tmp_path: Path) -> None:
    where = Where(web, str(tmp_path / "out"), local=True, watch=True, limit=3)
    assert run(config, where).shards_done == 3


def test_watch_does_nothing_again(config: RunConfig, web: str, tmp_path: Path) -> None:
    where = Where(web, str(tmp_path / "out"), local=True, watch=True, until_idle_s=0.5)
    assert run(config, where).shards_done == 4
    summary = run(config, where)
    assert (summary.shards_done, summary.shards_before) == (0, 4)


def test_watch_looks_again_whatever_a_look_raises(
    config: RunConfig, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def fail_once(url: str, **options: Any) -> Inputs:
        looks.append(url)
        if len(looks) == 2:  # the first is the run's own
            raise ZeroDivisionError
        return find_shards(url, **options)

    monkeypatch.setattr(watch, "find_shards", fail_once)
    out = tmp_path / "out"
    run(config, Where(web, str(out), local=True, watch=True, until_idle_s=1.0))
    assert len(looks) > 2


def test_watch_of_what_never_comes_is_an_error(config: RunConfig, tmp_path: Path) -> None:
    places = (str(tmp_path / "wbe"), str(tmp_path / "out"))
    with pytest.raises(InputError, match="wbe: not found"):
        run(config, Where(*places, local=True, watch=True, until_idle_s=0.5))


def test_watch_refuses_what_it_cannot_do(config: RunConfig, web: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allow-unfinished"):
        Where(web, str(tmp_path / "out"), watch=True, allow_unfinished=True)
    deduped = replace(config, images=replace(config.images, dedupe="exact"))
    with pytest.raises(ConfigError, match="dedupe"):
        run(deduped, Where(web, str(tmp_path / "out"), local=True, watch=True))


def test_retry_failed_does_those_and_no_others(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = (Path(web) / "00001.tar").read_bytes()
    (Path(web) / "00001.tar").write_bytes(whole[:3000])
    assert len(run(config, Where(web, str(out), local=True)).shards_failed) == 1
    (Path(web) / "00001.tar").write_bytes(whole)
    write_shard(Path(web), 4, 12)
    summary = run(*retry_of(str(out), local=True))
    assert (summary.shards_done, summary.shards_before) == (1, 3)
    assert sorted(commits(out)) == ["00000", "00001", "00002", "00003"]
    assert list((out / "failures").iterdir()) == []
    with pytest.raises(InputError, match="no run here"):
        retry_of(str(tmp_path / "nothing"))


def test_retry_failed_takes_what_is_unfinished_where_the_run_did(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out, shard = tmp_path / "out", Path(web) / "00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000])
    (Path(web) / "00001_stats.json").unlink()
    where = Where(web, str(out), local=True, allow_unfinished=True)
    assert len(run(config, where).shards_failed) == 1
    shard.write_bytes(whole)
    assert run(*retry_of(str(out), local=True)).shards_done == 1
    assert list((out / "failures").iterdir()) == []


def test_retry_failed_names_what_input_has_no_more_and_fails(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out, gone, back = tmp_path / "out", Path(web) / "00001.tar", Path(web) / "00002.tar"
    whole = {file: file.read_bytes() for file in (gone, back)}
    for file, content in whole.items():
        file.write_bytes(content[:3000])
    assert len(run(config, Where(web, str(out), local=True)).shards_failed) == 2
    gone.unlink()
    (Path(web) / "00001_stats.json").unlink()
    (Path(web) / "00002_stats.json").unlink()  # it is fetched again
    summary = run(*retry_of(str(out), local=True))
    assert (summary.shards_done, summary.missing) == (0, ("00001", "00002"))
    back.write_bytes(whole[back])
    (Path(web) / "00002_stats.json").write_text('{"successes": 12}')
    done = capfilt("retry-failed", out, "--local")
    assert done.returncode == 1
    assert "1 done, 2 before, 1 failed ones not in INPUT" in done.stdout
    assert "failed shard 00001: not in INPUT, or unfinished" in done.stdout
    assert [file.name for file in (out / "failures").iterdir()] == ["00001.json"]


def test_retry_failed_forgets_what_a_run_has_done_that_died_just_then(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(config, Where(web, str(out), local=True))
    [shard, *_] = find_shards(web).shards
    write_failure(str(out), Failure(shard.id, InputRecord.of(shard), 3, "an error"))
    summary = run(*retry_of(str(out), local=True))
    assert (summary.shards_done, summary.exit_code) == (0, 0)
    assert list((out / "failures").iterdir()) == []


@pytest.mark.slow
def test_watch_beside_a_slow_img2dataset(config: RunConfig, tmp_path: Path) -> None:
    """A download of half a second an image; the first commit is there before the last stats."""
    pytest.importorskip("img2dataset")
    web, out = tmp_path / "web", tmp_path / "out"
    common = ["--captioner", config.captioner, "--filter", config.filter, "--json", "--local"]
    with WebServer() as server:
        lines = ["caption,url"]
        for number in range(16):
            url = server.put(f"/{number}.jpg", encoded(picture()), wait_s=1.0)
            lines.append(f"a picture,{url}")
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "capfilt"]
        ingest = [*command, "ingest", str(tmp_path / "list.csv"), str(web)]
        ingest += ["--allow-private-hosts", "--samples-per-shard", "4", "--processes", "1"]
        watching = [*command, "watch", str(web), str(out), *common, "--until-idle", "30s"]
        watcher = subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        downloading = subprocess.Popen([*ingest, "--threads", "1"])
        wait_for(lambda: commits(out), 200)
        assert downloading.poll() is None, "the download was over before there was a commit"
        assert downloading.wait(timeout=200) == 0
        stdout, stderr = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, stderr.decode()
    assert json.loads(stdout)["shards"]["done"] == 4
    shutil.rmtree(tmp_path / "alone", ignore_errors=True)
    run(config, Where(str(web), str(tmp_path / "alone"), local=True))
    assert sorted(commits(out)) == sorted(commits(tmp_path / "alone"))


def test_watch_terminated_gives_back_its_shards_and_its_lease(
    config: RunConfig, tmp_path: Path
) -> None:
    web, out = tmp_path / "web", tmp_path / "out"
    write_shard(web, 0, 90)
    command = [sys.executable, "-m", "capfilt", "watch", str(web), str(out), "--local"]
    command += ["--captioner", config.captioner, "--filter", config.filter]
    process = subprocess.Popen(
        [*command, "--set", "compute.batch_size=3"], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (out / "data").exists())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.endswith("interrupted; the same command goes on where it stopped\n")
    assert not (out / "lease.json").exists()
    assert list(out.rglob("*.tmp")) == []
