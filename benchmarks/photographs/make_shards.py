"""Writes the noisy web of `make_web.py` as shards, as img2dataset leaves them: one text per image.

    python benchmarks/photographs/make_shards.py FOLDER

FOLDER/web.json has five texts of each photograph; its first one becomes the web text.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

PER_SHARD = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Write FOLDER/web."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    texts: dict[str, str] = {}
    for pair in json.loads((folder / "web.json").read_text(encoding="utf-8")):
        texts.setdefault(pair["image"], pair["caption"])
    (folder / "web").mkdir(exist_ok=True)
    images = list(texts)
    for number, start in enumerate(range(0, len(images), PER_SHARD)):
        part = images[start : start + PER_SHARD]
        with tarfile.open(folder / "web" / f"{number:05d}.tar", "w") as tar:
            for key, image in enumerate(part, start=start):
                add(tar, f"{key:09d}.jpg", (folder / image).read_bytes())
                add(tar, f"{key:09d}.txt", texts[image].encode())
        stats = {"count": len(part), "successes": len(part)}
        (folder / "web" / f"{number:05d}_stats.json").write_text(json.dumps(stats))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
