"""img2dataset's own process: a request on stdin, a line of JSON on stdout, all else on stderr.

It has one since img2dataset starts processes by spawning, which runs a caller's script again,
takes over Ctrl-C, works in a main thread only and prints to stdout.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from capfilt.errors import InputError
from capfilt.io import files
from capfilt.webguard import Guard


def download(
    request: Mapping[str, Any], *, max_pixels: int, log_file: Path | None = None
) -> list[str]:
    """Run img2dataset in its process, to its end.

    Args:
        request: `guard` and `download`, the arguments of `Guard` and of `img2dataset.download`.
        max_pixels: OpenCV raises on a header above it.
        log_file: Gets what the process says; None for stderr.

    Returns:
        The names of the shards that were given up.

    Raises:
        InputError: The download as a whole failed.
    """
    environ = {
        **os.environ,
        # Spawned processes import capfilt from wherever this one did.
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "NO_ALBUMENTATIONS_UPDATE": "1",  # asks a package index for news at every import
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(max_pixels),
        "OPENCV_LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-c", "from capfilt.ingest.process import serve; serve()"]
    messages = log_file.open("a", encoding="utf-8") if log_file else nullcontext()
    with (
        messages as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environ,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # The pipe stays open: its end tells the process that this one is gone.
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            process.wait()
        except BaseException:
            process.stdin.close()
            process.wait()
            raise
    if not answer:
        says = f"{log_file} says" if log_file else "its messages say"
        raise InputError(
            f"{request['download']['url_list']}: the download ended early; {says} why, "
            "and the same command goes on where it stopped"
        )
    result = json.loads(answer)
    if "error" in result:
        more = f" ({log_file} says more)" if log_file else ""
        raise InputError(f"{request['download']['url_list']}: {result['error']}{more}")
    return [str(name) for name in result["failed"]]


# From here on: within img2dataset's process and those that it starts.


class GuardedDownloader:
    """img2dataset's downloader of one shard, in a process that fetches through the guard.

    Pickled into every spawned process, where the guard has to be installed anew.
    """

    def __init__(self, downloader: Any, guard: Guard) -> None:
        self._downloader = downloader
        self._guard = guard

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        self._guard.install()
        done: tuple[bool, tuple[int, str]] = self._downloader(row)
        return done


def serve() -> None:
    """Read a request from stdin, download, and write one line of JSON to stdout."""
    answers = os.fdopen(os.dup(1), "w")  # not inherited by the processes to come
    os.dup2(2, 1)  # whatever prints, prints to stderr
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer: dict[str, Any] = {"failed": _run_img2dataset(request)}
    except Exception as error:  # noqa: BLE001 - it crosses a process
        traceback.print_exc()  # for the log; the caller raises one line of its own
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    answers.write(json.dumps(answer) + "\n")
    answers.close()


def _end_with_parent() -> None:
    """Two downloads into one folder would mix: none outlives the caller that a rerun replaces."""
    while os.read(0, 1024):
        pass
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _run_img2dataset(request: Mapping[str, Any]) -> list[str]:
    # By name: the package hides this module behind a function `main`.
    img2dataset = importlib.import_module("img2dataset.main")

    exempt = request["guard"]["private_hosts"]
    private_hosts = exempt if isinstance(exempt, bool) else frozenset(exempt)
    guard = Guard(**{**request["guard"], "private_hosts": private_hosts})
    planned: list[int] = []

    def noted(reader: Any) -> Iterator[tuple[int, str]]:
        for shard_id, file in reader:
            planned.append(shard_id)
            yield shard_id, file

    distribute = img2dataset.multiprocessing_distributor

    def distribute_guarded(processes: int, downloader: Any, reader: Any, *rest: Any) -> None:
        distribute(processes, GuardedDownloader(downloader, guard), noted(reader), *rest)

    # The one place where the downloader exists and has not been sent to a process yet.
    img2dataset.multiprocessing_distributor = distribute_guarded  # type: ignore[attr-defined]
    img2dataset.download(**request["download"])
    output = request["download"]["output_folder"]
    done = {entry.name for entry in files.list_folder(output)}
    return [f"{shard:05d}" for shard in planned if f"{shard:05d}_stats.json" not in done]
