"""Stage `evaluate`: what a captioner and a filter are worth, on images with human captions.

    retrieval        filter + captions file                         R@1, R@5, R@10 by ITC and ITM
    captions         captioner + captions file                      BLEU, CIDEr
    vqa              BLIP-2 captioner + questions file              VQA accuracy
    filter_quality   filter + labelled pairs                        ROC AUC, average precision, F1
    noise            OUTPUT of a run, or captioner + filter + images    noise ratio

Source: BLIP, arXiv:2201.12086, sections 4.2, 5.1 and 5.2; the choices are those of its code.
"""

from collections.abc import Sequence

from capfilt.config import NONE, RunConfig, resolve
from capfilt.errors import ConfigError, InputError
from capfilt.evaluate.captions import Captions, evaluate_captions
from capfilt.evaluate.filter_quality import FilterQuality, evaluate_filter
from capfilt.evaluate.noise import Noise, is_run, noise_of_images, noise_of_run
from capfilt.evaluate.pairs import read_captioned, read_labelled
from capfilt.evaluate.pictures import Pictures
from capfilt.evaluate.protocol import decoding
from capfilt.evaluate.questions import read_questions
from capfilt.evaluate.retrieval import Retrieval, evaluate_retrieval
from capfilt.evaluate.vqa import Vqa, evaluate_vqa
from capfilt.io import files
from capfilt.models.blip2_answerer import Blip2Answerer
from capfilt.models.blip2_captioner import Blip2Captioner
from capfilt.models.blip2_filter import Blip2Filter
from capfilt.models.checkpoint import (
    BLIP2_CAPTIONER,
    BLIP2_FILTER,
    MATCH_FILTER,
    architecture_of,
)
from capfilt.models.filter import MatchFilter
from capfilt.models.harmless import open_folder
from capfilt.models.load import load_captioner, load_filter
from capfilt.schema import parse_overrides

WITH_ITM = (MATCH_FILTER, BLIP2_FILTER)
K_TEST = 256  # candidates of a query that ITM judges
RETRIEVAL = {"captioner": NONE, "scoring.similarity": True}
CAPTIONS = {"filter": NONE}
BOTH_SCORES = {"captioner": NONE, "scoring.similarity": True}
SIMILARITY_ALONE = {"captioner": NONE}  # with preset blip2


def retrieval(
    filter_: str,
    pairs: str,
    images: str | None = None,
    *,
    split: str | None = None,
    k_test: int = K_TEST,
    overrides: Sequence[str] = (),
) -> Retrieval:
    """Find images by texts and texts by images."""
    config = resolve(options={**RETRIEVAL, "filter": filter_}, overrides=overrides)
    if k_test < 0:
        raise ConfigError(f"--k-test must be 0 (ITC alone) or more, is {k_test}")
    captioned = read_captioned(pairs, split=split)
    pictures = _pictures(config, images, pairs)
    pictures.check(pair.image for pair in captioned)
    model = load_filter(filter_, config.scoring, precision=config.compute.precision)
    if model.identity.architecture not in WITH_ITM:
        raise ConfigError(f"--filter {filter_}: retrieval needs a {' or a '.join(WITH_ITM)}")
    assert isinstance(model, MatchFilter | Blip2Filter)
    return evaluate_retrieval(model, captioned, pictures, k_test=k_test)


