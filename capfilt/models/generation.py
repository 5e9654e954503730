"""From image states to caption tokens: greedy, nucleus sampling, beam search.

Results are those of transformers' `generate`, apart from two choices: random numbers belong to the
caption, not to the batch (`capfilt.models.uniforms`), and `top_k` is off unless asked for.

All rows of a batch have the same length at all times. The prompt runs once per image; its captions
or beams then start from copies of its few self-attention entries, and share its image's keys and
values without copying them. A row that has ended leaves the batch, and an image without rows too.

Shapes: N images, T image tokens, A active rows (ordered by image), K rows per image, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.models.attention import Cache, Grid
from capfilt.models.med import CaptionModel
from capfilt.models.memory import ImageMemory
from capfilt.models.text_transformer import Looking
from capfilt.models.transfer import tensor_on
from capfilt.models.uniforms import uniforms

# Nuclei of 0.9 hold a few hundred tokens at most; looking at this many first saves a full sort.
_CANDIDATES = 1024
# Dropping ended images copies the keys and values of the others: worth it once they are this few.
_WORTH_COPYING = 0.75
# To learn which rows have ended the host has to wait for a GPU; a few steps for nothing cost less.
_STEPS_BETWEEN_CHECKS = {"cuda": 4}
_NEVER = -1e9  # transformers' score of what must not be chosen


class Rows(Protocol):
    """Rows of one batch under decoding, whatever model decodes."""

    logits: Tensor  # [A, V], of each row's next token

    def advance(self, ids: Tensor) -> None:
        """Append one token [A] to every row."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, ordered by image; a row may come more than once."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let rows [A] change places with others of their image; a row may come more than once."""
        ...


class Session:
    """Rows of one batch under decoding."""

    def __init__(
        self,
        model: CaptionModel,
        image_states: Tensor,
        prompt: Sequence[int],
        max_length: int,
        *,
        rows: int = 1,
    ) -> None:
        """Run the prompt, once per image.

        Args:
            model: What decodes.
            image_states: [N, T, Dv].
            prompt: Token ids, `[DEC]` first.
            max_length: How many tokens a row has at most, prompt included.
            rows: How many there will be per image.
        """
        self._model = model
        queries = len(prompt) + rows * (max_length - len(prompt))
        self._memory: ImageMemory = model.text.remember(image_states, queries=queries)
        self._images = list(range(len(image_states)))  # which image each row of the memory is of
        self._owners = list(self._images)  # the image of each row
        text = model.config.text
        self._cache = Cache(
            text.layers, text.heads, rows=len(self._owners), room=max_length,
            like=image_states.new_empty(0, text.width),
        )  # fmt: skip
        self._device = image_states.device
        self._arrange()
        ids = tensor_on(list(prompt), self._device).expand(len(self._owners), -1)
        self.logits = self._run(ids)  # [A, V], of each row's next token

    def advance(self, ids: Tensor) -> None:
        """Append one token [A] to every row."""
        self.logits = self._run(ids[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, ordered by image; a row may come more than once."""
        if list(rows) == list(range(len(self._owners))):
            return
        self._owners = [self._owners[row] for row in rows]
        self._arrange()
        self.reorder(tensor_on(list(rows), self._device))

    def reorder(self, rows: Tensor) -> None:
        """Let rows [A] change places with others of their image; a row may come more than once."""
        self._cache.select(rows)
        self.logits = self.logits[rows]

    def _arrange(self) -> None:
        alive = sorted(set(self._owners))
        if len(alive) <= _WORTH_COPYING * len(self._images):
            self._memory = self._memory.select([self._images.index(image) for image in alive])
            self._images = alive
        counts = dict.fromkeys(self._images, 0)
        for owner in self._owners:
            counts[owner] += 1
        self._counts = list(counts.values())
        self._grid = Grid.of(self._counts, self._device)  # of one token a row

    def _run(self, ids: Tensor) -> Tensor:
        rows, fresh = ids.shape
        grid = self._grid
        if fresh > 1:
            grid = Grid.of([count * fresh for count in self._counts], self._device)
        start = self._cache.length
        positions = torch.arange(start, start + fresh, device=self._device).repeat(rows)
        states = self._model.text(
            ids.flatten(), positions, self._cache, Looking(self._memory, grid)
        )
        self._cache.length += fresh
        return self._model.logits(states.view(rows, fresh, -1)[:, -1])


