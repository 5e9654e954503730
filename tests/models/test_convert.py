from __future__ import annotations

import math
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.convert import convert
from capfilt.models.load import load_captioner, load_filter
from tests.models.conftest import make_images, normalised

# The renaming of transformers' own conversion, backwards.
TO_ORIGINAL = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.post_layernorm", "visual_encoder.norm"),
    (r"^vision_model\.encoder\.layers", "visual_encoder.blocks"),
    (r"\.self_attn\.qkv", ".attn.qkv"),
    (r"\.self_attn\.projection", ".attn.proj"),
    (r"\.layer_norm(\d)", r".norm\1"),
)


def as_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in TO_ORIGINAL:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


@pytest.fixture
def pretraining(
    hf_captioner: BlipForConditionalGeneration,
    hf_filter: BlipForImageTextRetrieval,
    tmp_path: Path,
) -> Path:
    """A `.pth` with both halves, momentum copies and queues, as BLIP's pre-training leaves it."""
    state = as_original({**hf_filter.state_dict(), **hf_captioner.state_dict()})
    state |= {
        re.sub(r"^(visual_encoder|text_encoder|vision_proj|text_proj)\.", r"\1_m.", name): tensor
        for name, tensor in state.items()
        if re.match(r"(visual_encoder|text_encoder|vision_proj|text_proj)\.", name)
    }
    state |= {name: torch.zeros(32, 8) for name in ("image_queue", "text_queue")}
    state |= {"queue_ptr": torch.zeros(1), "ptr_queue": torch.zeros(1), "temp": torch.tensor(0.02)}
    for half in ("text_encoder", "text_decoder.bert"):
        state[f"{half}.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def test_original_captioner_converts_to_what_transformers_loads(
    pretraining: Path,
    captioner_folder: Path,
    hf_captioner: BlipForConditionalGeneration,
    tmp_path: Path,
) -> None:
    folder = convert(
        pretraining,
        tmp_path / "converted",
        "captioner",
        vocabulary=captioner_folder,
        config=hf_captioner.config,
    )
    images = make_images(5)
    keys = [str(i) for i in range(5)]
    ours, original = (
        load_captioner(str(f), CaptionConfig(), seed=0, device="cpu").caption(list(images), keys)
        for f in (folder, captioner_folder)
    )
    assert ours == original
    assert modes(folder) == {stat.S_IMODE((folder / "config.json").stat().st_mode)}
    theirs, loading = BlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name, tensor in hf_captioner.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    processor = BlipProcessor.from_pretrained(folder)
    pixels = processor(images=list(images), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, normalised(images), atol=1e-5, rtol=0)
    assert processor.tokenizer.bos_token_id == hf_captioner.config.text_config.bos_token_id


def test_original_filter_converts_to_what_transformers_loads(
    pretraining: Path, filter_folder: Path, hf_filter: BlipForImageTextRetrieval, tmp_path: Path
) -> None:
    # Both halves of the file share the captioner's image tower.
    folder = convert(
        pretraining,
        tmp_path / "converted",
        "filter",
        vocabulary=filter_folder,
        config=hf_filter.config,
    )
    theirs, loading = BlipForImageTextRetrieval.from_pretrained(folder, output_loading_info=True)
    assert theirs.config.logit_scale_init_value == pytest.approx(math.log(1 / 0.02))
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name, tensor in hf_filter.state_dict().items():
        if not name.startswith("vision_model"):
            assert torch.equal(theirs.state_dict()[name], tensor), name
    scores = load_filter(str(folder), ScoringConfig(), device="cpu").score(
        list(make_images(2)), [["a dog"], ["snow"]]
    )
    assert scores[0] != scores[1]


def test_conversion_to_another_resolution_interpolates_positions(
    pretraining: Path, captioner_folder: Path, tmp_path: Path
) -> None:
    config = BlipForConditionalGeneration.from_pretrained(captioner_folder).config
    folder = convert(
        pretraining,
        tmp_path / "converted",
        "captioner",
        vocabulary=captioner_folder,
        image_size=56,
        config=config,
    )
    captioner = load_captioner(str(folder), CaptionConfig(), seed=0, device="cpu")
    assert captioner.pixels.size == 56
    small = BlipForConditionalGeneration.from_pretrained(captioner_folder).eval()
    images = make_images(2, side=56)
    with torch.inference_mode():
        expected = small.vision_model(normalised(images), interpolate_pos_encoding=True)
        states = captioner.model.vit(images)
    torch.testing.assert_close(states, expected.last_hidden_state, atol=1e-4, rtol=0)


def test_pickle_in_transformers_layout_converts(
    captioner_folder: Path, hf_captioner: BlipForConditionalGeneration, tmp_path: Path
) -> None:
    shutil.copytree(captioner_folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(hf_captioner.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    folder = convert(tmp_path / "pickled", tmp_path / "converted", "captioner")
    images, keys = list(make_images(3)), list("012")
    ours, original = (
        load_captioner(str(f), CaptionConfig(), seed=0, device="cpu").caption(images, keys)
        for f in (folder, captioner_folder)
    )
    assert ours == original


class Payload:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


def test_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="is not a file of tensors alone"):
        convert(tmp_path / "model.pth", tmp_path / "out", "captioner", vocabulary=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="not a BLIP file"):
        convert(tmp_path / "model.pth", tmp_path / "out", "captioner", vocabulary=tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        convert(tmp_path / "model.pth", tmp_path / "out", "captioner", vocabulary=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": None}, "comes without a vocabulary"),
        ({"image_size": 33}, "multiple of the patch size"),
        ({"image_size": -32}, "multiple of the patch size"),
        ({"folder": "model.pth"}, "is a file"),
        ({"source": "nothing"}, "no such file"),
    ],
)
def test_conversion_of_what_cannot_be_is_one_line(
    options: dict[str, Any], message: str, pretraining: Path, hf_filter: Any, tmp_path: Path
) -> None:
    words = {"vocabulary": tmp_path, "config": hf_filter.config, **options}
    source, folder = (
        tmp_path / words.pop(n, d) for n, d in (("source", "model.pth"), ("folder", "o"))
    )
    with pytest.raises(ModelError, match=message):
        convert(source, folder, "filter", **words)