def captions(
    captioner: str,
    pairs: str,
    images: str | None = None,
    *,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> Captions:
    """Caption images and compare with what people wrote."""
    options = {**CAPTIONS, "captioner": captioner}
    prompt = resolve(options=options, overrides=overrides).captions.prompt
    options |= decoding(open_folder(captioner), prompt)
    config = resolve(options=options, overrides=overrides)
    captioned = read_captioned(pairs, split=split)
    pictures = _pictures(config, images, pairs)
    pictures.check(pair.image for pair in captioned)
    model = load_captioner(
        captioner, config.captions, seed=config.seed, precision=config.compute.precision
    )
    return evaluate_captions(model, captioned, pictures)


def vqa(
    captioner: str,
    questions: str,
    images: str | None = None,
    *,
    annotations: str | None = None,
    prompt: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> Vqa:
    """Answer questions about images, without training for it."""
    if "captions" in parse_overrides(overrides, example="seed=1"):
        raise ConfigError(
            "--set captions.… is for captions: answers have 5 beams, length penalty -1 and at most "
            "10 tokens, and --prompt gives their prompt"
        )
    config = resolve(options={**CAPTIONS, "captioner": captioner}, overrides=overrides)
    if prompt is not None and "{}" not in prompt:
        raise ConfigError(f"--prompt {prompt!r} has no {{}}, which stands for the question")
    asked = read_questions(questions, annotations, split=split)
    pictures = _pictures(config, images, questions)
    pictures.check(question.image for question in asked)
    model = load_captioner(
        captioner, config.captions, seed=config.seed, precision=config.compute.precision
    )
    if not isinstance(model, Blip2Captioner):
        raise ConfigError(f"--captioner {captioner}: questions need a {BLIP2_CAPTIONER}")
    return evaluate_vqa(Blip2Answerer(model, prompt), asked, pictures)


def filter_quality(
    filter_: str,
    pairs: str,
    images: str | None = None,
    *,
    split: str | None = None,
    threshold: float | None = None,
    overrides: Sequence[str] = (),
) -> FilterQuality:
    """Tell matching pairs from others."""
    _check(threshold)
    has_itm = architecture_of(open_folder(filter_), "filter") in WITH_ITM
    config = resolve(
        preset="blip" if has_itm else "blip2",
        options={
            **(BOTH_SCORES if has_itm else SIMILARITY_ALONE),
            "filter": filter_,
            "selection.min_match_prob": threshold,
        },
        overrides=overrides,
    )
    labelled = read_labelled(pairs, split=split)
    pictures = _pictures(config, images, pairs)
    pictures.check(pair.image for pair in labelled)
    model = load_filter(filter_, config.scoring, precision=config.compute.precision)
    return evaluate_filter(model, labelled, pictures, threshold=config.selection.min_match_prob)


def noise(
    place: str,
    captioner: str | None = None,
    filter_: str | None = None,
    *,
    threshold: float | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
) -> Noise:
    """Count the captions that the filter rejects: those of a run, or new ones."""
    _check(threshold)
    if not files.exists(place):
        raise InputError(f"{place}: no such folder")
    if is_run(place):
        if captioner or filter_ or limit is not None or overrides:
            raise ConfigError(
                f"{place} is a run: its captions and scores are in its ledger, so --captioner, "
                "--filter, --limit and --set have no use; --threshold has"
            )
        return noise_of_run(place, threshold=threshold)
    if not (captioner and filter_):
        raise ConfigError(
            f"{place}: no run here; a folder of images needs --captioner and --filter"
        )
    config = resolve(
        options={
            "captioner": captioner,
            "filter": filter_,
            "selection.min_match_prob": threshold,
        },
        overrides=overrides,
    )
    if config.selection.min_match_prob is None or NONE in (config.captioner, config.filter):
        raise ConfigError("the noise ratio needs captioner, filter and selection.min_match_prob")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, is {limit}")
    pictures = Pictures(place, config.images, config.compute)
    pictures.names()
    precision = config.compute.precision
    return noise_of_images(
        load_captioner(captioner, config.captions, seed=config.seed, precision=precision),
        load_filter(filter_, config.scoring, precision=precision),
        config.scoring,
        pictures,
        threshold=config.selection.min_match_prob,
        limit=limit,
    )


def _check(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold is a probability in [0, 1], is {threshold:g}")


def _pictures(config: RunConfig, images: str | None, pairs: str) -> Pictures:
    folder = images or files.parent(files.absolute(pairs))
    return Pictures(folder, config.images, config.compute)
