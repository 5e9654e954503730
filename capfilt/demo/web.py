"""The alt texts of the emoji world's web, with the vices of a real one, and which each has.

True texts, lies and texts of other pictures are written in the same styles, but their words are not
equally likely: a lie about a number never says one, and a false relation is any of the five alike.
Who sees the words alone thus tells lies from truths somewhat better than chance, those about
numbers most of all.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from capfilt.demo.claim import Claim, draw_claim, draw_lie
from capfilt.demo.grammar import say, say_tersely
from capfilt.demo.nouns import NOUNS
from capfilt.demo.scene import Scene
from capfilt.errors import ConfigError
from capfilt.text import normalise

KINDS = ("true", "lie", "other", "junk", "empty")
_SHOP = (
    "{} | free clipart", "{} - stock image", "new: {}", "{} emoji sticker", "buy {} online",
    "{} (hd wallpaper)", "best price! {}", "cute {}",
)  # fmt: skip
_JUNK = (
    "IMG_{n}.JPG", "DSC0{n}.jpg", "photo-{n}-150x150.png", "image {n}", "Screenshot_{date}.png",
    "{date}", "posted on {date}", "buy now free shipping", "click here to enlarge",
    "home | about us | contact", "add to cart", "untitled", "stock photo {n}", "best price {year}",
    "logo", "share this page", "{n} views", "kostenloser versand ab 29 euro",
    "bild in originalgrösse ansehen", "cliquez ici pour agrandir", "livraison gratuite",
    "haga clic para ampliar", "comprar ahora", "clicca per ingrandire", "無料配送", "фото {n}",
    "copyright {year} all rights reserved", "advertisement", "loading...", "sign up for our news",
)  # fmt: skip
_FRAMES = tuple(
    re.compile(re.escape(frame).replace(re.escape("{}"), "(.*)"))
    for frame in dict.fromkeys([*_SHOP, *(normalise(frame, max_words=9) for frame in _SHOP)])
)


@dataclass(frozen=True)
class WebMix:
    """Shares of the kinds of web text; they add up to 1.

    `true` is a correct text, `lie` one with a wrong word, `other` the text of another picture,
    false of this one, `junk` no description at all.
    """

    true: float = 0.35
    lie: float = 0.20
    other: float = 0.20
    junk: float = 0.20
    empty: float = 0.05

    def __post_init__(self) -> None:
        shares = list(asdict(self).values())
        if min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
            raise ConfigError(f"web mix: shares are at least 0 and add up to 1, are {shares}")

    def draw(self, rng: random.Random) -> str:
        """One of `KINDS`."""
        return rng.choices(KINDS, [getattr(self, kind) for kind in KINDS])[0]


@dataclass(frozen=True)
class WebText:
    """An alt text and the truth about it; `wrong` says what is wrong in a lie."""

    content: str
    kind: str
    wrong: str = ""


def write_text(
    kind: str,
    scene: Scene,
    others: Iterator[Scene],
    rng: random.Random,
    nouns: Sequence[str] = tuple(NOUNS),
) -> WebText:
    """Write the alt text of a picture.

    Args:
        kind: One of `KINDS`.
        scene: What the picture shows.
        others: Endless other pictures' scenes; the first whose text is false here is taken.
        rng: Decides everything else.
        nouns: Of the world.
    """
    if kind == "true":
        return WebText(write_claim(draw_claim(scene, rng), rng), kind)
    if kind == "lie":
        lie, wrong = draw_lie(draw_claim(scene, rng), scene, rng, nouns)
        return WebText(write_claim(lie, rng), kind, wrong)
    if kind == "other":
        claims = (draw_claim(other, rng) for other in others)
        return WebText(write_claim(next(c for c in claims if not c.holds(scene)), rng), kind)
    return WebText(_junk(rng) if kind == "junk" else "", kind)


def words() -> list[str]:
    """Every English word that a web's texts have around and beside what they describe, sorted."""
    texts = " ".join([*_SHOP, *_JUNK]).lower()
    return sorted(set(re.findall(r"(?<![^\s(])[a-z]+(?![^\s:!).])", texts)))


def statement(text: str) -> str:
    """A web text without a shop's words around it, as it is written or as a model reads it.

    >>> statement("new: two mice"), statement("new two mice"), statement("two mice")
    ('two mice', 'two mice', 'two mice')
    """
    for frame in _FRAMES:
        match = frame.fullmatch(text)
        if match:
            return match[1]
    return text


def write_claim(claim: Claim, rng: random.Random) -> str:
    """A claim as a web has it: a sentence or a label, with or without a shop's words."""
    phrasing: Callable[[Claim, random.Random], str] = rng.choice((say, say_tersely))
    text = phrasing(claim, rng)
    return rng.choice(_SHOP).format(text) if rng.random() < 0.4 else text


def _junk(rng: random.Random) -> str:
    year = rng.randint(2004, 2026)
    date = f"{year}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return rng.choice(_JUNK).format(n=rng.randrange(1000, 10_000), year=year, date=date)
