"""What is measured of models and runs: figures by name, kept in a file, each measured once.

Shares and recalls are in [0, 1], CIDEr in [0, 10].
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from capfilt import catalog
from capfilt.bootstrap.config import BootstrapConfig
from capfilt.bootstrap.material import Material
from capfilt.demo.checker import VERSION, is_true, parse
from capfilt.demo.dataset import read_truth
from capfilt.demo.scene import Scene
from capfilt.demo.web import statement
from capfilt.demo.world import Picture
from capfilt.evaluate.captions import evaluate_captions
from capfilt.evaluate.filter_quality import score_pairs
from capfilt.evaluate.labels import Curve
from capfilt.evaluate.pairs import Captioned, read_captioned, read_labelled
from capfilt.evaluate.pictures import Pictures
from capfilt.evaluate.retrieval import Retrieval
from capfilt.io import files, outputs
from capfilt.io.commits import list_commits
from capfilt.io.ledger import read_ledger
from capfilt.io.publish import write_bytes
from capfilt.models.checkpoint import Role, inspect
from capfilt.models.load import load_captioner, load_filter
from capfilt.record import Source, Verdict
from capfilt.run.manifest import Manifest
from capfilt.schema import to_dict

Values = dict[str, float]

_MERITS = ("true", "things")
_OF_TEXTS = ("itm_token", "max_tokens", "max_words")  # what `run.scoring` says of a text


class Figures:
    """One file of figures."""

    def __init__(self, path: Path, config: BootstrapConfig, material: Material) -> None:
        self._path = path
        self._config = config
        self._material = material
        self._kept = _read(path)
        self._found: dict[str, dict[str, Any]] = {}

    def save(self) -> bool:
        """Write them down; False where nothing was measured anew."""
        if self._found == self._kept:
            return False
        write_bytes(str(self._path), (json.dumps(self._found, indent=1) + "\n").encode())
        return True

    @staticmethod
    def read(path: Path) -> Values:
        """All figures of a file; none where it is not there."""
        parts = _read(path).values()
        return {name: value for part in parts for name, value in part["figures"].items()}

    def retrieval(self, folder: Path) -> None:
        """R@1 of a filter both ways: `tr_r1` finds texts of images, `ir_r1` images of texts."""
        k_test = self._config.evaluate.k_test

        scoring = to_dict(self._config.run.scoring)
        asked = {key: scoring[key] for key in _OF_TEXTS}

        def measure() -> Values:
            found: Retrieval = catalog.stage("evaluate")["retrieval"](
                str(folder),
                self._material.evaluation,
                self._material.evaluation_images,
                k_test=k_test,
                overrides=[f"scoring.{key}={value}" for key, value in asked.items()],
            )
            ranking = found.itm or found.itc
            return {"tr_r1": ranking.image_to_text.r1, "ir_r1": ranking.text_to_image.r1}

        of = self._of(folder, "filter") | {"k_test": k_test, "scoring": asked}
        self._once("retrieval", of, measure)

    def captions(self, folder: Path, prompt: str, prefix: str = "") -> None:
        """BLEU-4 and CIDEr of a captioner and, in the emoji world, how many captions are true."""
        config = replace(self._config.evaluate.captions, prompt=prompt)

        def measure() -> Values:
            model = load_captioner(str(folder), config, seed=0)
            found = evaluate_captions(model, self._captioned, self._pictures)
            values = {"bleu4": found.bleu[-1], "cider": found.cider}
            if self._scenes:
                true = sum(
                    is_true(statement(text), self._scenes[image])
                    for image, text in found.written.items()
                )
                values["captions_true"] = true / len(found.written)
            return {f"{prefix}{name}": value for name, value in values.items()}

        of = self._of(folder, "captioner") | {"captions": to_dict(config)}
        if self._scenes:
            of["checker"] = VERSION
        self._once(f"{prefix}captions", of, measure)

    def matching(self, folder: Path) -> None:
        """ROC AUC of a filter over labelled pairs: of all, and of each kind of false ones."""
        if not self._material.pairs:
            return

        def measure() -> Values:
            pairs = read_labelled(self._material.pairs)
            asked = [(pair.image, pair.caption) for pair in pairs]
            scores = score_pairs(
                load_filter(str(folder), self._config.run.scoring), asked, self._pictures
            )

            def auc(kinds: set[str]) -> float:
                wanted = [i for i, p in enumerate(pairs) if p.matches or p.kind in kinds]
                probs = [scores[i].match_prob or 0.0 for i in wanted]
                return Curve.of(probs, [pairs[i].matches for i in wanted]).roc_auc

            kinds = sorted({pair.kind for pair in pairs if not pair.matches})
            values = {"auc": auc(set(kinds))}
            return values | {f"auc_{kind}": auc({kind}) for kind in kinds if kind}

        of = {
            "pairs": files.digest(self._material.pairs)[1],
            "scoring": to_dict(self._config.run.scoring),
        }
        self._once("matching", self._of(folder, "filter") | of, measure)

    def harvest(self, run: Path) -> None:
        """What a run kept of the web's texts and of its captions.

        In the emoji world also how much of it is true, a shop's words aside (`web_true` of all,
        `web_kept_true` of those that were kept), and how much names only things that are there
        (`web_things`), whatever it says of them; a web text that was written of another picture
        does not, nor a caption that the checker cannot read.
        """
        manifest = Manifest.read(str(run))
        of: dict[str, Any] = {
            "run": manifest and manifest.fingerprint,
            "shards": len(list_commits(str(run))),
        }
        if self._material.web_truth:
            of |= {"merits": list(_MERITS), "checker": VERSION}
        self._once("harvest", of, lambda: self._harvest(run))

    def _harvest(self, run: Path) -> Values:
        counts: Counter[tuple[Source, str]] = Counter()
        truth = self._material.web_truth
        pictures = {p.key: p for p in read_truth(Path(truth))} if truth else {}
        for shard in list_commits(str(run)):
            for batch in read_ledger(files.join(str(run), outputs.ledger_path(shard))):
                for row in batch.to_pylist():
                    if row["verdict"] == Verdict.FAILED:
                        continue
                    seen = ["all", "kept"] if row["verdict"] == Verdict.KEPT else ["all"]
                    merits = _merits(row, pictures[row["key"]]) if pictures else []
                    seen += [f"{name} {merit}" for name in seen for merit in merits]
                    counts.update((Source(row["source"]), name) for name in seen)
        return _shares(counts, has_truth=bool(pictures))

    def _once(self, name: str, of: Mapping[str, Any], measure: Callable[[], Values]) -> None:
        """Measure unless that has been done, of the same models in the same way."""
        kept = self._kept.get(name)
        if kept is None or kept["of"] != of:
            kept = {"of": of, "figures": measure()}
        self._found[name] = kept

    def _of(self, folder: Path, role: Role) -> dict[str, Any]:
        images = files.digest(self._material.evaluation)[1]
        return {"model": inspect(str(folder), role).sha256, "evaluation": images}

    @cached_property
    def _scenes(self) -> dict[str, Scene]:
        """Of the evaluation's images; none where the truth is not known."""
        truth = self._material.evaluation_truth
        return {p.file: p.scene for p in read_truth(Path(truth))} if truth else {}

    @cached_property
    def _captioned(self) -> list[Captioned]:
        return read_captioned(self._material.evaluation)

    @property
    def _pictures(self) -> Pictures:
        return Pictures(self._material.evaluation_images, compute=self._config.run.compute)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(files.read_bytes(str(path))) if path.exists() else {}


