"""Visual question answering without training for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfilt.evaluate.pictures import Pictures, shown
from capfilt.evaluate.questions import Question
from capfilt.evaluate.vqa_accuracy import vqa_accuracy
from capfilt.models.blip2_answerer import Blip2Answerer
from capfilt.record import ModelIdentity


@dataclass(frozen=True)
class Vqa:
    """Accuracy over all questions, in [0, 1], and what was answered."""

    captioner: ModelIdentity
    prompt: str
    images: int
    questions: int
    accuracy: float
    answered: list[dict[str, str]]  # rows of image, question and answer
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; without the answers."""
        figures = asdict(self)
        del figures["answered"]
        return {"task": "vqa", **figures}


def evaluate_vqa(answerer: Blip2Answerer, questions: Sequence[Question], pictures: Pictures) -> Vqa:
    """Answer all questions; an image passes through the model once for all of its own.

    Raises:
        InputError: An image is missing or cannot be decoded.
    """
    started = time.monotonic()
    by_image: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        by_image.setdefault(question.image, []).append(number)
    paths, size = list(by_image), pictures.batch_size
    pictures.check(paths)
    answers = [""] * len(questions)
    batches = pictures.batches(paths, answerer.pixels)
    for i, pixels in enumerate(shown(batches, "answers", -(-len(paths) // size))):
        asked = [by_image[path] for path in paths[i * size : (i + 1) * size]]
        found = answerer.answer(pixels, [[questions[n].text for n in of] for of in asked])
        for numbers, of_image in zip(asked, found, strict=True):
            for number, answer in zip(numbers, of_image, strict=True):
                answers[number] = answer
    degrees = [vqa_accuracy(a, q.answers) for a, q in zip(answers, questions, strict=True)]
    return Vqa(
        captioner=answerer.identity,
        prompt=answerer.prompt,
        images=len(paths),
        questions=len(questions),
        accuracy=sum(degrees) / len(degrees),
        answered=[
            {"image": question.image, "question": question.text, "answer": answer}
            for question, answer in zip(questions, answers, strict=True)
        ],
        seconds=round(time.monotonic() - started, 3),
    )
