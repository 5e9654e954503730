"""Retrieval: which image belongs to a text, and which text to an image.

    images -> states -> ITC embeddings --+--> the k nearest of every query, both ways
    texts  ------------> ITC embeddings --+        |
    states (kept or made again) ----------> ITM of every image with all its candidates

The images and texts that ITM has to judge are the union of both directions, ordered by image: an
image meets all its candidate texts at once, and a pair that both directions ask for is judged once.
So image states are needed a second time in the order in which they were made: those that fit in
`KEPT_BYTES` are kept, and the image tower runs again for the rest, which costs little beside k
texts per image and k per text (1,536 per image with five texts each and k = 256). Memory grows with
(images + texts) x k, not with images x texts.

Shapes: N images, M texts, Q queries, D candidates, E embedding, k re-ranked, P embeddings of an
image: BLIP has one, BLIP-2 one for each query of its Q-Former.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from capfilt.errors import ModelError
from capfilt.evaluate.pairs import Captioned
from capfilt.evaluate.pictures import Pictures, shown
from capfilt.models.filter import Ranker
from capfilt.models.med import PackedTexts
from capfilt.models.transfer import stack_on, tensor_on
from capfilt.record import ModelIdentity

KEPT_BYTES = 2 * 2**30  # 2,400 images of ViT-B at 384 px in bf16
TEXTS_AT_ONCE = 256
_QUERIES_AT_ONCE = 1024
_DEEPEST = 10  # of the recalls reported


@dataclass(frozen=True)
class Recall:
    """Share of queries with a right answer among the first 1, 5 and 10, in [0, 1]."""

    r1: float
    r5: float
    r10: float


@dataclass(frozen=True)
class Ranking:
    """Recall in both directions."""

    text_to_image: Recall
    image_to_text: Recall


@dataclass(frozen=True)
class Retrieval:
    """Recall by ITC alone, and with its first `k_test` re-ranked by ITM (None where that is 0)."""

    filter: ModelIdentity
    images: int
    texts: int
    k_test: int  # of the candidates that there are: one direction may have fewer
    itc: Ranking
    itm: Ranking | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"task": "retrieval", **asdict(self)}


@dataclass(frozen=True)
class _Candidates:
    """What ITC finds for every query, nearest first."""

    index: Tensor  # [Q, D]
    similarity: Tensor  # [Q, D], fp32
    right: Tensor  # [Q, D], bool: a right answer

    def recall(self) -> Recall:
        r1, r5, r10 = (self.right[:, :k].any(1).double().mean().item() for k in (1, 5, _DEEPEST))
        return Recall(r1, r5, r10)

    def reranked(self, logits: Tensor) -> _Candidates:
        """With the first k ordered by match logit [Q, k] plus similarity, the others as before."""
        scores = logits + self.similarity[:, : logits.shape[1]]
        order = scores.argsort(dim=1, descending=True, stable=True)

        def moved(x: Tensor) -> Tensor:
            return torch.cat([x.gather(1, order), x[:, order.shape[1] :]], dim=1)

        return _Candidates(moved(self.index), moved(self.similarity), moved(self.right))


@torch.inference_mode()
def evaluate_retrieval(
    filter_: Ranker,
    pairs: Sequence[Captioned],
    pictures: Pictures,
    *,
    k_test: int = 256,
    kept_bytes: int = KEPT_BYTES,
) -> Retrieval:
    """Rank all images for every text and all texts for every image.

    A text's right answer is its own image, an image's any of its own texts. ITM's score is the
    logit of "matched" plus the similarity; among equals the first in ITC's order, there the first
    in the file's, comes first.

    Source: BLIP's code, `train_retrieval.py`, and arXiv:2201.12086, section 5.1 (k = 256).

    Args:
        filter_: A `BlipForImageTextRetrieval` or a `Blip2ForImageTextRetrieval`.
        pairs: Images and their captions.
        pictures: Where the images are.
        k_test: How many candidates of a query ITM judges, at most all there are; 0: ITC alone.
        kept_bytes: Memory for image states, on the filter's device.

    Raises:
        InputError: An image is missing or cannot be decoded.
        ModelError: The filter's figures are not finite.
    """
    started = time.monotonic()
    pictures.check(pair.image for pair in pairs)
    states = _States(filter_, pictures, [pair.image for pair in pairs], kept_bytes if k_test else 0)
    images = states.embeddings()
    device = images.device
    texts = filter_.tokens([text for pair in pairs for text in pair.captions])
    owner = tensor_on([i for i, pair in enumerate(pairs) for _ in pair.captions], device)
    text_embeddings = _text_embeddings(filter_, texts, device)
    depth = max(k_test, _DEEPEST)
    to_image = _nearest(text_embeddings, images, depth, owner, torch.arange(len(pairs)))
    to_text = _nearest(images, text_embeddings, depth, torch.arange(len(pairs)), owner)
    for candidates in (to_image, to_text):
        if not candidates.similarity.isfinite().all():
            raise ModelError(f"{filter_.identity.source}: a similarity is not a finite number")

    itm = None
    if k_test:
        itm = _reranked(filter_, states, texts, to_image, to_text, k_test)
    return Retrieval(
        filter=filter_.identity,
        images=len(pairs),
        texts=len(texts),
        k_test=min(k_test, len(texts)),
        itc=Ranking(to_image.recall(), to_text.recall()),
        itm=itm,
        seconds=round(time.monotonic() - started, 3),
    )


def _reranked(
    filter_: Ranker,
    states: _States,
    texts: list[list[int]],
    to_image: _Candidates,
    to_text: _Candidates,
    k_test: int,
) -> Ranking:
    """What ITM makes of the first `k_test` candidates; a pair is known as image * M + text."""
    count, device = len(texts), to_text.index.device
    image_of, text_of = to_image.index[:, :k_test].cpu(), to_text.index[:, :k_test].cpu()
    for_texts = image_of * count + torch.arange(count)[:, None]
    for_images = torch.arange(len(text_of))[:, None] * count + text_of
    asked = torch.unique(torch.cat([for_texts.flatten(), for_images.flatten()]))
    logits = _match_logits(filter_, states, texts, asked)

    def of(wanted: Tensor) -> Tensor:
        return logits[torch.searchsorted(asked, wanted)].to(device)

    return Ranking(
        to_image.reranked(of(for_texts)).recall(), to_text.reranked(of(for_images)).recall()
    )


class _States:
    """States of all images, batch by batch: the first ones kept, the others made anew."""

    def __init__(
        self, filter_: Ranker, pictures: Pictures, paths: Sequence[str], room_bytes: int
    ) -> None:
        self._filter = filter_
        self._pictures = pictures
        self._paths = paths
        self._room_bytes = room_bytes
        self._kept: list[Tensor] = []

    @property
    def batches(self) -> int:
        return -(-len(self._paths) // self._pictures.batch_size)

    def embeddings(self) -> Tensor:
        """ITC embeddings [N, P, E]; fills the memory."""
        found, room = [], self._room_bytes
        for states in shown(self._made(0), "images", self.batches):
            found.append(self._filter.image_embeddings(states))
            room -= states.nbytes
            if room >= 0:
                self._kept.append(states)
        return torch.cat(found)

    def __iter__(self) -> Iterator[Tensor]:
        """States [n, T, Dv] of the next n images."""
        return chain(self._kept, self._made(sum(map(len, self._kept))))

    def _made(self, first: int) -> Iterator[Tensor]:
        vit = self._filter.model.vit
        for pixels in self._pictures.batches(self._paths[first:], self._filter.pixels):
            yield vit(stack_on(pixels, vit.class_token.device))


def _text_embeddings(filter_: Ranker, texts: list[list[int]], device: torch.device) -> Tensor:
    """[M, 1, E]; texts of like length together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    starts = range(0, len(order), TEXTS_AT_ONCE)
    found = [
        filter_.model.text_embeddings(
            PackedTexts.of([[texts[i] for i in order[start : start + TEXTS_AT_ONCE]]], device)
        )
        for start in shown(starts, "texts", len(starts))
    ]
    return torch.cat(found)[tensor_on(order, device).argsort(), None]


