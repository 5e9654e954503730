"""The emoji world as files: a web site and its URL list, shards, captions files, and the truth.

    make_world:  <folder>/web/00000.tar, 00000_stats.json, ...    as img2dataset leaves them
                 <folder>/web-truth.jsonl                         what `read_truth` reads
                 <folder>/human/      images/, captions.json      BLIP's list
                 <folder>/evaluation/ images/, captions.json, pairs.json, truth.jsonl

Same arguments, same bytes (with the same Pillow).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.demo.nouns import NOUNS, choose_nouns
from capfilt.demo.render import render_jpeg
from capfilt.demo.web import WebMix
from capfilt.demo.world import (
    EVALUATION,
    HUMAN,
    SIDE,
    WEB,
    Picture,
    draw_pairs,
    draw_pictures,
)

PER_SHARD = 1000


def make_world(
    folder: Path,
    *,
    web: int,
    human: int,
    evaluation: int,
    seed: int = 0,
    side: int = SIDE,
    mix: WebMix | None = None,
    nouns: int = len(NOUNS),
) -> None:
    """Write all three splits below a folder.

    Args:
        folder: Made if absent.
        web: Pictures with web texts, as shards.
        human: Pictures with human captions for training.
        evaluation: Pictures with human captions and labelled pairs, of scenes unlike all others.
        seed: Another world for each.
        side: Of an image, in pixels.
        mix: How often a web text is of which kind; None for the defaults.
        nouns: How many kinds of things there are.
    """
    names = choose_nouns(nouns)
    drawn = list(draw_pictures(web, WEB, seed=seed, mix=mix or WebMix(), nouns=names))
    write_shards(folder / "web", drawn, side)
    write_truth(folder / "web-truth.jsonl", drawn)
    people = list(draw_pictures(human, HUMAN, seed=seed, nouns=names))
    write_human(folder / "human", people, side)
    unseen = list(draw_pictures(evaluation, EVALUATION, seed=seed, nouns=names))
    write_human(folder / "evaluation", unseen, side)
    write_pairs(folder / "evaluation" / "pairs.json", unseen, EVALUATION, seed, names)
    write_truth(folder / "evaluation" / "truth.jsonl", unseen)


def write_images(folder: Path, pictures: Sequence[Picture], side: int = SIDE) -> None:
    """Write the pictures' images into a folder, made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / picture.file).write_bytes(render_jpeg(picture.scene, side))


def write_list(
    path: Path, pictures: Sequence[Picture], base_url: str, faults: Mapping[str, str] | None = None
) -> None:
    """Write the Parquet list of a download: url, caption and web_kind, which is the truth.

    Args:
        path: The list.
        pictures: Those that are served.
        base_url: Where `write_images`'s folder is served, without a slash at the end.
        faults: File names that are no pictures, each with its caption.
    """
    rows = [(p.file, p.web.content, p.web.kind) for p in pictures]
    rows += [(name, caption, "junk") for name, caption in (faults or {}).items()]
    columns = {
        "url": [f"{base_url}/{name}" for name, _, _ in rows],
        "caption": [caption for _, caption, _ in rows],
        "web_kind": [kind for _, _, kind in rows],
    }
    pq.write_table(pa.table({name: pa.array(v, pa.string()) for name, v in columns.items()}), path)


def write_shards(
    folder: Path, pictures: Sequence[Picture], side: int = SIDE, *, per_shard: int = PER_SHARD
) -> None:
    """Write pictures with their web texts as img2dataset leaves them; the truth is not in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(pictures), per_shard)):
        shard = pictures[start : start + per_shard]
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for picture in shard:
                _add_sample(tar, picture, side)
        stats = {"count": len(shard), "successes": len(shard), "failed_to_download": 0}
        text = json.dumps({**stats, "status_dict": {"success": len(shard)}})
        (folder / f"{number:05d}_stats.json").write_text(text)


def write_human(folder: Path, pictures: Sequence[Picture], side: int = SIDE) -> None:
    """Write pictures with their human captions: `images/` and `captions.json`, BLIP's list."""
    write_images(folder / "images", pictures, side)
    rows = [{"image": p.file, "caption": list(p.captions)} for p in pictures]
    (folder / "captions.json").write_text(json.dumps(rows, indent=0))


def write_pairs(
    path: Path,
    pictures: Sequence[Picture],
    split: str,
    seed: int = 0,
    nouns: Sequence[str] = tuple(NOUNS),
) -> None:
    """Write labelled pairs for `capfilt evaluate filter`, four of each picture: see `draw_pairs`.

    Beside image, caption and label (1: true) each has its kind, and what is wrong in a lie.
    """
    rows = [
        {"image": picture.file, "caption": web.content, "label": int(web.kind == "true"),
         "kind": web.kind, "wrong": web.wrong}
        for picture in pictures
        for web in draw_pairs(picture, split, seed, nouns)
    ]  # fmt: skip
    path.write_text(json.dumps(rows, indent=0))


def write_truth(path: Path, pictures: Sequence[Picture]) -> None:
    """Write everything that is known of the pictures as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(picture), ensure_ascii=False) + "\n" for picture in pictures]
    path.write_text("".join(lines), encoding="utf-8")


def read_truth(path: Path) -> list[Picture]:
    """Read what `write_truth` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Picture.from_dict(json.loads(line)) for line in lines]


def _add_sample(tar: tarfile.TarFile, picture: Picture, side: int) -> None:
    fields: dict[str, Any] = {
        "caption": picture.web.content, "url": f"http://emoji.example/{picture.file}",
        "key": picture.key, "status": "success", "error_message": None,
        "width": side, "height": side, "original_width": side, "original_height": side,
    }  # fmt: skip
    members = {
        "jpg": render_jpeg(picture.scene, side),
        "json": json.dumps(fields, ensure_ascii=False).encode(),
        "txt": picture.web.content.encode(),
    }
    for ending, content in members.items():
        member = tarfile.TarInfo(f"{picture.key}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
