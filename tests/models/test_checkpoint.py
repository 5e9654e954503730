from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.errors import ModelError
from capfilt.models import checkpoint
from capfilt.models.captioner import Captioner
from capfilt.models.load import load_captioner, load_filter
from tests import checkpoints
from tests.models.conftest import make_images

Tensors = dict[str, Tensor]


@pytest.fixture
def folder(captioner_folder: Path, tmp_path: Path) -> Path:
    """A captioner folder to be damaged."""
    return Path(shutil.copytree(captioner_folder, tmp_path / "captioner"))


def load(folder: Path) -> Captioner:
    return load_captioner(str(folder), CaptionConfig(), seed=0, device="cpu")


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_identity_is_the_same_wherever_the_folder_lies(
    folder: Path, captioner_folder: Path
) -> None:
    there = checkpoint.inspect(str(captioner_folder), "captioner")
    here = checkpoint.inspect(str(folder), "captioner")
    assert here.sha256 == there.sha256
    assert len(here.sha256) == 64
    assert here.architecture == "BlipForConditionalGeneration"
    assert here.source == str(folder)
    (folder / "README.md").write_text("A captioner.")
    assert checkpoint.inspect(str(folder), "captioner") == here


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"]
)
def test_identity_changes_with_each_file_that_decides_a_result(name: str, folder: Path) -> None:
    before = checkpoint.inspect(str(folder), "captioner").sha256
    content = bytearray((folder / name).read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b"\n"
    (folder / name).write_bytes(content)
    assert checkpoint.inspect(str(folder), "captioner").sha256 != before


def test_captioner_given_as_filter_is_named_as_such(captioner_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"BlipForConditionalGeneration, a captioner; a filter is"):
        checkpoint.inspect(str(captioner_folder), "filter")


def test_filter_given_as_captioner_is_named_as_such(filter_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"BlipForImageTextRetrieval, a filter; a captioner is"):
        checkpoint.inspect(str(filter_folder), "captioner")


def test_folder_of_another_class_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError, match="is a LlamaForCausalLM; a captioner is a BlipForCond"):
        checkpoint.inspect(str(folder), "captioner")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_base_caption.pth"])
def test_folder_with_only_a_pickle_is_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"no model.safetensors, only {name}, a pickle.*convert"):
        checkpoint.inspect(str(folder), "captioner")


def test_pickle_beside_safetensors_is_never_opened(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert len(load(folder).caption(list(make_images(1)), ["0"])) == 1


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        checkpoint.inspect(str(tmp_path / "absent"), "captioner")


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json: not a checkpoint folder"):
        checkpoint.inspect(str(tmp_path), "captioner")


def test_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: cannot be read as JSON"):
        checkpoint.inspect(str(folder), "captioner")


def test_sharded_weights_load_and_an_absent_part_is_named(folder: Path) -> None:
    whole = load(folder).caption(list(make_images(3)), ["0", "1", "2"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for part, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / part)
    index = {name: part for part, inside in parts.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load(folder).caption(list(make_images(3)), ["0", "1", "2"]) == whole
    (folder / "part-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no part-2.safetensors"):
        load(folder)


def test_index_that_leaves_the_folder_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / weights.name)
    index = {"weight_map": {"x": f"../{weights.name}"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"has no \.\./model.safetensors"):
        load(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"model.safetensors: cannot be read"):
        load(folder)


def test_missing_tensor_is_named(folder: Path) -> None:
    name = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"
    edit_tensors(folder, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ModelError, match=f"tensor {name} is missing"):
        load(folder)


def test_surplus_tensor_is_named(folder: Path) -> None:
    name = "vision_model.encoder.layers.2.mlp.fc1.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match=f"tensor {name} is not of this model"):
        load(folder)


def test_misshapen_tensor_is_named(folder: Path) -> None:
    name = "vision_model.embeddings.position_embedding"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(1, 26, 80)}))
    with pytest.raises(ModelError, match=r"vit.positions has shape \[1, 26, 80\].*\[1, 17, 80\]"):
        load(folder)


def test_head_that_is_saved_twice_loads_but_an_untied_one_is_refused(folder: Path) -> None:
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    head = "text_decoder.cls.predictions.decoder.weight"
    whole = load(folder).caption(list(make_images(2)), ["0", "1"])
    edit_tensors(folder, lambda tensors: tensors.update({head: tensors[words].clone()}))
    assert load(folder).caption(list(make_images(2)), ["0", "1"]) == whole
    edit_tensors(folder, lambda tensors: tensors.update({head: tensors[words] + 1}))
    with pytest.raises(ModelError, match=f"{head} differs from {words}"):
        load(folder)


def test_folder_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"neither tokenizer.json nor vocab.txt"):
        load(folder)


def test_vocab_without_added_tokens_gives_the_same_results(
    folder: Path, filter_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(filter_folder, tmp_path / "filter"))
    images, texts = list(make_images(4)), [["a dog", "snow"]] * 4
    captions = load(folder).caption(images, list("0123"))
    scores = load_filter(str(other), ScoringConfig(), device="cpu").score(images, texts)
    known = checkpoints.tokenizer().get_vocab()
    pieces = sorted(known.keys() - {"[DEC]", "[ENC]"}, key=known.__getitem__)
    for where in (folder, other):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (where / name).unlink()
        (where / "vocab.txt").write_text("\n".join(pieces) + "\n")
    assert load(folder).caption(images, list("0123")) == captions
    assert load_filter(str(other), ScoringConfig(), device="cpu").score(images, texts) == scores


def test_tokenizer_of_another_checkpoint_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config=config["text_config"] | {"sep_token_id": 9})
    with pytest.raises(ModelError, match=r"\[SEP\] is 3 in the tokenizer but .* is 9"):
        load(folder)


def test_pixel_statistics_of_the_folder_are_used(folder: Path) -> None:
    before = load(folder).caption(list(make_images(8)), list("01234567"))
    (folder / "processor_config.json").unlink()
    assert load(folder).caption(list(make_images(8)), list("01234567")) == before  # BLIP's own
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    assert load(folder).caption(list(make_images(8)), list("01234567")) != before
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": [1.0, 0.0]}))
    with pytest.raises(ModelError, match="image_mean and image_std must be three numbers"):
        load(folder)


def test_other_activation_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config=config["text_config"] | {"hidden_act": "relu"})
    with pytest.raises(ModelError, match=r"text_config.hidden_act is 'relu'"):
        load(folder)
