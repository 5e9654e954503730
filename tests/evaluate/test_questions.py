from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capfilt.errors import InputError
from capfilt.evaluate.questions import Question, read_questions
from tests.evaluate.conftest import put_lines

ROWS = [
    {"image": "a.png", "question": "what?", "answers": ["x", "y"], "split": "dev"},
    {"image": "a.png", "question": "who?", "answers": "z", "split": "test"},
]
QUESTIONS = {
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "what?", "question_id": 420},
        {"image_id": 42, "question": "who?", "question_id": 421},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 421, "image_id": 42, "answers": [{"answer": "z", "answer_id": 1}]},
        {
            "question_id": 420,
            "image_id": 42,
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate("xy")],
        },
    ]
}


def put(path: Path, tree: Any) -> str:
    path.write_text(json.dumps(tree))
    return str(path)


def test_rows_are_read_in_their_order(tmp_path: Path) -> None:
    url = put_lines(tmp_path / "q.jsonl", ROWS)
    wanted = [Question("a.png", "what?", ("x", "y")), Question("a.png", "who?", ("z",))]
    assert read_questions(url) == wanted
    assert read_questions(put(tmp_path / "q.json", ROWS)) == wanted
    assert read_questions(url, split="test") == wanted[1:]


def test_vqas_files_are_joined_and_images_named_as_cocos(tmp_path: Path) -> None:
    url = put(tmp_path / "q.json", QUESTIONS)
    found = read_questions(url, put(tmp_path / "a.json", ANNOTATIONS))
    name = "COCO_val2014_000000000042.jpg"
    assert found == [Question(name, "what?", ("x", "y")), Question(name, "who?", ("z",))]


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (QUESTIONS, None, "VQA's questions need --annotations"),
        (ROWS, ANNOTATIONS, "not VQA's questions; leave --annotations out"),
        (QUESTIONS, {"annotations": ANNOTATIONS["annotations"][:1]}, "no answers to question 420"),
        (QUESTIONS, ROWS, "not VQA's questions and annotations"),
        ([{**ROWS[0], "answers": []}], None, "nobody answered 'what\\?' of a.png"),
        ([{**ROWS[0], "answers": [1]}], None, "image, question and answers are texts"),
        ([{"image": "a.png", "question": "what?"}], None, "row 1 has no answers"),
    ],
)
def test_what_is_wrong_is_named(
    questions: Any, annotations: Any, message: str, tmp_path: Path
) -> None:
    url = put(tmp_path / "q.json", questions)
    answers = None if annotations is None else put(tmp_path / "a.json", annotations)
    with pytest.raises(InputError, match=message):
        read_questions(url, answers)
