"""Bad input of every kind: samples in one tar, each with what the ledger must say of it."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin

from capfilt.record import Reason

KEPT = "no reason"  # the models see it
TEXT = b"a dog on the grass"


@dataclass(frozen=True)
class Kind:
    """A sample's members, in order, and the reasons of its web text's rows."""

    members: tuple[tuple[str, bytes], ...]
    reasons: tuple[str, ...]


def jpeg(side: int = 40, **options: object) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one grey pixel's data, whatever size its header says."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def animated(form: str, frames: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("L", (24, 24), i % 256) for i in range(frames)]
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def png_with_text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    return encoded("PNG", pnginfo=info)


def jpeg_with_exif_loop() -> bytes:
    """An EXIF directory whose next directory is itself, of 4,000 entries that point outside."""
    entry = struct.pack("<HHII", 0x8769, 4, 0xFFFFFFFF, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 4000) + entry * 4000 + b"\x08\0\0\0"
    return jpeg(exif=exif)


def jpeg_of_many_scans() -> bytes:
    data = jpeg(progressive=True)
    return data[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" * 600 + data[-2:]


def tiff_of_size(side: int) -> bytes:
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 8)]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in entries
    )
    return b"II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", "x")
    return buffer.getvalue()


def _image(data: bytes, reason: str, ext: str = "jpg") -> Kind:
    return Kind(((ext, data), ("txt", TEXT)), (reason,))


def _text(data: bytes, reason: str = KEPT) -> Kind:
    return Kind((("jpg", jpeg()), ("txt", data)), (reason,))


def _json(data: bytes, reason: str) -> Kind:
    return Kind((("jpg", jpeg()), ("json", data)), (reason,))


_OTHER_FORMATS = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "svg_with_entity": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    b"<svg>&e;</svg>",
    "html": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "pdf": b"%PDF-1.7\n1 0 obj <</OpenAction <</S /JavaScript>>>> endobj",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
    "icon": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + b"\0" * 64,
    "photoshop": b"8BPS\0\1" + b"\0" * 64,
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 64,
    "heic": b"\0\0\0\x18ftypheic" + b"\0" * 64,
    "pcx": b"\x0a\x05\x01\x08" + b"\0" * 128,
    "fli": b"\0\0\0\0\x12\xaf" + b"\0" * 128,
    "xbm": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0x00};",
    "ppm": b"P6 99999 99999 255\n",
    "pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
    "elf": b"\x7fELF\x02\x01\x01" + b"\0" * 64,
    "zip": zipped(),
    "gzip_of_jpeg": gzip.compress(jpeg()),
    "random": bytes(np.random.default_rng(0).integers(0, 255, 999, dtype=np.uint8)),
}


@cache
def kinds() -> dict[str, Kind]:
    """Every kind by the key of its sample."""
    good = jpeg()
    found = {f"image_{n}": _image(d, Reason.IMAGE_NOT_AN_IMAGE) for n, d in _OTHER_FORMATS.items()}
    for name, data in {
        "png_bomb": png(60_000, 60_000),
        "png_of_2_31_pixels_a_side": png(2**31 - 1, 2**31 - 1),
        "jpeg_bomb": jpeg_of_size(65_500, 65_500),
        "gif_bomb": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65535, 65535) + b"\0\x02\0;",
        "tiff_bomb": tiff_of_size(60_000),
        "bmp_bomb": b"BM" + struct.pack("<IHHI", 999, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 99,
        "more_bytes_than_allowed": good + b"\0" * 2**20,
    }.items():  # fmt: skip
        found[f"image_{name}"] = _image(data, Reason.IMAGE_TOO_LARGE)
    for name, data in {
        "jpeg_cut": good[: len(good) // 2],
        "png_cut": encoded("PNG")[:60],
        "webp_cut": encoded("WEBP", lossless=True)[:-20],
        "tiff_cut": encoded("TIFF")[:-500],
        "jpeg_of_600_scans": jpeg_of_many_scans(),
        "png_text_bomb": png_with_text_bomb(),
        "png_without_pixels": png(32, 32),
        "zip_behind_a_jpegs_magic": b"\xff\xd8\xff" + zipped(),
        "avif_of_nothing": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0" * 64,
        "tiff_of_tags_that_lie": tiff_of_size(100)[:40] + b"\xff" * 80,
    }.items():
        found[f"image_{name}"] = _image(data, Reason.IMAGE_CORRUPT)
    found |= {
        "image_of_zero_bytes": _image(b"", Reason.IMAGE_EMPTY),
        "image_tracking_pixel": _image(png(1, 1), Reason.IMAGE_TOO_SMALL),
        "image_gif_of_3000_frames": _image(animated("GIF", 3000), KEPT, "gif"),
        "image_png_of_2000_frames": _image(animated("PNG", 2000), KEPT, "png"),
        "image_exif_loop": _image(jpeg_with_exif_loop(), KEPT),
        "image_of_wrong_extension": _image(encoded("PNG"), KEPT),
        "image_as_svg_member": Kind(
            (("svg", _OTHER_FORMATS["svg"]), ("txt", TEXT)), (Reason.NO_IMAGE,)
        ),
        "text_of_nul": _text(b"a dog\0on\0the grass"),
        "text_of_10_MB": _text(b"dog " * 2_500_000, Reason.TEXT_TOO_LONG),
        "text_of_one_long_word": _text(b"x" * 60_000),
        "text_right_to_left": _text("a dog \u202egpj.exe\u2066".encode()),
        "text_html": _text(b"<script>alert(1)</script><img src=x onerror=alert(1)>"),
        "text_terminal": _text(b"\x1b]0;owned\x07\x1b[2J\x9b31m"[:-4]),
        "text_latin_1": _text(b"caf\xe9", Reason.TEXT_NOT_UTF8),
        "text_utf_16": _text("a dog".encode("utf-16"), Reason.TEXT_NOT_UTF8),
        "text_empty": _text(b" \t\n", Reason.EMPTY_TEXT),
        "text_of_punctuation": _text(b"...!!!", Reason.EMPTY_TEXT),
        "text_of_combining_marks": _text(("a" + "\u0301" * 20_000).encode()),
        "text_of_template": _text(b"{{7*7}} ${jndi:ldap://127.0.0.1/x} %s %n"),
        "text_missing": Kind((("jpg", good),), (Reason.NO_TEXT,)),
        "text_surrogate": _json(b'{"caption": "a \\ud83d dog"}', Reason.TEXT_NOT_UTF8),
        "text_is_a_number": _json(b'{"caption": 3}', Reason.NO_TEXT),
        "json_is_a_list": _json(b"[]", Reason.METADATA_INVALID),
        "json_cut": _json(b'{"caption": "a', Reason.METADATA_INVALID),
        "json_nested_100_000_deep": _json(b"[" * 100_000, Reason.METADATA_INVALID),
        "json_objects_100_000_deep": _json(b'{"a":' * 100_000, Reason.METADATA_INVALID),
        "json_number_of_100_000_digits": _json(
            b'{"n":' + b"1" * 100_000 + b"}", Reason.METADATA_INVALID
        ),
        "json_of_5_MB": _json(json.dumps({"x": "y" * 5_000_000}).encode(), Reason.METADATA_INVALID),
        "extras_of_70_MB": Kind(
            (("jpg", good), ("bin", b"\0" * 70_000_000), ("txt", TEXT)), (Reason.METADATA_INVALID,)
        ),
        "extras_pickle": Kind(
            (("jpg", good), ("pyd", _OTHER_FORMATS["pickle"]), ("txt", TEXT)), (KEPT,)
        ),
        "/etc/absolute": _image(good, Reason.INVALID_KEY),
        "../../outside": _image(good, Reason.INVALID_KEY),
        "a/../../outside": _image(good, Reason.INVALID_KEY),
        "windows\\path": _image(good, Reason.INVALID_KEY),
        "escape\x1b[2J": _image(good, Reason.INVALID_KEY),
        "line\nbreak": _image(good, Reason.INVALID_KEY),
        "long" * 100: _image(good, Reason.INVALID_KEY),
        "not_utf8_\udce9": _image(good, Reason.INVALID_KEY),
        "member_twice": Kind(
            (("jpg", good), ("txt", TEXT), ("JPG", good)), (Reason.DUPLICATE_KEY,)
        ),
        "apart": Kind((("jpg", good),), (Reason.NO_TEXT, Reason.NO_IMAGE)),
        "again": Kind((("jpg", good), ("txt", TEXT)), (KEPT, Reason.DUPLICATE_KEY)),
    }
    for kind in ("symbolic_link", "hard_link", "device", "pipe", "folder", "sparse"):
        found[f"member_{kind}"] = Kind((("txt", TEXT),), (Reason.NO_IMAGE,))
    return found


def write_tar(file: io.BufferedWriter, found: dict[str, Kind]) -> None:
    """All kinds in one tar; what has two rows comes once more at the end."""
    types: dict[str, Callable[[tarfile.TarInfo], None]] = {
        "member_symbolic_link": _of_type(tarfile.SYMTYPE),
        "member_hard_link": _of_type(tarfile.LNKTYPE),
        "member_device": _of_type(tarfile.CHRTYPE),
        "member_pipe": _of_type(tarfile.FIFOTYPE),
        "member_folder": _of_type(tarfile.DIRTYPE),
        "member_sparse": _of_type(tarfile.GNUTYPE_SPARSE),
    }
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, kind in found.items():
            if key in types:
                member = tarfile.TarInfo(f"{key}.jpg")
                types[key](member)
                tar.addfile(member)
            _add(tar, key, kind.members)
        _add(tar, "apart", [("txt", TEXT)])
        _add(tar, "again", found["again"].members)


def _of_type(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, "/etc/passwd"

    return change


def _add(tar: tarfile.TarFile, key: str, members: Iterable[tuple[str, bytes]]) -> None:
    for ext, data in members:
        member = tarfile.TarInfo(f"{key}.{ext}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