def _merits(row: Mapping[str, Any], picture: Picture) -> list[str]:
    """Whether a text is `true`, and whether all `things` that it names are there."""
    if row["source"] == Source.WEB:
        web = picture.web
        holds = web.kind == "true"
        has_things = holds or (web.kind == "lie" and web.wrong != "noun")
    else:
        claim = parse(statement(row["text"] or ""))
        if claim is None:
            return []
        holds = claim.holds(picture.scene)
        has_things = all(picture.scene.group(mention.noun) for mention in claim.mentions)
    return [merit for merit, has in zip(_MERITS, (holds, has_things), strict=True) if has]


def _shares(counts: Counter[tuple[Source, str]], *, has_truth: bool) -> Values:
    web, synthetic = Source.WEB, Source.SYNTHETIC
    kept = {source: counts[source, "kept"] for source in (web, synthetic)}
    values = {
        "texts": float(sum(kept.values())),
        "web_kept": kept[web] / counts[web, "all"],
        "noise_ratio": 1 - kept[synthetic] / counts[synthetic, "all"],
    }
    for source in (web, synthetic) if has_truth else ():
        for merit in _MERITS:
            values[f"{source}_{merit}"] = counts[source, f"all {merit}"] / counts[source, "all"]
            if kept[source]:
                values[f"{source}_kept_{merit}"] = counts[source, f"kept {merit}"] / kept[source]
    return values
