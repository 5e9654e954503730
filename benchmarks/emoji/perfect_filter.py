"""The experiment with a filter that is never wrong: two more arms of one that is finished.

    capfilt train bootstrap -c pipelines/bootstrap.yaml --out EXPERIMENT
    python benchmarks/emoji/perfect_filter.py EXPERIMENT SEED

Of the web texts and captions that the arms `filter` and `both` of that seed were chosen from,
those are kept that are true, by the truth of the world and its checker. All else is as in them,
if the experiment was made with the config above as it is. Figures are printed, and lie with the
models in EXPERIMENT/perfect-filter.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from capfilt import catalog
from capfilt.bootstrap.agenda import Agenda
from capfilt.bootstrap.experiment import Experiment
from capfilt.bootstrap.figures import Figures
from capfilt.bootstrap.material import Material
from capfilt.bootstrap.seed import Seed
from capfilt.data.config import DatasetConfig
from capfilt.demo.checker import is_true
from capfilt.demo.dataset import read_truth
from capfilt.demo.web import statement
from capfilt.io import files, outputs
from capfilt.io.commits import list_commits
from capfilt.io.ledger import read_ledger
from capfilt.record import Source, Verdict

ARMS = {"filter": (Source.WEB,), "both": (Source.WEB, Source.SYNTHETIC)}


def main() -> None:
    """Choose the texts, pre-train on them and measure the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    experiment = given.experiment.resolve()
    yaml_text = catalog.path("pipelines/bootstrap.yaml").read_text()
    config = Experiment.load().resolve(yaml_text=yaml_text)
    material = Material.of_world(experiment / "world")
    folder = experiment / "perfect-filter" / f"seed-{given.seed}"
    agenda = Agenda()
    seed = Seed(given.seed, folder, config, material, agenda)
    for arm, sources in ARMS.items():
        texts = choose(
            material, experiment / f"seed-{given.seed}/runs/1", folder / f"{arm}-texts", sources
        )
        seed.arm(arm, texts)
    agenda.work()
    found = {arm: Figures.read(folder / f"figures/{arm}.json") for arm in ARMS}
    print(json.dumps(found, indent=1))


def choose(
    material: Material, run: Path, folder: Path, sources: tuple[Source, ...]
) -> DatasetConfig:
    """Write the true texts of a run as a captions file, with the web's pictures beside it."""
    pictures = {picture.key: picture for picture in read_truth(Path(material.web_truth))}
    texts: dict[str, list[str]] = defaultdict(list)
    for key, source, text in judged(run):
        picture = pictures[key]
        if source == Source.WEB:
            holds = picture.web.kind == "true"
        else:
            holds = is_true(statement(text), picture.scene)
        if holds and source in sources:
            texts[key].append(text)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    chosen = []
    for shard in sorted(Path(material.web).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                name = Path(member.name)
                if name.stem in texts and name.suffix not in (".json", ".txt"):
                    (images / name).write_bytes((tar.extractfile(member) or io.BytesIO()).read())
                    chosen.append({"image": str(name), "caption": texts[name.stem]})
    file = folder / "texts.json"
    file.write_text(json.dumps(chosen))
    return DatasetConfig(str(file), images=str(images), texts="pairs")


def judged(run: Path) -> Iterator[tuple[str, str, str]]:
    """Key, source and text of all that the run's filter was asked of."""
    for shard in list_commits(str(run)):
        for batch in read_ledger(files.join(str(run), outputs.ledger_path(shard))):
            for row in batch.to_pylist():
                if row["verdict"] != Verdict.FAILED and row["text"]:
                    yield row["key"], row["source"], row["text"]


if __name__ == "__main__":
    main()
