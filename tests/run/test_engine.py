from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.io.inputs import find_shards
from capfilt.run.engine import Done, Inbox, Work
from capfilt.run.local import LocalEngine
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.shard import Form, InputShard
from tests.run.conftest import commits


def work(name: str) -> Work:
    return Work(InputShard(name, Form.TAR, f"/web/{name}.tar", 1, "mtime:1"))


def test_inbox_gives_what_is_there_until_it_ends() -> None:
    inbox = Inbox(iter([work("0"), work("1"), None, None, work("2"), None]))
    assert [w.shard.id for w in inbox.take()] == ["0", "1"]
    assert (inbox.is_open, list(inbox.take())) == (True, [])
    assert [w.shard.id for w in inbox.take()] == ["2"]
    assert inbox.is_open
    assert (list(inbox.take()), inbox.is_open) == ([], False)


def test_inbox_of_a_list_is_emptied_at_once() -> None:
    inbox = Inbox([work("0"), work("1")])
    assert [w.shard.id for w in inbox.take()] == ["0", "1"]
    assert not inbox.is_open


def test_local_engine_waits_for_a_shard_that_comes_when_it_has_nothing_to_do(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    first, second, *_ = find_shards(web).shards
    done: list[str] = []

    def arriving() -> Iterator[Work | None]:
        yield Work(first)
        while not done:
            yield None
        yield None  # now the engine holds nothing
        yield Work(second)

    engine = LocalEngine.load(Task(config, inspect_models(config), str(tmp_path)))
    for outcome in engine.execute(arriving()):
        if isinstance(outcome, Done):
            done.append(outcome.commit.shard)  # noqa: PERF401 - `arriving` looks at it
    assert done == ["00000", "00001"]
    assert list(commits(tmp_path)) == done
