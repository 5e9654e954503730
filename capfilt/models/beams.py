"""Beam search.

Shapes: I images still searched, K beams, 2K candidates, L longest caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.rows import Rows, adjust, pick, until
from capfilt.models.transfer import tensor_on

_NEVER = -1e9  # transformers' score of what must not be chosen


def search_beams(
    session: Rows,
    images: int,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    length_penalty: float,
) -> list[list[list[int]]]:
    """Beam search with `num_beams` beams; gives the `per_image` best, best first.

    A score is the sum of log-probabilities over the number of generated tokens to the power of
    `length_penalty`. An image is done when its best running beam, at its present length, scores no
    more than its worst finished one.

    Source: transformers' `_beam_search` with early_stopping False.
    """
    beams, start, device = config.num_beams, len(prompt), session.logits.device
    captions: list[list[list[int]]] = [[] for _ in range(images)]
    searched = list(range(images))  # which image each is
    session.select([image for image in searched for _ in range(beams)])
    running = tensor_on(list(prompt), device).repeat(images, beams, 1)  # [I, K, length]
    running_scores = torch.zeros(images, beams, device=device)
    running_scores[:, 1:] = _NEVER  # all beams are alike at first
    finished = Finished(images, beams, config.max_length, end, device)
    for length in range(start + 1, config.max_length + 1):
        logs = adjust(session.logits.log_softmax(-1), running.flatten(0, 1), end, config)
        logs = logs.view(-1, beams, logs.shape[1]) + running_scores[:, :, None]
        top, index = logs.flatten(1).topk(2 * beams)  # [I, 2K]
        beam, token = index // logs.shape[2], index % logs.shape[2]
        candidates = torch.cat([_take(running, beam), token[:, :, None]], dim=2)
        ends = (token == end) | (length == config.max_length)

        share = (length - start) ** length_penalty
        finished.add(candidates, top / share, ends)
        running_scores, order = (top + ends * _NEVER).topk(beams)
        running, beam = _take(candidates, order), beam.gather(1, order)
        hopeful = (running_scores[:, :1] / share > finished.worst()).any(1)
        going = [] if length == config.max_length else _true(hopeful)
        if len(going) < len(searched):
            done = sorted(set(range(len(searched))) - set(going))
            for image, rows in zip(done, finished.best(done), strict=True):
                captions[searched[image]] = [until(row[start:], end) for row in rows]
        if not going:
            break
        session.reorder((torch.arange(len(beam), device=device)[:, None] * beams + beam).flatten())
        if len(going) < len(searched):
            session.select([image * beams + k for image in going for k in range(beams)])
            searched = [searched[image] for image in going]
            running, running_scores = pick(running, going), pick(running_scores, going)
            finished.keep(going)
        session.advance(running[:, :, -1].flatten())
    return [of_image[: config.per_image] for of_image in captions]


class Finished:
    """The K best captions of each image that have come to an end, best first."""

    def __init__(
        self, images: int, beams: int, longest: int, end: int, device: torch.device
    ) -> None:
        self._end = end
        self._ids = torch.full((images, beams, longest), end, device=device)
        self._scores = torch.full((images, beams), _NEVER, device=device)
        self._are_there = torch.zeros(images, beams, dtype=torch.bool, device=device)

    def add(self, candidates: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Take candidates [I, 2K, length] with scores [I, 2K] where they end."""
        beams, length = self._scores.shape[1], candidates.shape[2]
        finishes = ends.clone()
        finishes[:, beams:] = False  # the others are there to keep K beams running
        together = torch.cat([self._scores, scores + ~finishes * _NEVER], dim=1)
        self._scores, order = together.topk(beams)
        padded = self._ids.new_full((*candidates.shape[:2], self._ids.shape[2]), self._end)
        padded[:, :, :length] = candidates
        self._ids = _take(torch.cat([self._ids, padded], dim=1), order)
        self._are_there = torch.cat([self._are_there, finishes], dim=1).gather(1, order)

    def worst(self) -> Tensor:
        """What a running beam has to reach, [I, K]."""
        return torch.where(self._are_there, self._scores.amin(1, keepdim=True), _NEVER)

    def best(self, images: list[int]) -> list[list[list[int]]]:
        """The captions of these images, padded with the end to [L]."""
        return pick(self._ids, images).tolist()

    def keep(self, images: list[int]) -> None:
        """Forget the other images."""
        self._ids, self._scores, self._are_there = (
            pick(x, images) for x in (self._ids, self._scores, self._are_there)
        )


def _true(flags: Tensor) -> list[int]:
    """Where flags [I] are true."""
    return [i for i, flag in enumerate(flags.tolist()) if flag]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows [I, M, length] of x [I, *, length] by index [I, M]."""
    return x.take_along_dim(index[:, :, None], dim=1)