def generate(
    model: CaptionModel,
    image_states: Tensor,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    *,
    seed: int,
    keys: Sequence[str],
) -> list[list[list[int]]]:
    """Write captions.

    Source: BLIP, arXiv:2201.12086, section 3.3; transformers' `generate`.

    Args:
        model: What decodes.
        image_states: [N, T, Dv], from the model's ViT.
        prompt: Token ids, `[DEC]` first; shorter than `config.max_length`.
        end: Id of the token that ends a caption.
        config: How to decode.
        seed: Of the run; nucleus sampling only.
        keys: Of the N samples; nucleus sampling only.

    Returns:
        Per image, per caption, the tokens after the prompt, without `end`.
    """
    rows = config.num_beams if _is_beam(config) else config.per_image
    session = Session(model, image_states, prompt, config.max_length, rows=rows)
    return decode(session, prompt, end, config, seed=seed, keys=keys)


def decode(
    session: Rows,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    *,
    seed: int,
    keys: Sequence[str],
    length_penalty: float = 1.0,
) -> list[list[list[int]]]:
    """Write captions from rows, one per image, that have read the prompt; see `generate`.

    Beams are compared by the sum of log-probabilities over the length to the power of
    `length_penalty`.
    """
    images = len(session.logits)
    if _is_beam(config):
        return _beams(session, images, prompt, end, config, length_penalty)
    numbers = None
    if config.method == "nucleus":
        steps = config.max_length - len(prompt)
        drawn = uniforms(seed, keys, config.per_image, steps)
        numbers = torch.from_numpy(drawn.reshape(-1, steps)).to(session.logits.device)
    return _rows(session, images, prompt, end, config, numbers)


def _is_beam(config: CaptionConfig) -> bool:
    return config.method == "beam" and config.num_beams > 1


