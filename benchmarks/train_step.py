"""How fast one step of `blip_pretrain` is, against the same step written with transformers.

    python benchmarks/train_step.py [--batch 8] [--repeats 3] [--json] [--quick]

A step is forward, backward and AdamW: ITC with momentum encoder and queue, ITM with hard negatives
and LM over ViT-B/16 at 224 pixels, dropout 0.1. Both sides have the same random weights, images and
texts of web lengths, and are measured in turns in one process; medians are printed. The plain side
(`Plain`) is what one writes without touching transformers' models: eager attention, texts padded to
the longest, image states repeated for ITM's negatives.

On a CPU one thread computes in fp32, and its own time counts, which other work on a machine hardly
lengthens. `ratio` is capfilt as its loop runs it (`capfilt.train.precision`) over transformers as
torch comes; `ratio_same_setting` has both at torch's precision "medium", `ratio_highest` neither.
With CUDA both run under bf16 autocast, each at the best of its batch sizes, and `share_of_peak` is
the FLOPs of capfilt's step over its time and over the best rate of a large bf16 product.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rivals import DEC, ENC, FIRST_WORD, SEP, SIZES, TINY, WEB_TOKENS, Size
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from capfilt.data.batch import Batch
from capfilt.models import med_layout
from capfilt.models.vit import PIXEL_MEAN, PIXEL_STD
from capfilt.train.blip import BlipConfig, BlipPretrain
from capfilt.train.itc import ItcConfig
from capfilt.train.precision import fast_products
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, ImageTower, TextTower

CLS = 101
CUDA_BATCHES = (960, 640, 480, 384, 320, 240, 192, 128, 64)  # divisors of the queue
QUEUE = 57600
TOKENS = Tokens(CLS, ENC, DEC, ENC + 1)
Timed = Callable[[], Any]


class Ours:
    """capfilt's step."""

    def __init__(self, size: Size, batch: Batch, *, dropout: float = 0.1) -> None:
        config = BlipConfig(
            image=ImageTower(size.width, size.layers, size.heads, size.image_size),
            text=TextTower(size.text_width, size.text_layers, size.text_width // 64),
            itc=ItcConfig(queue=QUEUE),
            drop=DropConfig(text=dropout),
        )
        self.model = BlipPretrain(config, TOKENS, seed=0).to(batch.images.device).train()
        self.batch = batch
        self._optimiser = adamw(self.model)
        self._step = 0

    def losses(self) -> dict[str, Tensor]:
        self._step += 1
        return self.model(self.batch, self._step)  # type: ignore[no-any-return]

    def step(self) -> None:
        optimise(self.losses, self._optimiser)


class Plain(nn.Module):
    """The same step with transformers' modules, as BLIP's published code orders it."""

    def __init__(self, size: Size, ours: BlipPretrain, batch: Batch, *, dropout: float) -> None:
        super().__init__()
        settings = size.config()
        text = settings.text_config
        text.hidden_dropout_prob = text.attention_probs_dropout_prob = dropout
        text.encoder_hidden_size = size.width
        text.label_smoothing = 0.1
        settings.vision_config.layer_norm_eps = 1e-6
        self.vision = BlipVisionModel(settings.vision_config)
        self.encoder = BlipTextModel(text, add_pooling_layer=False)
        decoder = copy.deepcopy(text)
        decoder.is_decoder = True
        self.decoder = BlipTextLMHeadModel(decoder)
        self.image_projection = nn.Linear(size.width, 256)
        self.text_projection = nn.Linear(size.text_width, 256)
        self.itm_head = nn.Linear(size.text_width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self._take_weights_of(ours)
        self._tie()
        self.teachers = nn.ModuleList(
            copy.deepcopy(module).requires_grad_(False) for module in self._taught()
        )
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(256, QUEUE), dim=0))
        self.pointer = 0
        self.to(batch.images.device).train()
        self._prepare(batch)
        self._optimiser = adamw(self)

    def losses(self) -> dict[str, Tensor]:
        """As BLIP's `blip_pretrain.py`."""
        count, device = len(self.pixels), self.pixels.device
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)
            for ours, theirs in zip(self._taught(), self.teachers, strict=True):
                for new, old in zip(ours.parameters(), theirs.parameters(), strict=True):
                    old.copy_(0.995 * old + 0.005 * new)
        states = self.vision(self.pixels).last_hidden_state
        attended = torch.ones(states.shape[:2], dtype=torch.long, device=device)
        image = F.normalize(self.image_projection(states[:, 0]).float(), dim=-1)
        hidden = self.encoder(self.itc_ids, attention_mask=self.mask).last_hidden_state
        text = F.normalize(self.text_projection(hidden[:, 0]).float(), dim=-1)
        vision, encoder, image_projection, text_projection = self.teachers
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            slow = vision(self.pixels).last_hidden_state[:, 0]
            image_m = F.normalize(image_projection(slow).float(), dim=-1)
            slow = encoder(self.itc_ids, attention_mask=self.mask).last_hidden_state[:, 0]
            text_m = F.normalize(text_projection(slow).float(), dim=-1)
            images = torch.cat([image_m.T, self.get_buffer("image_queue")], dim=1)
            texts = torch.cat([text_m.T, self.get_buffer("text_queue")], dim=1)
            hard = torch.zeros(count, images.shape[1], device=device).fill_diagonal_(1)
            targets = [
                0.4 * F.softmax(mine @ theirs / self.temperature, dim=1) + 0.6 * hard
                for mine, theirs in ((image_m, texts), (text_m, images))
            ]
        sims = [image @ texts / self.temperature, text @ images / self.temperature]
        itc = sum(
            -(F.log_softmax(sim, dim=1) * target).sum(1).mean() / 2
            for sim, target in zip(sims, targets, strict=True)
        )
        self._enqueue(image_m, text_m)
        itm = self._itm(states, attended, [sim[:, :count].detach() for sim in sims])
        lm = self.decoder(
            self.lm_ids,
            attention_mask=self.mask,
            encoder_hidden_states=states,
            encoder_attention_mask=attended,
            labels=self.labels,
        ).loss
        return {"itc": itc, "itm": itm, "lm": lm}

    def step(self) -> None:
        optimise(self.losses, self._optimiser)

    def _itm(self, states: Tensor, attended: Tensor, sims: list[Tensor]) -> Tensor:
        count = len(states)
        weights = [F.softmax(sim, dim=1) + 1e-4 for sim in sims]
        for weight in weights:
            weight.fill_diagonal_(0)
        texts, images = (
            torch.stack([torch.multinomial(row, 1).squeeze() for row in weight])
            for weight in weights
        )
        positive = self._match(self.itm_ids, self.mask, states, attended)
        negative = self._match(
            torch.cat([self.itm_ids, self.itm_ids[texts]]),
            torch.cat([self.mask, self.mask[texts]]),
            torch.cat([states[images], states]),
            torch.cat([attended, attended]),
        )
        labels = torch.zeros(3 * count, dtype=torch.long, device=states.device)
        labels[:count] = 1
        return F.cross_entropy(torch.cat([positive, negative]).float(), labels)

    def _match(self, ids: Tensor, mask: Tensor, states: Tensor, attended: Tensor) -> Tensor:
        hidden = self.encoder(
            ids,
            attention_mask=mask,
            encoder_hidden_states=states,
            encoder_attention_mask=attended,
        ).last_hidden_state
        return self.itm_head(hidden[:, 0])  # type: ignore[no-any-return]

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor) -> None:
        end = self.pointer + len(image)
        self.get_buffer("image_queue")[:, self.pointer : end] = image.T
        self.get_buffer("text_queue")[:, self.pointer : end] = text.T
        self.pointer = end % QUEUE

    def _taught(self) -> list[nn.Module]:
        return [self.vision, self.encoder, self.image_projection, self.text_projection]

    def _tie(self) -> None:
        bert = self.decoder.bert
        bert.embeddings = self.encoder.embeddings
        for mine, theirs in zip(bert.encoder.layer, self.encoder.encoder.layer, strict=True):
            mine.crossattention = theirs.crossattention
            mine.intermediate, mine.output = theirs.intermediate, theirs.output
        scores = self.decoder.cls.predictions
        scores.decoder.weight = self.encoder.embeddings.word_embeddings.weight
        scores.decoder.bias = scores.bias

    def _take_weights_of(self, ours: BlipPretrain) -> None:
        config = ours.captioner.config
        sizes = (config.image.layers, config.text.layers)
        encoder = med_layout.filter_(image_layers=sizes[0], text_layers=sizes[1]).release(
            ours.matcher.model.state_dict()
        )
        decoder = med_layout.captioner(image_layers=sizes[0], text_layers=sizes[1]).release(
            ours.captioner.state_dict()
        )
        for module, tensors, root in (
            (self.vision, encoder, "vision_model."),
            (self.encoder, encoder, "text_encoder."),
            (self.decoder, decoder, "text_decoder."),
            (self.image_projection, encoder, "vision_proj."),
            (self.text_projection, encoder, "text_proj."),
            (self.itm_head, encoder, "itm_head."),
        ):
            taken = {n.removeprefix(root): x for n, x in tensors.items() if n.startswith(root)}
            unknown = module.load_state_dict(taken, strict=False).unexpected_keys
            assert not unknown, unknown

    def _prepare(self, batch: Batch) -> None:
        device = batch.images.device
        mean, std = (
            torch.tensor(of, device=device).view(3, 1, 1) for of in (PIXEL_MEAN, PIXEL_STD)
        )
        self.pixels = (batch.images / 255 - mean) / std
        width = 1 + max(map(len, batch.texts))
        rows = [[CLS, *ids] + [0] * (width - 1 - len(ids)) for ids in batch.texts]
        self.itc_ids = torch.tensor(rows, device=device)
        self.mask = (self.itc_ids != 0).long()
        self.itm_ids, self.lm_ids = self.itc_ids.clone(), self.itc_ids.clone()
        self.itm_ids[:, 0], self.lm_ids[:, 0] = ENC, DEC
        self.labels = self.lm_ids.masked_fill(self.mask == 0, -100)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The same for both sides: fused, over every weight that learns."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.05, fused=True)


