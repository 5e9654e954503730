import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from capfilt.config import ImageConfig
from capfilt.models import images
from capfilt.models.images import ImageError, PixelSpec, decode, fit
from capfilt.record import Reason

LIMITS = ImageConfig()
BICUBIC = Image.Resampling.BICUBIC


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some grain: compresses and resizes like a photograph."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(blobs.resize((width, height), BICUBIC)).astype(int)
    grain = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and has none."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def pillow_rgb(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def reason_of(data: bytes, limits: ImageConfig = LIMITS) -> Reason:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return caught.value.reason


def palette_png_with_alpha() -> bytes:
    image = photo(40, 50).quantize(16)
    return encoded(image, "PNG", transparency=bytes([0, 128] + [255] * 14))


def animated_gif() -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def animated_webp() -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn 90 degrees clockwise
    return encoded(photo(40, 60), "JPEG", exif=exif)


def gray16() -> Image.Image:
    return Image.fromarray(np.arange(40 * 40, dtype=np.uint16).reshape(40, 40))


FORMATS = {
    "jpeg_420": lambda: encoded(photo(203, 301), "JPEG", quality=90, subsampling=2),
    "jpeg_422": lambda: encoded(photo(203, 301), "JPEG", quality=75, subsampling=1),
    "jpeg_444": lambda: encoded(photo(203, 301), "JPEG", quality=95, subsampling=0),
    "jpeg_progressive": lambda: encoded(photo(203, 301), "JPEG", progressive=True),
    "jpeg_gray": lambda: encoded(photo(64, 65).convert("L"), "JPEG"),
    "jpeg_cmyk": lambda: encoded(photo(64, 65).convert("CMYK"), "JPEG"),
    "jpeg_rgb": lambda: encoded(photo(64, 65), "JPEG", keep_rgb=True),
    "jpeg_rotated_by_exif": rotated_jpeg,
    "jpeg_with_junk_behind": lambda: encoded(photo(64, 65), "JPEG") + b"junk" * 9,
    "mpo": lambda: encoded(photo(64, 65), "MPO", save_all=True, append_images=[photo(64, 65, 1)]),
    "png": lambda: encoded(photo(64, 65), "PNG"),
    "png_alpha": lambda: encoded(photo(64, 65).convert("RGBA"), "PNG"),
    "png_palette_alpha": palette_png_with_alpha,
    "png_gray16": lambda: encoded(gray16(), "PNG"),
    "png_bilevel": lambda: encoded(photo(64, 65).convert("1"), "PNG"),
    "gif_animated": animated_gif,
    "webp": lambda: encoded(photo(64, 65), "WEBP"),
    "webp_alpha": lambda: encoded(photo(64, 65).convert("RGBA"), "WEBP", lossless=True),
    "webp_animated": animated_webp,
    "bmp": lambda: encoded(photo(64, 65), "BMP"),
    "tiff": lambda: encoded(photo(64, 65), "TIFF", compression="tiff_lzw"),
    "avif": lambda: encoded(photo(64, 65), "AVIF"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_decode_any_format_gives_the_pixels_of_blips_loader(name: str) -> None:
    try:
        data = FORMATS[name]()
    except (KeyError, OSError):
        pytest.skip("this Pillow cannot write the format")
    pixels = decode(data, LIMITS)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pillow_rgb(data))


@pytest.mark.parametrize("name", ["jpeg_420", "jpeg_progressive", "jpeg_gray", "jpeg_cmyk"])
def test_decode_without_simplejpeg_gives_the_same_pixels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FORMATS[name]()
    fast = decode(data, LIMITS)
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(decode(data, LIMITS), fast)


def test_decode_animation_takes_the_first_frame() -> None:
    assert decode(animated_gif(), LIMITS)[0, 0].tolist() == [255, 0, 0]


def test_decode_exif_orientation_is_not_applied() -> None:
    assert decode(rotated_jpeg(), LIMITS).shape == (40, 60, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"BMW for sale, one owner, never seen rain",
        b"\xef\xbb\xbf404",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",  # Ghostscript's, not ours
        b"\0" * 1000,
        b"\xff",
    ],
)
def test_decode_other_content_is_not_an_image(data: bytes) -> None:
    assert reason_of(data) is Reason.IMAGE_NOT_AN_IMAGE


def test_decode_no_bytes_is_empty() -> None:
    assert reason_of(b"") is Reason.IMAGE_EMPTY


