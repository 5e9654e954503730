"""What the world's grammar can make of a claim: all outcomes of all its draws."""

import random
import re
from collections.abc import Sequence
from typing import Any

from capfilt.demo.claim import Claim
from capfilt.demo.grammar import say, say_tersely


class _Scripted(random.Random):
    """Draws what a script says, then the first of what there is; notes the others.

    Of words it has those that are in `text`, since any other would make another text.
    """

    def __init__(self, script: tuple[int, ...], text: str) -> None:
        super().__init__()
        self._script = script
        self._text = text
        self.drawn: list[int] = []
        self.others: list[list[int]] = []

    def _draw(self, options: Sequence[int]) -> int:
        at = len(self.drawn)
        self.drawn.append(self._script[at] if at < len(self._script) else options[0])
        self.others.append(list(options[1:]))
        return self.drawn[-1]

    def choice(self, seq: Any) -> Any:
        usable = [at for at, words in enumerate(seq) if words.strip(" ,") in self._text]
        return seq[self._draw(usable or [0])]

    def random(self) -> float:
        return (0.0, 1 - 1e-9)[self._draw((0, 1))]


def can_be_said(claim: Claim, text: str) -> bool:
    """Whether a sentence or a label of a claim is `text`, as `spaced` has it."""
    for phrasing in (say, say_tersely):
        scripts: list[tuple[int, ...]] = [()]
        while scripts:
            script = scripts.pop()
            rng = _Scripted(script, text)
            if spaced(phrasing(claim, rng)) == text:
                return True
            for at in range(len(script), len(rng.drawn)):
                scripts += [(*rng.drawn[:at], other) for other in rng.others[at]]
    return False


def spaced(text: str) -> str:
    """A text with a space between all words and commas."""
    return " ".join(re.findall(r"[a-z]+|\S", text))
