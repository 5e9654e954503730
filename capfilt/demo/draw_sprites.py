"""Draw the sprite sheet from the font: `python -m capfilt.demo.draw_sprites NotoColorEmoji.ttf`.

The font is in Debian's package `fonts-noto-color-emoji`. Only this needs it: the sheet is bundled,
with the font's licence beside it (sprites.LICENSE).
"""

from __future__ import annotations

import sys

from PIL import Image, ImageChops, ImageDraw, ImageFont

from capfilt.demo.nouns import NOUNS, THING_COLOURS
from capfilt.demo.sprites import CELLS, COLUMNS, SHEET, SIDE

_FONT_SIZE = 109  # the one size that the font has
_COLOURFUL = 60  # saturation of 255, from which on a pixel is dyed: highlights and greys stay
_HUE_WIDTH = 28  # of 256, around the drawing's main hue: a yellow tail light stays yellow


def main(font: str) -> None:
    """Write the sheet into the package."""
    rows = -(-len(CELLS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    typeface = ImageFont.truetype(font, _FONT_SIZE)
    for number, (name, colour) in enumerate(CELLS):
        sprite = _draw(NOUNS[name].emoji, typeface)
        if colour:
            sprite = _dye(sprite, *THING_COLOURS[colour])
        x, y = number % COLUMNS * SIDE, number // COLUMNS * SIDE
        sheet.paste(sprite, (x + (SIDE - sprite.width) // 2, y + (SIDE - sprite.height) // 2))
    sheet.save(SHEET, lossless=True, quality=100, method=6)


def _draw(emoji: str, typeface: ImageFont.FreeTypeFont) -> Image.Image:
    """An emoji without its margin, its longer side filling a cell."""
    canvas = Image.new("RGBA", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=typeface, embedded_color=True)
    box = canvas.getbbox()
    assert box is not None, f"the font lacks {emoji}"
    drawn = canvas.crop(box)
    scale = SIDE / max(drawn.size)
    size = (round(drawn.width * scale), round(drawn.height * scale))
    drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    # What is invisible costs bytes all the same.
    return Image.composite(drawn, Image.new("RGBA", size), drawn.getchannel("A").point(_visible))


def _visible(alpha: int) -> int:
    return 255 if alpha > 3 else 0


def _dye(sprite: Image.Image, hue_degrees: int, brightness: float) -> Image.Image:
    """Turn the drawing's main hue into another."""
    hue, saturation, value = sprite.convert("RGB").convert("HSV").split()
    colourful = saturation.point(lambda s: 255 if s >= _COLOURFUL else 0)
    opaque = sprite.getchannel("A").point(lambda a: 255 if a == 255 else 0)
    counts = hue.histogram(ImageChops.darker(colourful, opaque))
    main_hue = counts.index(max(counts))
    near = hue.point([255 * (min(abs(h - main_hue), 256 - abs(h - main_hue)) <= _HUE_WIDTH)
                      for h in range(256)])  # fmt: skip
    target = Image.new("L", sprite.size, round(hue_degrees * 255 / 360))
    dyed = ImageChops.darker(near, colourful)
    hue = Image.composite(target, hue, dyed)
    value = Image.composite(value.point(lambda v: min(255, v * brightness)), value, dyed)
    result = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    result.putalpha(sprite.getchannel("A"))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2] or sys.exit(__doc__))