@pytest.mark.parametrize("with_simplejpeg", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["jpeg_420", "jpeg_progressive", "jpeg_cmyk", "png", "webp"])
def test_decode_truncated_file_is_corrupt(
    name: str, share: float, with_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_simplejpeg:
        monkeypatch.setattr(images, "simplejpeg", None)
    data = FORMATS[name]()
    assert reason_of(data[: int(len(data) * share)]) is Reason.IMAGE_CORRUPT


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0"])
def test_decode_magic_without_content_is_corrupt(magic: bytes) -> None:
    assert reason_of(magic + b"x" * 40) is Reason.IMAGE_CORRUPT


def test_decode_jpeg_of_endless_scans_is_corrupt() -> None:
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[scan:-2] * 600 + b"\xff\xd9"
    assert reason_of(bomb) is Reason.IMAGE_CORRUPT


def test_decode_huge_header_is_too_large_without_its_memory() -> None:
    assert reason_of(png_header(20_000, 20_000)) is Reason.IMAGE_TOO_LARGE  # 1.2 GB if it were read


def test_decode_huge_jpeg_header_is_too_large() -> None:
    data = bytearray(encoded(photo(64, 64), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    assert reason_of(bytes(data)) is Reason.IMAGE_TOO_LARGE


def test_decode_limit_above_pillows_own_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would raise from 200 pixels
    assert decode(encoded(photo(64, 65), "PNG"), LIMITS).shape == (64, 65, 3)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF"])
def test_decode_tracking_pixel_is_too_small(fmt: str) -> None:
    assert reason_of(encoded(Image.new("RGB", (1, 1)), fmt)) is Reason.IMAGE_TOO_SMALL


def test_decode_limits_include_their_value() -> None:
    data = encoded(photo(16, 20), "PNG")
    exact = ImageConfig(max_bytes=len(data), max_pixels=320, min_side=16)
    assert decode(data, exact).shape == (16, 20, 3)
    assert reason_of(data, ImageConfig(max_bytes=len(data) - 1)) is Reason.IMAGE_TOO_LARGE
    assert reason_of(data, ImageConfig(max_pixels=319)) is Reason.IMAGE_TOO_LARGE
    assert reason_of(data, ImageConfig(min_side=17)) is Reason.IMAGE_TOO_SMALL


def test_decode_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for name in ("jpeg_420", "jpeg_cmyk", "png", "gif_animated", "webp", "bmp", "tiff"):
        data = FORMATS[name]()
        for _ in range(40):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), 600), 8):
                damaged[place] = rng.integers(0, 256)
            try:
                outcomes.add(decode(bytes(damaged), LIMITS).dtype)
            except ImageError as error:
                outcomes.add(error.reason)
    assert Reason.IMAGE_CORRUPT in outcomes


def test_decode_palette_with_alpha_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    # pytest resets the filters for each test, so the one of the module is installed anew.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    decode(palette_png_with_alpha(), LIMITS)
    assert not recwarn.list


def test_decode_and_fit_in_threads_give_what_one_thread_gives() -> None:
    files = [make() for name, make in FORMATS.items() if name != "avif"] * 4
    spec = PixelSpec(96)
    alone = [fit(decode(data, LIMITS), spec) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: fit(decode(data, LIMITS), spec), files))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError(Reason.IMAGE_CORRUPT, "cut")))  # noqa: S301
    assert (error.reason, str(error)) == (Reason.IMAGE_CORRUPT, "cut")


SHAPES = [
    (384, 512), (480, 640), (640, 480), (768, 1024), (100, 50), (50, 100), (16, 16), (17, 23),
    (385, 383), (383, 385), (384, 384), (1, 300), (300, 1), (1, 1), (16, 5000), (5000, 16),
    (2000, 3000),
]  # fmt: skip


def pillow_resize(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Width, then height: the order of every Pillow, made explicit since 13 chooses its own."""
    image = Image.fromarray(rgb)
    wide = image.resize((width, image.height), BICUBIC)
    return np.asarray(wide.resize((width, height), BICUBIC)).astype(int)


def as_array(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy().astype(int)


def assert_same_resize(ours: np.ndarray, theirs: np.ndarray, *, enlarged: bool) -> None:
    """Both round between the passes; torch's coarser weights add one level, rarely two."""
    difference = np.abs(ours - theirs)
    assert difference.max() <= (2 if enlarged else 1)
    assert (difference > 1).mean() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [384, 96])
def test_fit_squash_is_within_one_level_of_pillow(shape: tuple[int, int], size: int) -> None:
    rgb = np.array(photo(*shape))
    pixels = fit(rgb, PixelSpec(size))
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.uint8
    expected = pillow_resize(rgb, size, size)
    assert_same_resize(as_array(pixels), expected, enlarged=min(shape) < size)


def test_fit_black_and_white_noise_is_within_two_levels_of_pillow() -> None:
    rng = np.random.default_rng(0)
    for height, width in [(384, 512), (385, 383), (17, 23), (100, 50), (1000, 700)]:
        rgb = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
        difference = as_array(fit(rgb, PixelSpec(384))) - pillow_resize(rgb, 384, 384)
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("shape", [s for s in SHAPES if min(s) >= 16])
def test_fit_crop_is_the_centre_of_the_resized_image(shape: tuple[int, int]) -> None:
    rgb = np.array(photo(*shape))
    height, width = shape
    new_height, new_width = (
        (224, int(224 * width / height)) if height <= width else (int(224 * height / width), 224)
    )
    top, left = (new_height - 224) // 2, (new_width - 224) // 2
    whole = pillow_resize(rgb, new_height, new_width)
    pixels = fit(rgb, PixelSpec(224, crop=True))
    assert pixels.shape == (3, 224, 224)
    centre = whole[top : top + 224, left : left + 224]
    assert_same_resize(as_array(pixels), centre, enlarged=min(shape) < 224)


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (224, 225), (64, 1000), (333, 777)])
def test_fit_crop_matches_clips_processor(shape: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    rgb = np.array(photo(*shape))
    theirs = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]
    ours = as_array(fit(rgb, PixelSpec(224, crop=True)))
    assert_same_resize(ours, theirs.transpose(1, 2, 0).astype(int), enlarged=True)


def test_fit_crop_of_a_long_strip_makes_only_the_square() -> None:
    strip = np.array(photo(16, 200_000))  # resized whole: 384 x 4,800,000 pixels, 5.5 GB
    assert fit(strip, PixelSpec(384, crop=True)).shape == (3, 384, 384)


def test_pixel_spec_of_no_size_raises() -> None:
    with pytest.raises(ValueError, match="size"):
        PixelSpec(0)
