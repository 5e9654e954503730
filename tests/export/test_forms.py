"""The forms as their loaders find them, over samples of every kind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from capfilt.export.forms import FORMS
from capfilt.io.fields import NOT_SCORED
from capfilt.io.members import IMAGE_EXTS
from capfilt.record import Annotated, Sample, Score, Source, Text, Verdict
from tests.run.conftest import tar_samples

FORMATS = {"jpg": "JPEG", "tif": "TIFF"}  # as Pillow calls them; else the extension


def encoded(ext: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, FORMATS.get(ext, ext.upper()))
    return out.getvalue()


def annotated(ext: str, *contents: str) -> Annotated:
    texts = tuple(
        Text(Source.SYNTHETIC, i, text, Score(similarity=0.25), Verdict.KEPT)
        for i, text in enumerate(contents)
    )
    return Annotated(Sample(f"a.{ext}", encoded(ext), ext, texts), texts, texts, Verdict.KEPT)


def blip_images(target: Path, shard_id: str, *keys: str) -> dict[str, str]:
    """Write a shard of images that say where they are from; where each is, by what it says."""
    text = Text(Source.SYNTHETIC, 0, "a wall", Score(), Verdict.KEPT)
    samples = [
        Annotated(
            Sample(key, f"{key} of {shard_id}".encode(), "jpg", (text,)),
            (text,),
            (text,),
            Verdict.KEPT,
        )
        for key in keys
    ]
    FORMS["blip"].write(samples, str(target), shard_id)
    pairs = json.loads((target / FORMS["blip"].path(shard_id)).read_text())
    return {f"{key} of {shard_id}": pair["image"] for key, pair in zip(keys, pairs, strict=True)}


def test_blip_shards_and_keys_below_each_other_keep_their_images_apart(tmp_path: Path) -> None:
    places = blip_images(tmp_path, "a/b", "x", "b/x", "b//x", "b%2Fx", "b%252Fx")
    places |= blip_images(tmp_path, "a%2Fb", "x")
    places |= blip_images(tmp_path, "a", "x", "b/x", "b.x")
    assert {text: Path(place).read_text() for text, place in places.items()} == {
        text: text for text in places
    }


def test_blip_keys_as_long_as_they_may_be_have_their_images(tmp_path: Path) -> None:
    keys = ("k" * 255, "k" * 254 + "j", "." * 255, "\u732b" * 85, "/".join("k" * 128))
    places = blip_images(tmp_path, "0", *keys)
    assert {text: Path(place).read_text() for text, place in places.items()} == {
        text: text for text in places
    }


def test_open_clip_takes_images_of_every_extension(tmp_path: Path) -> None:
    """Which it asks for by name; webdataset decodes by name, too, `webp` not in every version."""
    wds = pytest.importorskip("webdataset")
    samples = [annotated(ext, "a red wall") for ext in IMAGE_EXTS]
    FORMS["open_clip"].write(samples, str(tmp_path), "00000")
    pipeline = wds.DataPipeline(
        wds.SimpleShardList([str(tmp_path / "00000.tar")]),
        wds.tarfile_to_samples(),
        wds.select(lambda sample: "txt" in sample),
        wds.select(lambda sample: any(ext in sample for ext in ("png", "jpg", "jpeg"))),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.to_tuple("image", "text"),
    )
    found = list(pipeline)
    assert [image.size for image, _ in found] == [(40, 30)] * len(IMAGE_EXTS)
    assert [tuple(image.getpixel((9, 9)))[1] < 30 for image, _ in found] == [True] * len(found)


def test_an_image_that_is_asked_for_keeps_its_extension(tmp_path: Path) -> None:
    FORMS["open_clip"].write([annotated("png", "a red wall")], str(tmp_path), "00000")
    assert next(tar_samples(tmp_path / "00000.tar")).keys() == {"__key__", "png", "json", "txt"}
    FORMS["lavis"].write([annotated("png", "a red wall")], str(tmp_path), "00001")
    assert next(tar_samples(tmp_path / "00001.tar"))["jpg"] == encoded("png")


@pytest.mark.parametrize("form", ["lavis", "open_clip"])
def test_a_pair_says_where_it_is_from(form: str, tmp_path: Path) -> None:
    """Readers infer types: a score that was not computed is a number, too."""
    FORMS[form].write([annotated("jpg", "one", "two")], str(tmp_path), "00000")
    first, second = tar_samples(tmp_path / "00000.tar")
    assert (first["__key__"], second["__key__"]) == (b"a%2Ejpg_0", b"a%2Ejpg_1")
    assert json.loads(second["json"]) == {
        "key": "a.jpg",
        "caption": "two",
        "source": "synthetic",
        "match_prob": NOT_SCORED,
        "similarity": 0.25,
    }
    assert second["txt"] == b"two"
