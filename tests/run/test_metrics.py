"""What Prometheus finds: at the metrics port of a real Ray node, and in the dashboard's queries."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from capfilt.config import RunConfig
from capfilt.io.inputs import find_shards
from capfilt.run import metrics
from capfilt.run.actor import Actor, load_worker
from capfilt.run.job import run
from capfilt.run.meter import Meter
from capfilt.run.request import task_of
from capfilt.run.where import Where
from capfilt.tally import Tally
from tests.run.conftest import write_shard

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
DASHBOARD = Path(__file__).parents[2] / "jobs/grafana/capfilt.json"
ALL = (*metrics.OF_WORKERS, *metrics.OF_DRIVER)
SAMPLE = re.compile(r"^(ray_capfilt_\w+){(.*)} (\S+)$", re.MULTILINE)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A Ray node of two cores; gives what its metrics port shows."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "2000")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("CAPFILT_LOG_FORMAT", "json")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    (found,) = ray.nodes()
    url = f"http://{found['NodeManagerAddress']}:{found['MetricsExportPort']}/metrics"

    def page() -> str:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return str(answer.read().decode())

    yield page
    ray.shutdown()


def wait_for(page: Callable[[], str], is_there: Callable[[str], bool]) -> str:
    """The first page that has what is waited for."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            found = page()
        except OSError:  # the node's agent is starting
            found = ""
        if is_there(found):
            return found
        time.sleep(1.0)
    raise AssertionError(f"not among {sorted({match[1] for match in SAMPLE.finditer(found)})}")


def values(page: str, metric: metrics.Metric, *tags: str) -> dict[tuple[str, ...], float]:
    """A metric's samples by the values of some tags."""
    found = {}
    for match in SAMPLE.finditer(page):
        if match[1] == metric.exported:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            found[tuple(labels[tag] for tag in tags)] = float(match[3])
    return found


def test_metrics_of_a_run_are_at_the_nodes_port(
    node: Callable[[], str], config: RunConfig, tmp_path: Path
) -> None:
    for index in range(3):
        write_shard(tmp_path / "web", index, 12)
    (tmp_path / "web/00002.tar").write_bytes(b"no tar")
    place, out = str(tmp_path / "web"), str(tmp_path / "out")
    done = run(config, Where(place, out, workers=1, gpus_per_worker=0))
    assert (done.shards_done, len(done.shards_failed)) == (2, 1)

    # A worker of our own, which is not ended with the run: what it has counted is shown in full.
    actor = ray.remote(Actor).options(num_cpus=1).remote()
    ray.get(actor.load.remote(task_of(config, out), load_worker, 1))
    tally = Tally()
    for shard in find_shards(place).shards[:2]:
        tally.merge(Tally.from_dict(ray.get(actor.process.remote(shard, True, None)).counts))
    (worker,) = {
        json.loads(file.read_text())["telemetry"]["worker"]
        for file in (tmp_path / "out/commits").iterdir()
    }
    ray.get(actor.in_flight.remote())

    def is_told(page: str) -> bool:
        counted = [
            v
            for (w, _), v in values(page, metrics.IMAGES, "worker", "verdict").items()
            if w == worker
        ]
        names = {match[1] for match in SAMPLE.finditer(page)}
        wanted = {metric.exported for metric in metrics.OF_WORKERS} - {
            metrics.FAILED_IMAGES.exported
        }
        told = sum(values(page, metrics.SHARDS, "run", "outcome").values())
        return sum(counted) == tally.read and names >= wanted and told == 5  # two of them retried

    page = wait_for(node, is_told)
    of_worker = ("run", "worker")
    key = (out, worker)
    for metric, tag, expected in (
        (metrics.IMAGES, ("verdict",), tally.samples),
        (metrics.TEXTS, ("source", "verdict"), tally.texts),
        (metrics.DROPPED_TEXTS, ("reason",), tally.dropped_texts),
    ):
        found = Counter(
            {
                tags[2:]: int(value)
                for tags, value in values(page, metric, *of_worker, *tag).items()
                if tags[:2] == key
            }
        )
        assert found == Counter(
            {k if isinstance(k, tuple) else (k,): n for k, n in expected.items() if n}
        )
    stages = values(page, metrics.STAGE_SECONDS, *of_worker, "stage")
    assert {tags[2] for tags in stages if tags[:2] == key} == {
        *("read", "decode", "caption", "score", "write", "publish")
    }
    assert values(page, metrics.IMAGES_PER_S, *of_worker)[key] > 0
    assert 0 < values(page, metrics.BUSY_SHARE, *of_worker)[key] <= 1
    assert values(page, metrics.BATCHES_WAITING, *of_worker)[key] == 0
    outcomes = values(page, metrics.SHARDS, "run", "outcome")
    assert outcomes == {(out, "done"): 2, (out, "failed"): 1, (out, "retried"): 2}

    logged = json_lines(worker)
    assert {"00000", "00001"} <= {line.get("shard") for line in logged}


def json_lines(worker: str) -> list[dict[str, Any]]:
    """What a worker has logged, of its process's stderr as Ray keeps it."""
    folder = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    lines = "".join(file.read_text() for file in folder.glob("worker-*.err")).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if line.get("worker") == worker]


def test_dashboard_asks_for_every_metric_with_tags_that_it_has() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    asked += [variable.get("definition", "") for variable in board["templating"]["list"]]
    known = {metric.exported: {*metric.tags} for metric in ALL}
    named: set[str] = set()
    for query in asked:
        names = set(re.findall(r"ray_\w+", query))
        assert names <= known.keys(), query
        tags = set(re.findall(r"(\w+)!?=", query)) | set(re.findall(r"by \((\w+)\)", query))
        for name in names:
            assert tags <= known[name], query
        named |= names
    assert named == known.keys()
    for target in (t for panel in board["panels"] for t in panel["targets"]):
        query = target["expr"]
        grouped = set(re.findall(r"by \((\w+)\)", query))
        [own] = {tuple(metric.tags) for metric in ALL if metric.exported in query}
        has = grouped or (set() if "sum(" in query else {*own})
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= has, query
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)


def test_dashboards_kept_share_is_of_the_texts_that_were_judged() -> None:
    """As `Tally.kept_share` is: a text whose image failed was never looked at."""
    board = json.loads(DASHBOARD.read_text())
    [panel] = [panel for panel in board["panels"] if panel["title"] == "Texts kept"]
    kept, judged = panel["targets"][0]["expr"].split(" / ")
    assert 'verdict="kept"' in kept
    assert 'verdict!="failed"' in judged


def test_page_lists_every_metric_with_its_kind_and_tags() -> None:
    rows = re.findall(r"^\| `(ray_\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", tags))) for name, kind, tags in rows}
    assert listed == {m.exported: (m.kind, {*m.tags} - {"run"}) for m in ALL}


def test_meter_counts_seconds_by_stage_and_the_models_share() -> None:
    meter = Meter(lanes=2)
    began = time.monotonic()
    with meter.stage("caption"):
        time.sleep(0.05)
    most = time.monotonic() - began
    meter.add("score", 1.0)
    meter.add("read", 5.0)
    meter.queue("a", 2)
    meter.queue("b", 1)
    meter.forget("a")
    found = meter.read()
    assert 0.05 <= found.seconds["caption"] <= most
    assert found.busy_s == pytest.approx((found.seconds["caption"] + 1.0) / 2)
    assert found.batches_waiting == 1
    assert list(meter.each("read", iter([1, 2]))) == [1, 2]