def _nearest(
    queries: Tensor, items: Tensor, depth: int, query_image: Tensor, item_image: Tensor
) -> _Candidates:
    """The `depth` items nearest to each query, of equals the first first.

    Of things with several embeddings the two most similar ones count.

    Args:
        queries: [Q, P, E].
        items: [I, P', E].
        depth: At most; there may be fewer items.
        query_image: Which image each query belongs to, [Q].
        item_image: Which image each item belongs to, [I].
    """
    indices, similarities = [], []
    at_once = max(1, _QUERIES_AT_ONCE // (queries.shape[1] * items.shape[1]))
    for block in torch.split(queries, at_once):
        products = block.flatten(0, 1) @ items.flatten(0, 1).T
        similarity = products.view(*block.shape[:2], *items.shape[:2]).amax((1, 3))
        index = similarity.topk(min(depth, len(items))).indices.sort(dim=1).values
        similarity, order = similarity.gather(1, index).sort(dim=1, descending=True, stable=True)
        indices.append(index.gather(1, order))
        similarities.append(similarity)
    index = torch.cat(indices)
    right = item_image.to(index.device)[index] == query_image.to(index.device)[:, None]
    return _Candidates(index, torch.cat(similarities), right)


def _match_logits(
    filter_: Ranker, states: _States, texts: list[list[int]], asked: Tensor
) -> Tensor:
    """Logits of "matched", fp32 on the CPU.

    Args:
        filter_: What judges.
        states: Of all images.
        texts: Token ids of all texts.
        asked: Sorted numbers image * M + text.
    """
    ids = [filter_.to_match(text) for text in texts]
    logits = torch.empty(len(asked), device=filter_.model.vit.class_token.device)
    first = done = 0
    for of_images in shown(states, "pairs", states.batches):
        wanted = []
        for image in range(first, first + len(of_images)):
            bounds = torch.tensor([image, image + 1]) * len(texts)
            start, stop = torch.searchsorted(asked, bounds).tolist()
            wanted.append((asked[start:stop] - bounds[0]).tolist())
        first += len(of_images)
        for group in _groups(wanted):
            packed = PackedTexts.of(
                [[ids[text] for text in of_image] for _, of_image in group], of_images.device
            )
            found = filter_.match_logits(packed, of_images[[image for image, _ in group]])
            logits[done : done + len(found)] = found
            done += len(found)
    return logits.cpu()


def _groups(wanted: Sequence[list[int]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Images with their texts in order, `TEXTS_AT_ONCE` texts at a time; an image may be cut."""
    group: list[tuple[int, list[int]]] = []
    room = TEXTS_AT_ONCE
    for image, texts in enumerate(wanted):
        left = texts
        while left:
            group.append((image, left[:room]))
            left, room = left[room:], room - len(group[-1][1])
            if not room:
                yield group
                group, room = [], TEXTS_AT_ONCE
    if group:
        yield group
