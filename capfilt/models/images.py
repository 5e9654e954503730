"""From an image's bytes to the square of pixels that a model sees, on CPU threads.

    bytes --decode--> uint8 RGB [H, W, 3] --fit--> uint8 [3, size, size]

Pixels are what BLIP's own loader makes, `Image.open(...).convert("RGB")`, which means: alpha is
discarded rather than composited, a palette entry gives its colour, 16-bit gray is clipped at 255,
EXIF orientation and colour profiles are not applied, and of an animation the first frame is taken.

The images come from strangers. The size is read from the header and checked before any pixel is
decoded, only the formats named here are tried, and truncated data is an error, never a grey area.

Baseline and progressive JPEG is decoded by simplejpeg where it is installed: the same bits as
Pillow (both are libjpeg-turbo with its exact settings) in 0.8 of the time. Whatever it refuses,
CMYK among it, is left to Pillow, so results and verdicts do not depend on its presence. Resizing is
torch's uint8 kernel, 0.35 ms for 512x384 to 384x384 where Pillow takes 1.1 ms.

Functions here are safe to call from many threads at once, and release the GIL while they work.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile

from capfilt.config import IMAGE_FORMATS, ImageConfig
from capfilt.record import Reason

try:
    import simplejpeg
except ImportError:  # then Pillow decodes everything
    simplejpeg = None

RGB = npt.NDArray[np.uint8]  # [H, W, 3]

# Magic of two letters: text that starts with "BM" is not a broken bitmap but no image at all.
_WEAK_MAGIC = frozenset({"BMP"})
# A progressive JPEG can ask for a pass over all its pixels with every 10 bytes. 500 is where
# libjpeg-turbo's own tools give up; encoders write about ten.
_MAX_JPEG_SCANS = 500
_START_OF_SCAN = b"\xff\xda"
# Above this ratio of sides a resize of the whole image would make far more pixels than the crop
# shows: a 16 x 100,000 strip becomes 384 x 2,400,000.
_MAX_ASPECT_TO_RESIZE_WHOLE = 4

# Once, here, since only process-wide filters are safe with threads: Pillow comments on strangers'
# metadata and palettes, and no reader of a log can do anything about it.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class PixelSpec:
    """How a model wants its image.

    Attributes:
        size: Side of the square in pixels.
        crop: False squashes the image to the square, as BLIP does. True makes its shorter side
            `size` long and cuts the centre out, as CLIP's image processor does.
    """

    size: int
    crop: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, is {self.size}")


class ImageError(Exception):
    """An image that no model will see; `reason` is what the ledger says of it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Reason, str]]:
        return type(self), (self.reason, str(self))  # the default forgets `reason`


def decode(data: bytes, limits: ImageConfig) -> RGB:
    """Decode an image to RGB, in full or not at all.

    Source: the pixels are those of BLIP's `data/pretrain_dataset.py`.

    Args:
        data: A whole file in one of `IMAGE_FORMATS`.
        limits: What is worth decoding. Checked on the header, before pixels take any memory.

    Returns:
        uint8 [H, W, 3], writable, C-contiguous.

    Raises:
        ImageError: With the reason IMAGE_EMPTY, IMAGE_NOT_AN_IMAGE, IMAGE_CORRUPT,
            IMAGE_TOO_LARGE or IMAGE_TOO_SMALL.
        MemoryError: The machine's fault, not the image's; pixels within the limits did not fit.
    """
    if not data:
        raise ImageError(Reason.IMAGE_EMPTY, "no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            Reason.IMAGE_TOO_LARGE, f"{len(data)} bytes, above max_bytes {limits.max_bytes}"
        )
    if data.startswith(b"\xff\xd8\xff"):
        if data.count(_START_OF_SCAN) > _MAX_JPEG_SCANS:
            raise ImageError(Reason.IMAGE_CORRUPT, f"a JPEG of more than {_MAX_JPEG_SCANS} scans")
        pixels = _decode_jpeg(data, limits)
        if pixels is not None:
            return pixels
    return _decode_pillow(data, limits)


def count_pixels(data: bytes) -> int:
    """How many pixels an image says that it has, from its header; 0 where that cannot be read."""
    if simplejpeg is not None and data.startswith(b"\xff\xd8\xff"):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return 0
        return int(height * width)
    try:
        with _open(data) as image:
            return image.width * image.height
    except ImageError:
        return 0


