"""From a scene to an image. Same scene and side, same bytes (with the same Pillow)."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageDraw

from capfilt.demo.nouns import BACKGROUND_COLOURS, SIZES
from capfilt.demo.scene import Background, Scene
from capfilt.demo.sprites import sprite

_STRIPES = 8  # of a striped background, half of them darker; dots and squares alike
_DARKER = 0.86
_QUALITY = 90


def render(scene: Scene, side: int = 96) -> Image.Image:
    """Draw a scene.

    Args:
        scene: What to draw.
        side: Width and height in pixels.

    Returns:
        An RGB image.
    """
    image = _background(scene.background, side).copy()
    for group in scene.groups:
        length = round(SIZES[group.size] * side)
        thing = sprite(group.noun, group.colour, length, group.mirrored)
        for x, y in group.places:
            image.paste(thing, (round(x * side - length / 2), round(y * side - length / 2)), thing)
    return image


def render_jpeg(scene: Scene, side: int = 96) -> bytes:
    """Draw a scene as a JPEG file's content."""
    buffer = io.BytesIO()
    render(scene, side).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


@lru_cache(maxsize=512)
def _background(background: Background, side: int) -> Image.Image:
    colour = BACKGROUND_COLOURS[background.colour]
    if background.pattern == "gradient":
        ends = Image.new("RGB", (1, 2), colour)
        ends.putpixel((0, 1), BACKGROUND_COLOURS[background.second])
        return ends.resize((side, side), Image.Resampling.BILINEAR)
    image = Image.new("RGB", (side, side), colour)
    if background.pattern != "plain":
        _draw_pattern(image, background.pattern, tuple(round(_DARKER * part) for part in colour))
    return image


def _draw_pattern(image: Image.Image, pattern: str, colour: tuple[int, ...]) -> None:
    draw = ImageDraw.Draw(image)
    step = image.width / _STRIPES
    for row in range(_STRIPES):
        for column in range(_STRIPES):
            x, y = column * step, row * step
            if pattern == "dotted":
                draw.ellipse(
                    (x + step / 4, y + step / 4, x + step * 3 / 4, y + step * 3 / 4), colour
                )
            elif column % 2 == (row % 2 if pattern == "checkered" else 0):
                draw.rectangle(
                    (round(x), round(y), round(x + step) - 1, round(y + step) - 1), colour
                )
