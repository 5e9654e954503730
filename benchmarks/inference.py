"""How fast captioner and filter are, against a plain loop over transformers and the hardware.

    python benchmarks/inference.py [--pairs B/B L/L] [--repeats 3] [--json] [--quick]

Both sides have the same random weights, images, texts and caption lengths (`benchmarks/rivals.py`)
and are measured in turns in one process; each one's best turn counts. On a CPU one thread computes,
as one does in a run's worker, 8 images at a time, and its own time counts, not that which others'
work on a shared machine takes from it. With CUDA the rows are images/s of capfilt in bf16 at its
best batch size, with how long the device waited for the host.

`ratio` is capfilt at its best precision over transformers' fp32, `ratio_same_precision` fp32 over
fp32, `share_of_peak` the least FLOPs of the work (`benchmarks/flops.py`) over the time and over the
best rate of the same matrix products measured in the same run. Captions are `PAIR`'s first letter,
the filter's its second: B base, L large.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import flops
import torch
import torch.nn.functional as F
import transformers
from rivals import (
    CAPTION_TOKENS,
    DEC,
    ENC,
    FIRST_WORD,
    SIZES,
    TINY,
    WEB_TOKENS,
    Ours,
    Transformers,
    photographs,
    random_captioner,
    random_filter,
    vocabulary,
    web_texts,
)
from torch import Tensor, nn

from capfilt.config import CaptionConfig
from capfilt.models.linear import PackedLinear, can_pack
from capfilt.models.med import PackedTexts
from capfilt.models.session import Session
from capfilt.models.vit import PIXEL_MEAN, PIXEL_STD

CPU_BATCH = 8
CUDA_BATCHES = (64, 128, 256)
GREEDY = CaptionConfig(method="greedy")
NUCLEUS = CaptionConfig()  # the default: p = 0.9, penalty 1.1, at most 20 tokens with the prompt
METHODS: Mapping[str, CaptionConfig] = {
    "greedy": GREEDY,
    "beam 3": CaptionConfig(method="beam", min_length=20),
    "nucleus, 1": NUCLEUS,
    "nucleus, 10": CaptionConfig(per_image=10),
}
MEMORY_OF = ("capfilt fp32", "capfilt bf16", "transformers fp32", "transformers bf16")
LETTERS = {"B": "base", "L": "large"}
Timed = Callable[[], Any]


def in_turns(timed: Mapping[str, Timed], repeats: int) -> dict[str, float]:
    """Least seconds of each over rounds in turn, the first left out: others' load only adds."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(repeats + 1):
        for name, function in timed.items():
            started = clock()
            function()
            _finish()
            seconds[name].append(clock() - started)
    return {name: min(of[1:]) for name, of in seconds.items()}


class Pair:
    """A captioner and a filter, on every side that is compared."""

    def __init__(self, name: str, device: str, *, quick: bool) -> None:
        sizes = [SIZES[LETTERS[letter]] for letter in name.split("/")]
        captioner, filter_ = (TINY if quick else size for size in sizes)
        self.hf = random_captioner(captioner), random_filter(filter_)
        self.device = device
        self.tokenizer = vocabulary()

    def ours(self, precision: str) -> Ours:
        return Ours(*self.hf, self.tokenizer, NUCLEUS, precision=precision, device=self.device)

    def transformers(self, precision: str) -> Transformers:
        models = self.hf if precision == "fp32" else copy.deepcopy(self.hf)
        return Transformers(
            *models, self.tokenizer, NUCLEUS, precision=precision, device=self.device
        )