def fit(rgb: RGB, spec: PixelSpec) -> torch.Tensor:
    """Resize to a model's square, bicubic with antialiasing.

    Within one level of Pillow's `resize(..., BICUBIC)`, but for two levels in some 0.001 % of the
    values where an image is enlarged. The width is resized first, as Pillow did until version 12;
    Pillow 13 starts with the height where that is shorter work, and differs by up to 30 levels
    around hard edges from what BLIP's authors saw.

    Source: BLIP's `transform.test` squashes; CLIP's image processor crops.

    Args:
        rgb: uint8 [H, W, 3].
        spec: The square wanted.

    Returns:
        uint8 [3, size, size] in [0, 255]. Memory lies channels last (a strided view).
    """
    height, width, _ = rgb.shape
    size = spec.size
    if not spec.crop:
        return _resize(rgb, size, size)
    if max(height, width) > _MAX_ASPECT_TO_RESIZE_WHOLE * min(height, width):
        return _resize_centre(rgb, size)
    # CLIP rounds the longer side down.
    new_height = size if height <= width else int(size * height / width)
    new_width = size if width <= height else int(size * width / height)
    resized = _resize(rgb, new_height, new_width)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return resized[:, top : top + size, left : left + size]


def _decode_jpeg(data: bytes, limits: ImageConfig) -> RGB | None:
    """Pixels by simplejpeg, or None where Pillow has to decide."""
    if simplejpeg is None:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "Gray", "RGB"):
        return None
    _check_size(width, height, limits)
    try:
        pixels: RGB = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        # Strict refuses every irregularity, Pillow the fatal ones (truncation is one): its word.
        return None
    return pixels


def _decode_pillow(data: bytes, limits: ImageConfig) -> RGB:
    with _open(data) as image:
        _check_size(image.width, image.height, limits)
        try:
            return np.array(image.convert("RGB"))  # a copy: `asarray` would be read-only
        except MemoryError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(Reason.IMAGE_TOO_LARGE, str(error)) from None
        except Exception as error:  # noqa: BLE001 - decoders raise nearly every class on bad data
            raise ImageError(Reason.IMAGE_CORRUPT, f"{image.format}: {error}") from None


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header. Unlike `Image.open` it does not apply Pillow's process-wide pixel limit."""
    prefix = data[:16]
    for name in IMAGE_FORMATS:
        if name not in Image.OPEN:
            Image.init()  # registers all formats of this build; AVIF may not be among them
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(prefix)
        # A text instead of a bool says that this build cannot read the format it recognised.
        if not accepted or isinstance(accepted, str):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except MemoryError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(Reason.IMAGE_TOO_LARGE, str(error)) from None
        except Exception as error:  # noqa: BLE001 - parsers raise nearly every class on bad data
            if name in _WEAK_MAGIC:
                continue
            raise ImageError(Reason.IMAGE_CORRUPT, f"{name}: {error}") from None
    raise ImageError(
        Reason.IMAGE_NOT_AN_IMAGE,
        f"starts with {prefix!r}, which is none of {', '.join(IMAGE_FORMATS)}",
    )


def _check_size(width: int, height: int, limits: ImageConfig) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            Reason.IMAGE_TOO_LARGE,
            f"{width} x {height} pixels, above max_pixels {limits.max_pixels}",
        )
    if min(width, height) < limits.min_side:
        raise ImageError(
            Reason.IMAGE_TOO_SMALL,
            f"{width} x {height} pixels, a side is below min_side {limits.min_side}",
        )


def _resize(rgb: RGB, height: int, width: int) -> torch.Tensor:
    # Channels last is how the decoder leaves the pixels, and torch's fastest layout for it.
    pixels = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(
        pixels, size=(height, width), mode="bicubic", antialias=True
    )
    return resized[0]


def _resize_centre(rgb: RGB, size: int) -> torch.Tensor:
    """The centre crop of a long strip, without the rest of its resized form.

    Pillow can resize a box of fractional place within an image, and looks beyond its borders for
    the filter, so these are the pixels that the crop of the whole would have.
    """
    height, width, _ = rgb.shape
    long, short = max(height, width), min(height, width)
    new_long = int(size * long / short)
    first = (new_long - size) // 2
    start, end = first * long / new_long, (first + size) * long / new_long
    margin = 4 * max(1, -(-short // size))  # beyond the filter's reach of two target pixels
    low, high = max(0, int(start) - margin), min(long, int(end) + margin + 1)
    start, end = start - low, end - low
    bicubic = Image.Resampling.BICUBIC
    if height > width:
        wide = Image.fromarray(rgb[low:high]).resize((size, high - low), bicubic)
        square = wide.resize((size, size), bicubic, box=(0, start, size, end))
    else:
        window = Image.fromarray(rgb[:, low:high])
        wide = window.resize((size, height), bicubic, box=(start, 0, end, height))
        square = wide.resize((size, size), bicubic)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
