"""`capfilt select`: another dataset from the scores that a run has left, without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from capfilt.config import OutputConfig
from capfilt.cut import CutConfig
from capfilt.errors import ConfigError
from capfilt.io import files
from capfilt.io.commits import list_failures, read_commits, sizes_of
from capfilt.io.lease import Fence, Lease
from capfilt.io.publish import clean_temporary
from capfilt.record import Verdict
from capfilt.run.driver import drive
from capfilt.run.engine import GaveUp
from capfilt.run.manifest import Manifest
from capfilt.run.output import check_output
from capfilt.run.plan import make_plan
from capfilt.run.progress import Progress
from capfilt.run.summary import Summary
from capfilt.schema import to_dict
from capfilt.select.cutter import Cutter
from capfilt.select.engine import CutEngine
from capfilt.select.missing import warn_of_missing
from capfilt.select.origin import CUT_OF, Origin
from capfilt.select.rows import tally_of
from capfilt.select.survey import Survey, each
from capfilt.tally import Tally

CUT_VERSION = 1  # raised by a change of code that changes what a cut writes


@dataclass(frozen=True)
class Forecast:
    """What a cut would keep."""

    origin: str
    before: Tally  # as the origin's commits count
    after: Tally
    candidates: int  # texts that the rules judge
    rules: tuple[str, ...]  # reasons of those that were asked for, or that have dropped a text
    by: str | None  # the score that `kept_from` is of
    kept_from: float | None  # the score that the kept fraction came to

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "origin": self.origin,
            "candidates": self.candidates,
            "left_after": self.left_after(),
            "by": self.by,
            "kept_from": self.kept_from,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }

    def left_after(self) -> dict[str, int]:
        """Texts that are left after each rule, in the order in which the rules hold."""
        left, found = self.candidates, {}
        for reason in self.rules:
            left -= self.after.dropped_texts[reason]
            found[reason] = left
        return found


# Reasons in the order in which their rules hold, and when a rule is asked for.
RULES: Mapping[str, Callable[[CutConfig], bool]] = {
    "below_min_match_prob": lambda config: config.min_match_prob is not None,
    "below_min_similarity": lambda config: config.min_similarity is not None,
    "repetitive_text": lambda config: config.drop_repetitive,
    "metadata_filtered": lambda config: config.where is not None,
    "evaluation_image": lambda config: bool(config.exclude),
    "duplicate_image": lambda config: config.dedupe_images is not None,
    "near_duplicate_image": lambda config: config.dedupe_images == "perceptual",
    "below_kept_fraction": lambda config: config.keep_fraction is not None,
    "not_in_mix": lambda config: config.mix != "both",
    "not_in_top_k": lambda config: config.top_k is not None,
    "duplicate_text": lambda config: config.dedupe_captions,
}


def forecast(origin_url: str, config: CutConfig) -> Forecast:
    """Count what a cut would keep; nothing is written.

    Raises:
        InputError, ConfigError: One line: what, where, what to do.
    """
    survey = Survey.of(*_settled(origin_url, config))
    after, before = Tally(), Tally()
    for tally in each(survey.origin.commits, lambda shard_id: tally_of(survey.rows(shard_id))):
        after.merge(tally)
    for commit in survey.origin.commits.values():
        before.merge(Tally.from_dict(commit.counts))
    judged = sum(after.dropped_texts[reason] for reason in RULES)
    kept = sum(n for (_, verdict), n in after.texts.items() if verdict is Verdict.KEPT)
    rules = tuple(r for r, given in RULES.items() if given(config) or after.dropped_texts[r])
    return Forecast(
        survey.origin.url,
        before,
        after,
        judged + kept,
        rules,
        survey.config.by,
        survey.kept_from,
    )


def select(
    origin_url: str,
    output_url: str,
    config: CutConfig,
    *,
    images: bool = True,
    overwrite: bool = False,
    live: bool = False,
) -> Summary:
    """Cut an OUTPUT anew into another, which is committed, resumed and verified like a run's.

    Args:
        origin_url: OUTPUT of a run or of a cut.
        output_url: Folder of the new dataset.
        config: The rules.
        images: False writes texts and scores only, to be joined by key.
        overwrite: Redo shards that another cut made.
        live: Show progress as a live block, for terminals.

    Raises:
        ConfigError, InputError, CommitError: One line: what, where, what to do.
    """
    output_url = files.absolute(output_url)
    origin, config = _settled(origin_url, config)
    for url in (origin.url, output_url):
        if url.startswith("memory://"):
            raise ConfigError(f"{url}: memory of one process, and a cut takes several")
    origin.check_apart(output_url, "NEW_OUTPUT")
    check_output(output_url)
    survey = Survey.of(origin, config, output_url)
    output = replace(origin.output, images=images and origin.output.images)
    manifest = _manifest(survey, output)
    with Lease(output_url, "capfilt select") as lease:
        commits = read_commits(output_url)
        plan = make_plan(origin.shards(), commits, manifest.fingerprint, sizes_of(output_url))
        manifest.settle(output_url, plan, overwrite=overwrite)
        clean_temporary(output_url)
        works = plan.works()
        measures_noise = manifest.measures_noise
        failed: list[GaveUp] = []
        with Progress(shards=len(works), live=live, noise_ratio=measures_noise) as progress:
            if works:
                fence = Fence(output_url, lease.token)
                cutter = Cutter(survey, output_url, output, manifest.fingerprint, fence)
                engine = CutEngine(cutter, shards=len(works))
                before = list_failures(output_url)
                failed = drive(engine, works, output_url, progress, lease, failed_before=before)
    return Summary.of(output_url, plan, progress, failed, measures_noise=measures_noise)


def _settled(origin_url: str, config: CutConfig) -> tuple[Origin, CutConfig]:
    """Open the origin, and see that it has the scores that the rules need."""
    origin = Origin.open(origin_url)
    warn_of_missing(origin)
    scoring: Mapping[str, bool] = origin.manifest.config["scoring"]
    has = [name for name in ("match_prob", "similarity") if scoring[name]]
    asked = () if config.by is None else (config.by,)
    if config.by is None and has:  # by similarity where there is one, as a run's top_k
        config = replace(config, by="similarity" if scoring["similarity"] else "match_prob")
    for name in dict.fromkeys((*config.scores(), *asked)):
        if not scoring[name]:
            there = f"it has {' and '.join(has)}" if has else "its filter was off"
            raise ConfigError(f"{origin.url} has no {name} of its texts: {there}")
    config = replace(config, exclude=tuple(files.absolute(place) for place in config.exclude))
    return origin, config


def _rules(old: Mapping[str, Any], config: CutConfig) -> dict[str, Any]:
    """What made the verdicts of a cut: its own rules, and those of its origin that hold on."""
    rules, off = to_dict(config), to_dict(CutConfig())
    if not config.judges_scores:
        rules |= {n: rule for n, rule in old.items() if n in off and rules[n] == off[n]}
    filters = dict.fromkeys(rule for rule in (old.get("where"), config.where) if rule)
    if len(filters) > 1:
        rules["where"] = " and ".join(f"({rule})" for rule in filters)
    else:
        rules["where"] = next(iter(filters), None)
    rules["exclude"] = list(dict.fromkeys((*old.get("exclude", ()), *config.exclude)))
    dedupe = {old.get("dedupe_images"), config.dedupe_images}
    rules["dedupe_images"] = next((how for how in ("perceptual", "exact") if how in dedupe), None)
    return rules


def _manifest(survey: Survey, output: OutputConfig) -> Manifest:
    """As a run's: how the texts came about stays, the selection is the cut's."""
    old, config = survey.origin.manifest, survey.config
    selection = _rules(old.rules(), config) | {"ranked_by": survey.ranked_by}
    if config.judges_scores:
        selection["kept_from"] = survey.kept_from
    elif "kept_from" in old.rules():  # with the fraction its score holds on
        selection |= {name: old.rules()[name] for name in ("by", "kept_from")}
    decisive = {
        "cut_version": CUT_VERSION,
        CUT_OF: old.fingerprint,
        "selection": to_dict(config),
        "exclude": survey.facts.excluded,
        "facts": survey.facts.digest(),
        "output": to_dict(output),
    }
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return Manifest(
        input=survey.origin.url,
        human=None,
        human_images=None,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        decisive=decisive,
        config={**old.config, "selection": selection, "output": to_dict(output)},
        models=old.models,
        versions=old.versions,
    )
