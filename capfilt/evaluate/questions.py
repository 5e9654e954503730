"""Questions about images with people's answers, as VQA has them or as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capfilt.errors import InputError
from capfilt.evaluate.pairs import parse, rows_of


@dataclass(frozen=True)
class Question:
    """An image's path, a question, and what people answered, at least one text."""

    image: str
    text: str
    answers: tuple[str, ...]


def read_questions(
    url: str, annotations: str | None = None, *, split: str | None = None
) -> list[Question]:
    """The questions of a file in its order.

    Args:
        url: JSON list or JSONL of `image`, `question` and `answers`, a list of texts; or the
            questions of VQA, whose images are named as COCO's.
        annotations: VQA's file of answers, for VQA's questions.
        split: Take the rows of this split alone; not of VQA's files.

    Raises:
        InputError: It has no known form, a question has no answers, or there is no such split.
    """
    tree = parse(url)
    if isinstance(tree, dict) and "questions" in tree:
        if annotations is None or split is not None:
            raise InputError(f"{url}: VQA's questions need --annotations, and have no --split")
        return _of_vqa(tree, parse(annotations), url, annotations)
    if annotations is not None:
        raise InputError(f"{url}: not VQA's questions; leave --annotations out")
    found = []
    for row in rows_of(tree, url, ["image", "question", "answers"], split):
        answers = row["answers"]
        texts = answers if isinstance(answers, list) else [answers]
        found.append(_question(row["image"], row["question"], texts, url))
    return found


def _of_vqa(questions: Any, annotations: Any, url: str, answers_url: str) -> list[Question]:
    try:
        name = f"COCO_{questions['data_subtype']}_{{:012d}}.jpg"
        answers = {
            row["question_id"]: [answer["answer"] for answer in row["answers"]]
            for row in annotations["annotations"]
        }
        rows = [
            (name.format(row["image_id"]), row["question"], row["question_id"])
            for row in questions["questions"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{url}, {answers_url}: not VQA's questions and annotations ({error!r})"
        ) from None
    if missing := [number for _, _, number in rows if number not in answers]:
        raise InputError(f"{answers_url}: no answers to question {missing[0]} of {url}")
    return [_question(image, text, answers[number], url) for image, text, number in rows]


def _question(image: object, text: object, answers: Sequence[object], url: str) -> Question:
    texts = tuple(answer for answer in answers if isinstance(answer, str))
    if not (isinstance(image, str) and isinstance(text, str)) or len(texts) < len(answers):
        raise InputError(f"{url}: image, question and answers are texts; see {image!r}, {text!r}")
    if not texts:
        raise InputError(f"{url}: nobody answered {text!r} of {image}")
    return Question(image, text, texts)