def optimise(losses: Callable[[], dict[str, Tensor]], optimiser: torch.optim.AdamW) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        loss = torch.stack(list(losses().values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def random_batch(count: int, size: Size, device: str) -> Batch:
    """Noise, and texts of `WEB_TOKENS` tokens, `[CLS]` not among them."""
    generator = torch.Generator().manual_seed(0)
    side = size.image_size
    lengths = [WEB_TOKENS[i % len(WEB_TOKENS)] - 2 for i in range(count)]
    words = [torch.randint(FIRST_WORD, DEC, (n,), generator=generator).tolist() for n in lengths]
    return Batch(
        images=torch.randint(0, 256, (count, 3, side, side), generator=generator).byte(),
        texts=[[*text, SEP] for text in words],
        keys=[str(i) for i in range(count)],
        image_ids=torch.arange(count),
        text_ids=torch.arange(count),
    ).to(device)


def in_turns(timed: Mapping[str, Timed], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured round after round, the first round left out."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats + 1):
        for name, function in timed.items():
            started = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return {name: statistics.median(of[1:]) for name, of in seconds.items()}


def measure_cpu(size: Size, count: int, repeats: int) -> dict[str, Any]:
    ours, plain = both_sides(size, random_batch(count, size, "cpu"))
    systems: dict[str, Timed] = {
        "capfilt": partial(_fast, ours.step),
        "transformers": plain.step,
        "capfilt highest": ours.step,
        "transformers medium": partial(_fast, plain.step),
    }
    seconds = in_turns(systems, repeats)
    return {
        "batch": count,
        "samples_per_s": count / seconds["capfilt"],
        "transformers_samples_per_s": count / seconds["transformers"],
        "ratio": seconds["transformers"] / seconds["capfilt"],
        "ratio_same_setting": seconds["transformers medium"] / seconds["capfilt"],
        "ratio_highest": seconds["transformers"] / seconds["capfilt highest"],
        "samples_per_s_of": {name: count / s for name, s in seconds.items()},
        "gflop_per_sample": step_flops(ours) / count / 1e9,
    }


def both_sides(size: Size, batch: Batch, *, dropout: float = 0.1) -> tuple[Ours, Plain]:
    """Of the same weights and the same full queue."""
    ours = Ours(size, batch, dropout=dropout)
    plain = Plain(size, ours.model, batch, dropout=dropout)
    queue = ours.model.matcher.itc.queue
    for name in ("image", "text"):
        queue.get_buffer(name).copy_(plain.get_buffer(f"{name}_queue").T)
        queue.get_buffer(f"{name}_ids").copy_(-1 - torch.arange(QUEUE))
    queue.get_buffer("seen").fill_(QUEUE)
    return ours, plain


def loss_difference(size: Size, count: int, device: str) -> float:
    """Greatest difference of ITC and LM, which are no matter of chance without dropout."""
    ours, plain = both_sides(size, random_batch(count, size, device), dropout=0.0)
    with torch.no_grad():
        mine, theirs = ours.losses(), plain.losses()
    return max(abs(mine[name].item() - theirs[name].item()) for name in ("itc", "lm"))


def step_flops(ours: Ours) -> float:
    """Of one step's matrix products, by torch's count."""
    with FlopCounterMode(display=False) as counter:
        ours.step()
    return float(counter.get_total_flops())


def measure_cuda(size: Size, repeats: int, *, quick: bool) -> dict[str, Any]:
    batches = (64,) if quick else CUDA_BATCHES
    rows = {name: best_batch(name, size, batches, repeats) for name in ("capfilt", "transformers")}
    ours, theirs = rows["capfilt"], rows["transformers"]
    peak = matrix_peak(repeats)
    return {
        **ours,
        "transformers_samples_per_s": theirs["samples_per_s"],
        "transformers_batch": theirs["batch"],
        "ratio": ours["samples_per_s"] / theirs["samples_per_s"],
        "peak_tflops": peak / 1e12,
        "share_of_peak": ours["gflop_per_sample"] * 1e9 * ours["samples_per_s"] / peak,
    }


def best_batch(name: str, size: Size, batches: Sequence[int], repeats: int) -> dict[str, float]:
    """The fastest of the largest batch that fits and the next smaller one."""
    found: list[dict[str, float]] = []
    for count in batches:
        torch.cuda.empty_cache()
        try:
            found.append(measure_batch(name, size, count, repeats))
        except torch.OutOfMemoryError:
            continue
        if len(found) == 2:
            break
    return max(found, key=lambda row: row["samples_per_s"])


def measure_batch(name: str, size: Size, count: int, repeats: int) -> dict[str, float]:
    ours, plain = both_sides(size, random_batch(count, size, "cuda"))
    side = ours if name == "capfilt" else plain
    seconds = in_turns({name: side.step}, repeats)[name]
    row = {"batch": float(count), "samples_per_s": count / seconds}
    if name == "capfilt":
        row["gflop_per_sample"] = step_flops(ours) / count / 1e9
    return row


def matrix_peak(repeats: int) -> float:
    """FLOP/s of a large bf16 product here and now."""
    side = 8192
    x, y = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = in_turns({"product": lambda: [x @ y for _ in range(20)]}, repeats)["product"]
    return 20 * 2 * side**3 / seconds


def _fast(function: Timed) -> Any:
    with fast_products(torch.device("cpu")):
        return function()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="images of a step on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny models: does everything work?")
    options = parser.parse_args()
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    size = TINY if options.quick else replace(SIZES["base"], image_size=224)
    if torch.cuda.is_available():
        device = "cuda"
        found = measure_cuda(size, options.repeats, quick=options.quick)
    else:
        device = "cpu"
        torch.set_num_threads(1)
        found = measure_cpu(size, options.batch, options.repeats)
    found["max_loss_difference"] = loss_difference(size, 8, device)
    found["machine"] = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {f'{value:.4g}' if isinstance(value, float) else value}")


if __name__ == "__main__":
    main()
