"""A run's texts and probabilities against a plain loop over transformers, one image at a time."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from capfilt.config import resolve
from capfilt.io.inputs import find_shards
from capfilt.io.reader import read_samples
from capfilt.run.job import run
from capfilt.run.where import Where
from capfilt.text import normalise
from tests import checkpoints
from tests.run.conftest import ledger_rows, write_shard

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def uniform(seed: int, key: str, caption: int, step: int) -> float:
    """The documented random number, in Python's own integers."""
    name = f"{seed}/{caption}/{key}".encode()
    stream = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    z = (stream + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return (z >> 11) / 2**53


class Reference:
    """CapFilt as one would write it with transformers and no thought of speed."""

    def __init__(self, captioner: Path, filter_: Path, method: str) -> None:
        self.method = method
        self.captioner = BlipForConditionalGeneration.from_pretrained(captioner).eval()
        self.filter = BlipForImageTextRetrieval.from_pretrained(filter_).eval()
        self.processor = BlipProcessor.from_pretrained(captioner)
        self.tokenizer: Any = self.processor.tokenizer  # type: ignore[attr-defined]
        self.enc = self.tokenizer.convert_tokens_to_ids("[ENC]")

    def pixels(self, image: bytes) -> torch.Tensor:
        rgb = Image.open(io.BytesIO(image)).convert("RGB")
        return self.processor.image_processor(rgb, return_tensors="pt")["pixel_values"]  # type: ignore[attr-defined,no-any-return]

    @torch.inference_mode()
    def caption(self, pixels: torch.Tensor, seed: int, key: str) -> str:
        states = self.captioner.vision_model(pixels).last_hidden_state
        prompt = self.tokenizer("a picture of ").input_ids[:-1]
        prompt[0] = self.captioner.config.text_config.bos_token_id
        end = self.captioner.config.text_config.sep_token_id
        rules = LogitsProcessorList(
            [
                RepetitionPenaltyLogitsProcessor(1.1 if self.method == "nucleus" else 1.0),
                MinLengthLogitsProcessor(5, end),
                TopPLogitsWarper(0.9),
            ]
        )
        ids = list(prompt)
        for step in itertools.count():
            seen = torch.tensor([ids])
            logits = self.captioner.text_decoder(
                input_ids=seen, encoder_hidden_states=states, use_cache=False
            ).logits[:, -1]
            probabilities = rules(seen, logits)[0].double().softmax(-1)
            order = sorted(range(len(probabilities)), key=lambda i: (-float(probabilities[i]), i))
            u, mass = uniform(seed, key, 0, step), 0.0
            for token in order:
                mass += float(probabilities[token])
                if mass > u or self.method == "greedy":
                    break
            if token == end:
                break
            ids.append(token)
            if len(ids) == 20:
                break
        whole = self.tokenizer.decode(ids, skip_special_tokens=True)
        return str(whole).removeprefix("a picture of").strip()

    @torch.inference_mode()
    def match_prob(self, pixels: torch.Tensor, text: str) -> float:
        ids = self.tokenizer(
            normalise(text, max_words=30), truncation=True, max_length=35, return_tensors="pt"
        ).input_ids
        ids[:, 0] = self.enc
        logits = self.filter(input_ids=ids, pixel_values=pixels, use_itm_head=True).itm_score
        return float(logits.softmax(-1)[0, 1])


def compare(captioner: Path, filter_: Path, web: Path, out: Path, method: str = "nucleus") -> int:
    """Hold every row of a run against the reference; gives how many rows it compared."""
    config = resolve(
        options={"captioner": str(captioner), "filter": str(filter_), "seed": 3},
        overrides=["compute.batch_size=7", f"captions.method={method}"],
    )
    run(config, Where(str(web), str(out), local=True))
    rows = {(row["key"], row["source"]): row for row in ledger_rows(out)}
    reference = Reference(captioner, filter_, method)
    compared = 0
    for shard in find_shards(str(web)).shards:
        for sample in read_samples(shard, config.images):
            assert sample.image is not None
            pixels = reference.pixels(sample.image)
            caption = rows[sample.key, "synthetic"]
            assert caption["text"] == reference.caption(pixels, 3, sample.key)
            for row in (rows[sample.key, "web"], caption):
                if row["match_prob"] is not None:
                    expected = reference.match_prob(pixels, row["text"])
                    assert row["match_prob"] == pytest.approx(expected, abs=1e-4)
                    assert row["verdict"] == ("kept" if expected >= 0.5 else "dropped")
                    compared += 1
    return compared


def write_square_shard(folder: Path, index: int, count: int, side: int) -> None:
    """Pictures of the models' own size: resizing has tests of its own (tests/models)."""
    import tarfile

    write_shard(folder, index, count)
    source = folder / f"{index:05d}.tar"
    with tarfile.open(source) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(source, "w") as tar:
        for member, content in members:
            data = content
            if member.name.endswith(".jpg"):
                encoded = io.BytesIO()
                Image.open(io.BytesIO(content)).resize((side, side)).save(encoded, "JPEG")
                data = encoded.getvalue()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_run_equals_a_plain_loop_over_transformers(
    captioner: str, filter_: str, tmp_path: Path
) -> None:
    write_square_shard(tmp_path / "web", 0, 60, 32)
    compared = compare(Path(captioner), Path(filter_), tmp_path / "web", tmp_path / "out")
    assert compared >= 100
    texts = {row["text"] for row in ledger_rows(tmp_path / "out") if row["source"] == "synthetic"}
    assert len(texts) > 40, "captions that are all alike prove little"


@pytest.mark.slow
def test_run_equals_a_plain_loop_over_transformers_at_the_published_size(tmp_path: Path) -> None:
    vocabulary = SHARED / "data/vocab/bert-base-uncased"
    if not vocabulary.is_dir():
        pytest.skip("needs the bert-base-uncased vocabulary, which is not part of the repository")
    captioner = checkpoints.make_captioner(tmp_path / "captioner", vocabulary=vocabulary, **BASE)
    filter_ = checkpoints.make_filter(tmp_path / "filter", vocabulary=vocabulary, **BASE)
    write_square_shard(tmp_path / "web", 0, 6, 384)
    # Greedy: over 30,524 nearly equal tokens, rounding would decide what a uniform number means.
    compared = compare(captioner, filter_, tmp_path / "web", tmp_path / "out", "greedy")
    assert compared >= 10


BASE: dict[str, Any] = {
    "image_size": 384,
    "patch_size": 16,
    "hidden": 768,
    "image_hidden": 768,
    "ffn": 3072,
    "layers": 12,
    "heads": 12,
}
