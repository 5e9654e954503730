"""The loop with one seed. A method puts a part on the agenda and says where its output will be.

<name>/                     a pre-training         <name>-captioner/, <name>-filter/   from it
<name>-joint/               a finetuning of both at once, sharing weights
runs/<name>/                output of `capfilt run`
figures/<name>.json         what was measured
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from capfilt.bootstrap.agenda import Agenda
from capfilt.bootstrap.config import BootstrapConfig
from capfilt.bootstrap.figures import Figures
from capfilt.bootstrap.material import Material
from capfilt.config import NONE, RunConfig
from capfilt.data.config import DatasetConfig, SourceName
from capfilt.data.sources import open_dataset
from capfilt.errors import InputError, TrainingError
from capfilt.models.checkpoint import Role
from capfilt.record import Verdict
from capfilt.run.job import run
from capfilt.run.where import Where
from capfilt.train.blip import BlipConfig
from capfilt.train.config import PretrainConfig, TrainConfig
from capfilt.train.output import Output
from capfilt.train.stage import Stage


@dataclass(frozen=True)
class Seed:
    """One seed's folder and what is to be done there."""

    seed: int
    folder: Path
    config: BootstrapConfig
    material: Material
    agenda: Agenda
    live: bool = False

    def pretrain(
        self,
        name: str,
        texts: DatasetConfig,
        *,
        start: Path | None = None,
        as_long_as: DatasetConfig | None = None,
    ) -> Path:
        """Pre-train on texts and the human set: a new model, or on from `start`.

        Texts are weighted so that an epoch shows as many of them as the web has: whatever an arm's
        texts, there are as many steps at the same rates, with the same share of the human set.
        With `as_long_as`, steps are more by as much as those texts, with the human set, are more
        than the web's with it.
        """
        folder = self.folder / name

        def config() -> PretrainConfig:
            human_texts = self.material.human_texts()
            web, human = _count(self.material.web_texts()), _count(human_texts)
            datasets = (replace(texts, weight=web / _enough(texts, web)), human_texts)
            given = self.config.pretrain
            model, loop = given.model, given.loop
            if as_long_as is not None:
                more = (_count(as_long_as) + human) / (web + human)
                loop = replace(loop, steps=round(loop.steps * more))
            if start is not None:
                model = _started(model, start)
                model = replace(model, itc=replace(model.itc, temperature=0.0))
            return replace(
                given,
                seed=self.seed,
                vocabulary=self.material.vocabulary,
                data=replace(given.data, datasets=datasets),
                model=model,
                loop=loop,
            )

        self._train("pre-train", "blip_pretrain", folder, config)
        return folder

    def finetune(self, model: Path, role: Role) -> Path:
        """Finetune the captioner or the filter of a pre-training on the human set."""
        folder = model.with_name(f"{model.name}-{role}")

        def config() -> TrainConfig:
            captioner, filter_ = self.config.captioner, self.config.filter
            start, datasets = str(model), (self.material.human_texts(),)
            if role == "captioner":
                return replace(
                    captioner,
                    seed=self.seed,
                    data=replace(captioner.data, datasets=datasets),
                    model=replace(captioner.model, start=start),
                )
            return replace(
                filter_,
                seed=self.seed,
                data=replace(filter_.data, datasets=datasets),
                model=replace(filter_.model, start=start),
            )

        self._train("finetune", f"blip_finetune_{role}", folder, config)
        return folder / role

    def finetune_jointly(self, model: Path) -> tuple[Path, Path]:
        """Finetune captioner and filter as one model that shares weights as in pre-training.

        Losses are those of both finetunings, for as long as the longer of them; everything else is
        the filter's.

        Source: BLIP, arXiv:2201.12086, section 4.3 and Table 4.
        """
        folder = model.with_name(f"{model.name}-joint")

        def config() -> PretrainConfig:
            given, captioner, filter_ = (
                self.config.pretrain, self.config.captioner, self.config.filter
            )  # fmt: skip
            size = filter_.model.image_size
            loop = max(filter_.loop, captioner.loop, key=lambda loop: (loop.steps, loop.epochs))
            began = _started(given.model, model)
            return PretrainConfig(
                seed=self.seed,
                vocabulary=self.material.vocabulary,
                data=replace(filter_.data, datasets=(self.material.human_texts(),)),
                optimiser=filter_.optimiser,
                schedule=filter_.schedule,
                loop=replace(filter_.loop, steps=loop.steps, epochs=loop.epochs),
                model=replace(
                    began,
                    image=replace(began.image, image_size=size),
                    itc=filter_.model.itc,
                    itm=filter_.model.itm,
                    lm=captioner.model.lm,
                    drop=filter_.model.drop,
                    recompute=filter_.model.recompute,
                ),
            )

        self._train("finetune jointly", "blip_pretrain", folder, config)
        return folder / "captioner", folder / "filter"

    def run(self, name: str, captioner: Path, filter_: Path | None) -> Path:
        """Caption and filter the web; without a filter every text is kept.

        A caption's random numbers are a function of seed and key, so two runs of one captioner
        write the same captions.
        """
        folder = self.folder / "runs" / name

        def do() -> bool:
            given = self.config.run
            prompt = given.captions.prompt
            if prompt is None:
                prompt = self.config.captioner.model.lm.prompt
            config = RunConfig(
                captioner=str(captioner),
                filter=NONE if filter_ is None else str(filter_),
                seed=self.seed,
                captions=replace(given.captions, prompt=prompt),
                scoring=given.scoring,
                selection=given.selection,
                compute=given.compute,
            )
            where = Where(input=self.material.web, output=str(folder), local=True)
            threads = torch.get_num_threads()
            try:
                summary = run(config, where, live=self.live)
            finally:
                torch.set_num_threads(threads)  # a worker leaves one for all that follows
            if summary.shards_failed:
                failed = summary.shards_failed[0]
                raise InputError(f"{self.material.web}: shard {failed.shard.id}: {failed.error}")
            if not summary.tally.samples[Verdict.KEPT]:
                raise TrainingError(
                    f"{folder}: the filter keeps no text at all. Where results.md gives it a ROC "
                    "AUC near 50, train it longer, else lower run.selection.min_match_prob; "
                    "remove this folder, and the filter's if that changes"
                )
            return summary.shards_done > 0

        self._add(f"run {name}", "run", do)
        return folder

    def texts(self, run: Path, *sources: SourceName) -> DatasetConfig:
        """What a run kept, of all sources or of these."""
        kept = sources or ("web", "synthetic")
        return DatasetConfig(str(run), texts="pairs", sources=kept)

    def arm(
        self,
        name: str,
        texts: DatasetConfig,
        *,
        start: Path | None = None,
        as_long_as: DatasetConfig | None = None,
    ) -> Path:
        """Pre-train on an arm's texts and measure the model, if the arm is wanted.

        The arm of a further round is called `<arm>-<round>`.
        """
        folder = self.folder / name
        if name.partition("-")[0] in self.config.arms:
            self.pretrain(name, texts, start=start, as_long_as=as_long_as)
            self._measure_model(name, folder)
        return folder

    def measure_modules(self, name: str, captioner: Path, filter_: Path) -> None:
        """Measure a finetuned captioner and filter."""

        def do() -> bool:
            found = self._figures(f"modules-{name}")
            found.captions(captioner, self.config.captioner.model.lm.prompt)
            found.matching(filter_)
            return found.save()

        self._add(f"measure modules {name}", "measure modules", do)

    def measure_harvest(self, name: str, run: Path) -> None:
        """Measure what a captioner and a filter made of the web."""

        def do() -> bool:
            found = self._figures(f"harvest-{name}")
            found.harvest(run)
            return found.save()

        self._add(f"measure harvest {name}", "measure harvest", do)

    def _measure_model(self, arm: str, model: Path) -> None:
        """As it is and, where wanted, its captions once finetuned."""
        finetuned = self.finetune(model, "captioner") if self.config.evaluate.finetune else None

        def do() -> bool:
            found = self._figures(arm)
            found.retrieval(model / "filter")
            found.captions(model / "captioner", self.config.pretrain.model.lm.prompt)
            if finetuned is not None:
                found.captions(finetuned, self.config.captioner.model.lm.prompt, "finetuned_")
            return found.save()

        self._add(f"measure {arm}", "measure a model", do)

    def _figures(self, name: str) -> Figures:
        path = self.folder / "figures" / f"{name}.json"
        return Figures(path, self.config, self.material)

    def _train(
        self, kind: str, stage: str, folder: Path, config: Callable[[], TrainConfig]
    ) -> None:
        def do() -> bool:
            was_done = Output(folder).summary() is not None
            Stage.load(stage).train(config(), folder, live=self.live)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the models are beside them
            return not was_done

        self._add(f"{kind} {folder.name}", kind, do)

    def _add(self, name: str, kind: str, do: Callable[[], bool]) -> None:
        self.agenda.add(f"seed {self.seed}: {name}", do, kind=kind)


def _enough(texts: DatasetConfig, web: int) -> int:
    """How many texts an arm has; refused where the web has more than a thousand times as many."""
    count = _count(texts)
    if count * 1000 < web:
        raise TrainingError(
            f"{texts.path}: {count} texts ({', '.join(texts.sources)}) of a web of {web} are too "
            "few to train on; lower run.selection.min_match_prob or leave the arm out (`arms`)"
        )
    return count


def _started(model: BlipConfig, start: Path) -> BlipConfig:
    """A model that goes on from another's weights, not from those of its parts."""
    image, text = replace(model.image, weights=""), replace(model.text, weights="")
    return replace(model, start=str(start), image=image, text=text)


def _count(texts: DatasetConfig) -> int:
    """How many texts there are to train on."""
    return open_dataset("texts", texts).stock.size
