"""Writes the noisy web of `make_web.py` as shards, as img2dataset leaves them: one text per image.

    python benchmarks/photographs/make_shards.py FOLDER

FOLDER/web.json has five texts of each photograph, so each is five times in FOLDER/web, as popular
ones are in a real web; 128 pixels at its shorter side.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

PER_SHARD = 2000
SIDE = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Write FOLDER/web."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    rows = json.loads((folder / "web.json").read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    (folder / "web").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(rows), PER_SHARD)):
        part = rows[start : start + PER_SHARD]
        with tarfile.open(folder / "web" / f"{number:05d}.tar", "w") as tar:
            for key, row in enumerate(part, start=start):
                add(tar, f"{key:09d}.jpg", resized(folder / row["image"]))
                add(tar, f"{key:09d}.txt", row["caption"].encode())
        stats = {"count": len(part), "successes": len(part)}
        (folder / "web" / f"{number:05d}_stats.json").write_text(json.dumps(stats))


@cache
def resized(file: Path) -> bytes:
    """A photograph as JPEG, `SIDE` pixels at its shorter side."""
    with Image.open(file) as image:
        scale = SIDE / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        small = image.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=95)
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