def measure_cpu(name: str, repeats: int, *, quick: bool) -> dict[str, Any]:
    """Every row of one pair on one thread of this processor."""
    # First of all: here, the weights of both sides in both precisions are not in memory beside it.
    peak_memory_mb = {
        side: in_its_own_process(peak_memory, name, side, quick)
        for side in ("capfilt fp32",) * quick or MEMORY_OF
    }
    pair = Pair(name, "cpu", quick=quick)
    ours = {precision: pair.ours(precision) for precision in ("fp32", "bf16")}
    theirs = {precision: pair.transformers(precision) for precision in ("fp32", "bf16")}
    jpegs, texts = photographs(CPU_BATCH), web_texts(CPU_BATCH, pair.tokenizer)
    systems: dict[str, Timed] = {
        **{f"capfilt {p}": partial(side.annotate, jpegs, texts) for p, side in ours.items()},
        **{f"transformers {p}": partial(side.annotate, jpegs, texts) for p, side in theirs.items()},
    }
    systems["transformers fp32 medium"] = partial(_medium, systems["transformers fp32"])
    products = {
        f"{path} {kind}": of
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for path, of in matrix_products(ours["fp32"].model.vit.config.width, dtype).items()
    }
    seconds = in_turns({**systems, **products}, repeats)
    rates = {system: CPU_BATCH / seconds[system] for system in systems}
    ceilings = {
        kind: max(PRODUCT_FLOPS(ours["fp32"]) / seconds[p] for p in products if p.endswith(kind))
        for kind in ours
    }
    work = least_flops(ours["fp32"])
    best = max(("fp32", "bf16"), key=lambda kind: rates[f"capfilt {kind}"])
    fp32 = rates["transformers fp32"]
    return {
        "images_per_s": rates[f"capfilt {best}"],
        "transformers_images_per_s": fp32,
        "ratio": rates[f"capfilt {best}"] / fp32,
        "ratio_same_precision": rates["capfilt fp32"] / fp32,
        "ratio_bf16": rates["capfilt bf16"] / rates["transformers bf16"],
        "ratio_over_medium": rates["capfilt fp32"] / rates["transformers fp32 medium"],
        "share_of_peak": work * rates["capfilt fp32"] / ceilings["fp32"],
        "share_of_peak_bf16": work * rates["capfilt bf16"] / ceilings["bf16"],
        "peak_gflops": {kind: ceiling / 1e9 for kind, ceiling in ceilings.items()},
        "matrix_product_gflops": {
            path: PRODUCT_FLOPS(ours["fp32"]) / seconds[path] / 1e9 for path in products
        },
        "least_gflop_per_image": work / 1e9,
        "max_logit_difference": logit_difference(ours["fp32"], theirs["fp32"], jpegs, texts),
        "images_per_s_of": rates,
        "parts": {
            kind: measure_parts(ours[kind], theirs[kind], jpegs, texts, repeats)
            for kind in (("fp32",) if quick else ours)
        },
        "tower_passes_per_image": tower_passes(ours["fp32"], theirs["fp32"], jpegs, texts),
        "decode_and_resize_images_per_s": decode_rate(ours["fp32"], jpegs[0], repeats),
        "peak_memory_mb": peak_memory_mb,
    }


