"""BLIP-2 as one who answers questions about images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.blip2_captioner import Blip2Captioner
from capfilt.models.checkpoint import INSTRUCTED_CAPTIONER
from capfilt.models.generation import decode
from capfilt.models.language import LanguageSession
from capfilt.models.transfer import stack_on

# Source: BLIP-2, arXiv:2301.12597, section 4.1; InstructBLIP, arXiv:2305.06500, appendix.
PROMPT = "Question: {} Short answer:"
DECODER_PROMPT = "Question: {} Answer:"  # of a decoder that has learned no instructions
_ROWS = 32  # questions at once


class Blip2Answerer:
    """A BLIP-2 that writes what comes after a question, by beam search for short answers.

    Source: BLIP-2, arXiv:2301.12597, section 4.1 (5 beams, length penalty -1); its code (1 to 10
    tokens).
    """

    def __init__(
        self,
        captioner: Blip2Captioner,
        prompt: str | None = None,
        *,
        beams: int = 5,
        length_penalty: float = -1.0,
        max_tokens: int = 10,
    ) -> None:
        """Use a loaded captioner's models.

        Args:
            captioner: Its own decoding plays no part.
            prompt: `{}` stands for the question; None takes that of the paper.
            beams: How many.
            length_penalty: Power of the length that sums of log-probabilities are divided by.
            max_tokens: Of an answer.
        """
        self.pixels, self.identity = captioner.pixels, captioner.identity
        self._model, self._language = captioner.model, captioner.language
        self._instructions = captioner.instructions
        self._tokens = captioner.tokens
        is_instructed = self.identity.architecture == INSTRUCTED_CAPTIONER
        is_plain = self._tokens.decoder_start is None and not is_instructed
        self.prompt = prompt or (DECODER_PROMPT if is_plain else PROMPT)
        self._beams, self._length_penalty = beams, length_penalty
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def answer(
        self, pixels: Sequence[Tensor], questions: Sequence[Sequence[str]]
    ) -> list[list[str]]:
        """Answer every question about every image.

        Args:
            pixels: One uint8 [3, size, size] per image, RGB.
            questions: Per image, any number.

        Returns:
            Per image, per question, an answer.
        """
        if not any(questions):
            return [[] for _ in questions]
        asked = [(i, text) for i, of_image in enumerate(questions) for text in of_image]
        said = [[self.prompt.replace("{}", text) for text in of_image] for of_image in questions]
        prompts = [self._tokens.prompt(text) for of_image in said for text in of_image]
        instructions = self._instructions(said)
        visual = self._model(stack_on(pixels, self._model.vit.class_token.device), instructions)
        if instructions is None:  # one for all questions about an image
            visual = visual[[i for i, _ in asked]]
        answers = [""] * len(asked)
        for rows in _alike(prompts):
            found = self._write(visual[rows], [prompts[row] for row in rows])
            for row, text in zip(rows, found, strict=True):
                answers[row] = text
        written = iter(answers)
        return [[next(written) for _ in of_image] for of_image in questions]

    def _write(self, visual: Tensor, prompts: list[list[int]]) -> list[str]:
        """Of prompts of one length."""
        start = self._tokens.decoder_start
        leads = prompts if start is None else [[start]] * len(prompts)
        before = len(leads[0])
        config = CaptionConfig(
            method="beam",
            num_beams=self._beams,
            min_length=before + 1,
            max_length=before + self._max_tokens,
        )
        found = decode(
            LanguageSession(self._language, visual, prompts, start),
            leads[0],  # without a repetition penalty only its length counts
            self._tokens.end,
            config,
            seed=0,
            keys=[""] * len(prompts),
            length_penalty=self._length_penalty,
        )
        return [
            self._tokens.decode(lead, ids) for lead, (ids, *_) in zip(leads, found, strict=True)
        ]


def _alike(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows of prompts of one length, so that nothing has to be padded; a few at a time."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(prompts):
        by_length[len(ids)].append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS]
