"""Coverage-guided fuzzing of the readers: `make fuzz`, or `python -m tests.fuzz.guided tar 300`.

libFuzzer, by atheris, changes shards and keeps what reaches new lines of our readers and of
`tarfile`; Arrow's own code is not instrumented. A shard that breaks something is left in
`tests/fuzz/found/<form>`, where `test_found.py` reads it for ever after; shards that only reached
new lines stay in `.fuzz/<form>`, from where the next call goes on.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

sys.modules.pop("tarfile", None)  # what was imported before is not seen
with atheris.instrument_imports(include=["capfilt", "tarfile"]):
    from capfilt.shard import Form
    from tests.fuzz.readers import SEEDS, check_read

FOUND = Path(__file__).parent / "found"
KEPT = Path(__file__).parents[2] / ".fuzz"
_BLOCK = 512
_CHECKSUM = slice(148, 156)  # of a tar's header


def mutate(form: Form, data: bytes, size: int, seed: int) -> bytes:
    """A changed shard; mostly one whose checksums and lengths are right, to get past them."""
    rng = random.Random(seed)
    changed = bytearray(atheris.Mutate(data, size))
    if rng.random() < 0.1:
        return bytes(changed)
    if form is Form.TAR:
        for start in range(0, len(changed) - _BLOCK + 1, _BLOCK):
            header = changed[start : start + _BLOCK]
            if header[257:262] == b"ustar":
                header[_CHECKSUM] = b" " * 8
                header[_CHECKSUM] = b"%06o\0 " % sum(header)
                changed[start : start + _BLOCK] = header
    elif len(changed) > 12:
        changed[:4] = changed[-4:] = b"PAR1"
        if rng.random() < 0.5:  # as long a footer as before
            changed[-8:-4] = data[-8:-4].ljust(4, b"\0")
    return bytes(changed)


def main(name: str, seconds: int) -> None:
    """Fuzz one reader; ends the process."""
    form = Form(name)
    folder = KEPT / name
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(SEEDS[form]):
        (folder / f"seed-{number}").write_bytes(data)
    file = folder.parent / f"{name}.shard"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        check_read(file, form)

    options = {
        "max_total_time": seconds,
        "max_len": 16384,
        "timeout": 30,  # seconds for one shard
        "rss_limit_mb": 4000,
        "artifact_prefix": f"{FOUND / name}/",
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(folder)]
    atheris.Setup(
        arguments, read, custom_mutator=lambda data, size, seed: mutate(form, data, size, seed)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