def measure_parts(
    ours: Ours, theirs: Transformers, jpegs: list[bytes], texts: list[str], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds per image of each part on both sides, in one precision."""
    mine, other = ours.pixels(jpegs), theirs.pixels(jpegs)
    with torch.inference_mode():
        states = ours.vision(mine)
        pairs = [list(two) for two in zip(texts, texts[::-1], strict=True)]
        timed: dict[str, tuple[Timed, Timed]] = {
            "vision": (partial(ours.vision, mine), partial(theirs.vision, other)),
            "two ITM texts": (
                partial(ours.match, states, pairs),
                partial(theirs.match, states, pairs),
            ),
            **{
                method: (
                    partial(ours.decode, states, config),
                    partial(theirs.decode, states, config),
                )
                for method, config in METHODS.items()
            },
        }
        turns = {
            f"{part}|{i}": side for part, sides in timed.items() for i, side in enumerate(sides)
        }
        seconds = {part: s / len(jpegs) for part, s in in_turns(turns, repeats).items()}
    return {
        part: {
            "s_per_image": seconds[f"{part}|0"],
            "transformers_s_per_image": seconds[f"{part}|1"],
            "ratio": seconds[f"{part}|1"] / seconds[f"{part}|0"],
        }
        for part in timed
    }


def matrix_products(width: int, dtype: torch.dtype) -> dict[str, Timed]:
    """The linear layers of a block for two images, by every path that torch has."""
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    cases = [
        (torch.randn(2 * 577, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in shapes
    ]
    paths: dict[str, Timed] = {"F.linear": lambda: [F.linear(x, w) for x, w in cases * 4]}
    if dtype == torch.float32:
        paths["F.linear medium"] = partial(_medium, paths["F.linear"])
    if can_pack(cases[0][1]):
        packed = [(x, PackedLinear(w, None)) for x, w in cases * 4]
        paths["packed"] = lambda: [layer(x) for x, layer in packed]
    return paths


def PRODUCT_FLOPS(ours: Ours) -> float:  # noqa: N802
    return 4 * 2 * 2 * 577 * 12 * float(ours.model.vit.config.width) ** 2


def least_flops(ours: Ours) -> float:
    """Of one image, the mean over the batch."""
    prompt, count = len(ours.prompt), CPU_BATCH
    captions = [CAPTION_TOKENS[i % len(CAPTION_TOKENS)] for i in range(count)]
    web = [WEB_TOKENS[i % len(WEB_TOKENS)] for i in range(count)]
    captioner, filter_ = ours.model.config, ours.matcher.config
    work = [
        flops.caption(captioner, [made], prompt)
        # `[ENC]` and `[SEP]` around the caption, whose end is not part of it.
        + flops.match(filter_, [text, made + 1])
        for made, text in zip(captions, web, strict=True)
    ]
    return flops.vision(captioner) + flops.vision(filter_) + statistics.mean(work)


@torch.inference_mode()
def logit_difference(
    ours: Ours, theirs: Transformers, jpegs: list[bytes], texts: list[str]
) -> float:
    """Greatest difference of a token's or an ITM logit: 12 decoder steps, one text per image."""
    mine = ours.pixels(jpegs)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (PIXEL_MEAN, PIXEL_STD))
    normal = (torch.stack(mine) / 255 - mean) / std  # the same pixels; resizing differs by a level
    ids = torch.arange(FIRST_WORD, FIRST_WORD + 12 * len(mine)).view(len(mine), 12)
    ids[:, 0] = DEC
    expected = theirs.captioner(pixel_values=normal, input_ids=ids).logits
    session = Session(ours.model, ours.vision(mine), [DEC], max_length=20)
    worst = 0.0
    for step in range(12):
        worst = max(worst, (session.logits - expected[:, step]).abs().max().item())
        if step < 11:
            session.advance(ids[:, step + 1])
    tokens = theirs._texts(texts)
    itm = theirs.filter(pixel_values=normal, **tokens).itm_score
    states = ours.matcher.vit(torch.stack(mine))
    found = [[[ENC, *text[1:]] for text in of] for of in ours.filter._tokens([[t] for t in texts])]
    packed = PackedTexts.of(found, states.device)
    logits = ours.matcher.match_logits(packed, ours.matcher.text.remember(states))
    return float(max(worst, (logits - itm).abs().max().item()))