def _rows(
    session: Rows,
    images: int,
    prompt: Sequence[int],
    end: int,
    config: CaptionConfig,
    numbers: Tensor | None,
) -> list[list[list[int]]]:
    """Decode `per_image` independent rows per image; `numbers` [N * K, steps] samples them."""
    per_image, device = config.per_image, session.logits.device
    steps, patience = config.max_length - len(prompt), _STEPS_BETWEEN_CHECKS.get(device.type, 1)
    captions: list[list[int]] = [[] for _ in range(images * per_image)]
    active = list(range(images * per_image))  # which caption each row is
    session.select([caption // per_image for caption in active])
    ids = tensor_on(list(prompt), device).repeat(len(active), 1)
    for step in range(steps):
        scores = _adjust(session.logits, ids, end, config)
        if numbers is None:
            chosen = scores.argmax(-1)
        else:
            chosen = sample_nucleus(scores, numbers[:, step], config)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        if step + 1 < steps and (step + 1) % patience == 0:
            ended = (ids[:, len(prompt) :] == end).any(1).tolist()
            if any(ended):
                gone = [row for row, is_over in enumerate(ended) if is_over]
                for row, tokens in zip(gone, _rows_of(ids, gone).tolist(), strict=True):
                    captions[active[row]] = _until(tokens[len(prompt) :], end)
                going = [row for row, is_over in enumerate(ended) if not is_over]
                if not going:
                    return _by_image(captions, per_image)
                active, ids = [active[row] for row in going], _rows_of(ids, going)
                numbers = None if numbers is None else _rows_of(numbers, going)
                session.select(going)
        if step + 1 < steps:
            session.advance(ids[:, -1])
    for caption, tokens in zip(active, ids.tolist(), strict=True):
        captions[caption] = _until(tokens[len(prompt) :], end)
    return _by_image(captions, per_image)


def _by_image(captions: list[list[int]], per_image: int) -> list[list[list[int]]]:
    return [captions[i : i + per_image] for i in range(0, len(captions), per_image)]


def _adjust(scores: Tensor, ids: Tensor, end: int, config: CaptionConfig) -> Tensor:
    """Apply repetition penalty and minimal length to scores [A, V] of rows ids [A, length].

    Source: transformers' RepetitionPenaltyLogitsProcessor and MinLengthLogitsProcessor.
    """
    penalty = config.repetition_penalty
    if penalty is not None and penalty != 1.0:
        seen = scores.gather(1, ids)
        scores = scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    if ids.shape[1] < config.min_length:
        scores = scores.clone()
        scores[:, end] = -math.inf
    return scores


def sample_nucleus(scores: Tensor, numbers: Tensor, config: CaptionConfig) -> Tensor:
    """Choose a token per row by inverting the cumulative distribution of its nucleus.

    Tokens are ordered by falling probability, ties by rising id. The nucleus is the shortest prefix
    that reaches `top_p`, at least one token. With C the probability of the nucleus, the choice is
    the first token at which the cumulative probability exceeds number * C.

    Source: Holtzman et al., arXiv:1904.09751; transformers' temperature, top-k and top-p warpers.

    Args:
        scores: [A, V], fp32.
        numbers: In [0, 1), [A], fp64.
        config: `temperature`, `top_k`, `top_p`.

    Returns:
        Token ids [A].
    """
    scores = scores / config.temperature
    tokens, logs, inside = _nucleus(scores, min(_CANDIDATES, scores.shape[1]), config)
    # A nucleus that reaches the last candidate's score may go on beyond the candidates. On a GPU
    # this is the one wait of a step; always sorting the whole vocabulary would avoid it.
    if logs.shape[1] < scores.shape[1] and bool((inside & (logs == logs[:, -1:])).any()):
        tokens, logs, inside = _nucleus(scores, scores.shape[1], config)
    mass = torch.where(inside, (logs - logs[:, :1]).double().exp(), 0).cumsum(-1)
    rank = (mass <= numbers[:, None] * mass[:, -1:]).sum(-1, keepdim=True)
    # Rounding may put number * C at C itself.
    rank = torch.minimum(rank, inside.sum(-1, keepdim=True) - 1)
    return tokens.gather(1, rank).squeeze(1)


def _nucleus(scores: Tensor, width: int, config: CaptionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, scores and membership of the `width` best tokens, best first, ties by rising id."""
    # What topk returns among equals is arbitrary, so order by id first and sort stably.
    ids = scores.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
    logs, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    top_k = config.top_k or scores.shape[1]
    among = logs[:, :top_k] if config.top_k else scores
    probabilities = (logs - among.logsumexp(-1, keepdim=True)).double().exp()
    before = probabilities.cumsum(-1) - probabilities
    inside = before < (config.top_p if config.top_p < 1 else math.inf)
    inside[:, 0] = True
    inside[:, top_k:] = False
    return ids.gather(1, order), logs, inside


def _beams(
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

    Shapes: I images still searched, K beams, 2K candidates.
    """
    beams, start, device = config.num_beams, len(prompt), session.logits.device
    captions: list[list[list[int]]] = [[] for _ in range(images)]
    searched = list(range(images))  # which image each is
    session.select([image for image in searched for _ in range(beams)])
    running = tensor_on(list(prompt), device).repeat(images, beams, 1)  # [I, K, length]
    running_scores = torch.zeros(images, beams, device=device)
    running_scores[:, 1:] = _NEVER  # all beams are alike at first
    finished = _Finished(images, beams, config.max_length, end, device)
    for length in range(start + 1, config.max_length + 1):
        logs = _adjust(session.logits.log_softmax(-1), running.flatten(0, 1), end, config)
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
                captions[searched[image]] = [_until(row[start:], end) for row in rows]
        if not going:
            break
        session.reorder((torch.arange(len(beam), device=device)[:, None] * beams + beam).flatten())
        if len(going) < len(searched):
            session.select([image * beams + k for image in going for k in range(beams)])
            searched = [searched[image] for image in going]
            running, running_scores = _rows_of(running, going), _rows_of(running_scores, going)
            finished.keep(going)
        session.advance(running[:, :, -1].flatten())
    return [of_image[: config.per_image] for of_image in captions]


class _Finished:
    """The K best captions of each image that have come to an end, best first.

    Shapes: as in `_beams`; L longest caption.
    """

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
        return _rows_of(self._ids, images).tolist()

    def keep(self, images: list[int]) -> None:
        """Forget the other images."""
        self._ids, self._scores, self._are_there = (
            _rows_of(x, images) for x in (self._ids, self._scores, self._are_there)
        )


def _true(flags: Tensor) -> list[int]:
    """Where flags [I] are true."""
    return [i for i, flag in enumerate(flags.tolist()) if flag]


def _rows_of(x: Tensor, rows: list[int]) -> Tensor:
    return x.index_select(0, tensor_on(rows, x.device))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows [I, M, length] of x [I, *, length] by index [I, M]."""
    return x.take_along_dim(index[:, :, None], dim=1)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
