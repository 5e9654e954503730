"""`capfilt evaluate`: retrieval, captions, vqa, filter, noise."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from capfilt.cli.app import Json, app, print_result

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    evaluate, name="evaluate", help="Measure a captioner and a filter: retrieval, captions, noise."
)

_CAPTIONS_FILE = "COCO-style JSON, or JSON(L) rows of image and caption(s)."
Images = Annotated[
    str | None, typer.Option(help="Folder that image paths start from; default: the file's own.")
]
Split = Annotated[str | None, typer.Option(help="Take the rows of this `split` alone.")]
Threshold = Annotated[
    float | None, typer.Option(help="Match probability from which a text is kept; default: 0.5.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config key of `run`; repeatable."),
]


@evaluate.command("retrieval")
def evaluate_retrieval(
    filter_: Annotated[
        str, typer.Option("--filter", help="BLIP or BLIP-2 filter: folder or hub id.")
    ],
    pairs: Annotated[str, typer.Option(help=_CAPTIONS_FILE)],
    images: Images = None,
    split: Split = None,
    k_test: Annotated[int, typer.Option(help="Candidates that ITM ranks again; 0: none.")] = 256,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Recall of images by texts and of texts by images, by ITC and then by ITM."""
    from capfilt.show.evaluation import retrieval_text

    found = _evaluate("retrieval")(
        filter_, pairs, images, split=split, k_test=k_test, overrides=overrides or ()
    )
    print_result(found.to_dict() if as_json else retrieval_text(found))


@evaluate.command("captions")
def evaluate_captions(
    captioner: Annotated[str, typer.Option(help="BLIP or BLIP-2 captioner: folder or hub id.")],
    pairs: Annotated[str, typer.Option(help=_CAPTIONS_FILE)],
    images: Images = None,
    split: Split = None,
    save: Annotated[
        str | None, typer.Option(help="Write the captions there, as JSON of image and caption.")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """BLEU and CIDEr of a captioner against human captions.

    A BLIP writes with 3 beams 5 to 20 tokens, a BLIP-2 with 5 beams 8 to 30.
    """
    from capfilt.io.publish import write_bytes
    from capfilt.show.evaluation import captions_text

    found = _evaluate("captions")(captioner, pairs, images, split=split, overrides=overrides or ())
    if save is not None:
        write_bytes(save, json.dumps(found.rows(), indent=1, ensure_ascii=False).encode())
    print_result(found.to_dict() if as_json else captions_text(found))


@evaluate.command("vqa")
def evaluate_vqa(
    captioner: Annotated[str, typer.Option(help="BLIP-2 captioner: folder or hub id.")],
    questions: Annotated[
        str, typer.Option(help="JSON(L) rows of image, question and answers, or VQA's questions.")
    ],
    annotations: Annotated[
        str | None, typer.Option(help="VQA's annotations, for VQA's questions.")
    ] = None,
    images: Images = None,
    split: Split = None,
    prompt: Annotated[
        str | None, typer.Option(help="With {} for the question; default: the paper's.")
    ] = None,
    save: Annotated[
        str | None, typer.Option(help="Write the answers there, as JSON of image and question.")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """VQA accuracy of a BLIP-2 that was never trained to answer (5 beams, length penalty -1)."""
    from capfilt.io.publish import write_bytes
    from capfilt.show.evaluation import vqa_text

    found = _evaluate("vqa")(
        captioner,
        questions,
        images,
        annotations=annotations,
        prompt=prompt,
        split=split,
        overrides=overrides or (),
    )
    if save is not None:
        write_bytes(save, json.dumps(found.answered, indent=1, ensure_ascii=False).encode())
    print_result(found.to_dict() if as_json else vqa_text(found))


@evaluate.command("filter")
def evaluate_filter(
    filter_: Annotated[
        str, typer.Option("--filter", help="BLIP, BLIP-2 or CLIP filter: folder or hub id.")
    ],
    pairs: Annotated[str, typer.Option(help="JSON(L) rows of image, caption and label (1 or 0).")],
    images: Images = None,
    split: Split = None,
    threshold: Threshold = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """How well a filter tells matching texts from others: ROC AUC, precision, recall."""
    from capfilt.show.evaluation import filter_quality_text

    found = _evaluate("filter_quality")(
        filter_, pairs, images, split=split, threshold=threshold, overrides=overrides or ()
    )
    print_result(found.to_dict() if as_json else filter_quality_text(found))


@evaluate.command("noise")
def evaluate_noise(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="OUTPUT of `capfilt run`, or a folder of images.")
    ],
    captioner: Annotated[
        str | None, typer.Option(help="For a folder of images: BLIP captioner.")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="For a folder of images: BLIP filter.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Match probability from which a text is kept; default: the run's, 0.5."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take at most this many images.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Noise ratio: the share of synthetic captions that the filter rejects."""
    from capfilt.show.evaluation import noise_text

    found = _evaluate("noise")(
        place,
        captioner,
        filter_,
        threshold=threshold,
        limit=limit,
        overrides=overrides or (),
    )
    print_result(found.to_dict() if as_json else noise_text(found))


def _evaluate(step: str) -> Any:
    """A step of the stage `evaluate`."""
    from capfilt.catalog import stage

    return stage("evaluate")[step]