def tower_passes(
    ours: Ours, theirs: Transformers, jpegs: list[bytes], texts: list[str]
) -> dict[str, float]:
    """Images through each image tower per image of a batch; three captions each for capfilt."""
    towers: dict[str, nn.Module] = {
        "capfilt captioner": ours.model.vit,
        "capfilt filter": ours.matcher.vit,
        "transformers captioner": theirs.captioner.vision_model.encoder,
        "transformers filter": theirs.filter.vision_model.encoder,
    }
    passed = dict.fromkeys(towers, 0)

    def count(name: str, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        passed[name] += len(args[0] if args else kwargs["inputs_embeds"])

    hooks = [
        tower.register_forward_pre_hook(partial(count, name), with_kwargs=True)
        for name, tower in towers.items()
    ]
    ours.use(replace(NUCLEUS, per_image=3))
    ours.annotate(jpegs[:2], texts[:2])
    ours.use(NUCLEUS)
    theirs.annotate(jpegs[:2], texts[:2])
    for hook in hooks:
        hook.remove()
    return {name: count / 2 for name, count in passed.items()}


def decode_rate(ours: Ours, jpeg: bytes, repeats: int) -> float:
    """JPEGs of 512 x 384 pixels, decoded and resized, per second on this thread."""
    count = 100
    seconds = in_turns({"decode": partial(ours.pixels, [jpeg] * count)}, repeats)
    return count / seconds["decode"]


def peak_memory(name: str, side: str, quick: bool) -> float:
    """Megabytes of a process that annotates one batch, models and libraries included."""
    torch.set_num_threads(1)
    pair = Pair(name, "cpu", quick=quick)
    system, precision = side.split()
    made = pair.ours(precision) if system == "capfilt" else pair.transformers(precision)
    jpegs, texts = photographs(CPU_BATCH), web_texts(CPU_BATCH, pair.tokenizer)
    del pair
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of building
    made.annotate(jpegs, texts)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def in_its_own_process(function: Callable[..., float], *args: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure_cuda(name: str, repeats: int, *, quick: bool) -> dict[str, Any]:
    """Images/s of one pair in bf16, from pixels in host memory to verdicts."""
    pair = Pair(name, "cuda", quick=quick)
    ours = pair.ours("bf16")
    images = ours.pixels(photographs(8))
    rows = {}
    for method, config in METHODS.items():
        ours.use(config)
        rows[method] = _best_batch(ours, images, pair, repeats, config.per_image)
    ours.use(NUCLEUS)
    theirs = pair.transformers("bf16")
    jpegs = photographs(8) * (CUDA_BATCHES[0] // 8)
    texts = web_texts(len(jpegs), pair.tokenizer)
    normal = theirs.pixels(jpegs)
    loop = in_turns({"loop": partial(theirs.judge, normal, texts)}, repeats)["loop"]
    rate = rows["nucleus, 1"]["images_per_s"]
    return {
        "images_per_s": rate,
        "transformers_images_per_s": len(jpegs) / loop,
        "ratio": rate * loop / len(jpegs),
        "methods": rows,
        "decode_and_resize_images_per_s": decode_rate(ours, jpegs[0], repeats),
    }


def _best_batch(
    ours: Ours, images: list[Tensor], pair: Pair, repeats: int, captions: int
) -> dict[str, float]:
    rows = []
    for batch in CUDA_BATCHES:
        pixels = images * (batch // len(images))
        texts = web_texts(batch, pair.tokenizer)
        judge = partial(ours.judge, pixels, texts)
        torch.cuda.reset_peak_memory_stats()
        seconds = in_turns({"judge": judge}, repeats)["judge"]
        rows.append(
            {
                "images_per_s": batch / seconds,
                "batch": float(batch),
                "captions": float(captions),
                "share_waiting_for_host": 1 - min(1.0, device_seconds(judge) / seconds),
                "peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20,
            }
        )
    return max(rows, key=lambda row: row["images_per_s"])


def device_seconds(function: Timed) -> float:
    """How long the device computes during a call; there is one stream."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        _finish()
    return float(sum(event.self_device_time_total for event in profile.key_averages())) / 1e6


def machine(device: str) -> dict[str, Any]:
    """What was measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, one thread",
        "processor": models[0] if models else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _medium(function: Timed) -> Any:
    """As with torch's public switch, which lets oneDNN multiply; it holds for the whole process."""
    torch.set_float32_matmul_precision("medium")
    try:
        return function()
    finally:
        torch.set_float32_matmul_precision("highest")


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_rows(found: Mapping[str, Any], indent: str = "") -> None:
    """Nested names and numbers, one a line."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}")
            print_rows(value, indent + "  ")
        elif isinstance(value, float):
            print(f"{indent}{name:{36 - len(indent)}} {value:,.4g}")
        else:
            print(f"{indent}{name:{36 - len(indent)}} {value}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", nargs="+", choices=["B/B", "L/B", "L/L"], default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny models: a smoke run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure = measure_cuda if device == "cuda" else measure_cpu
    pairs = options.pairs or (["B/B", "L/B", "L/L"] if device == "cuda" else ["B/B"])
    found: dict[str, Any] = {"machine": machine(device), "quick": options.quick}
    for i, pair in enumerate(pairs):
        rows = measure(pair, options.repeats, quick=options.quick)
        found |= {"pair": pair, **rows} if i == 0 else {pair: rows}
    if options.json:
        print(json.dumps(found))
    else:
        print_rows(found)


if __name__ == "__main__":
    main()
