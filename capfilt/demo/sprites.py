"""The drawings of the emoji world, from one bundled sheet (made by `draw_sprites`)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from capfilt.demo.nouns import NOUNS

SHEET = Path(__file__).with_name("sprites.webp")
SIDE = 64  # pixels of a cell; a drawing's longer side fills it
COLUMNS = 11

# What each cell shows, row by row: a noun and its colour, "" where it has no choice of one.
CELLS = tuple((noun.name, colour) for noun in NOUNS.values() for colour in noun.colours or ("",))
_PLACES = {cell: number for number, cell in enumerate(CELLS)}


@lru_cache(maxsize=4096)
def sprite(noun: str, colour: str, side: int, mirrored: bool = False) -> Image.Image:
    """A drawing with transparency, square; the same object again for the same arguments.

    Args:
        noun: Of `NOUNS`.
        colour: One of the noun's, or "" where it has no choice.
        side: Width and height in pixels.
        mirrored: Left and right swapped.
    """
    if mirrored:
        return sprite(noun, colour, side).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    place = _PLACES[noun, colour]
    x, y = place % COLUMNS * SIDE, place // COLUMNS * SIDE
    cell = _sheet().crop((x, y, x + SIDE, y + SIDE))
    # Premultiplied, or the colour of what is invisible would bleed into the edges.
    small = cell.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    return small.convert("RGBA")


@lru_cache(maxsize=1)
def _sheet() -> Image.Image:
    with Image.open(SHEET) as sheet:
        return sheet.convert("RGBA")
