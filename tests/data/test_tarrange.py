from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from capfilt.config import ImageConfig
from capfilt.data import tarrange
from capfilt.data.tarrange import TarRange
from capfilt.errors import InputError
from capfilt.io.reader import read_samples
from capfilt.shard import Form, InputShard

LONG = "a-folder-with-a-name/" * 6 + "x" * 120


def write(path: Path, names: list[str], kind: int = tarfile.PAX_FORMAT) -> InputShard:
    """A tar with members of these names; their content is the name, repeated."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name in names:
            content = b"{}" if name.endswith("json") else name.encode() * 7
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return InputShard("0", Form.TAR, str(path), path.stat().st_size, "")


def open_range(shard: InputShard, *, metadata: bool = True) -> TarRange:
    return TarRange(shard, ImageConfig(), metadata)


@pytest.fixture
def shard(tmp_path: Path) -> InputShard:
    names = [f"{n:03d}.{ext}" for n in range(40) for ext in ("jpg", "json", "txt")]
    return write(tmp_path / "0.tar", names)


@pytest.mark.parametrize("least", [600, 2**16])
@pytest.mark.parametrize(
    "parts", [[range(40)], [range(30, 40), range(10)], [[5, 9, 10, 39], [0], range(7, 9)]]
)
def test_read_gives_what_a_stream_gives(
    shard: InputShard, parts: list[range], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarrange, "_READ_BYTES", least)
    whole = list(read_samples(shard, ImageConfig()))
    reader = open_range(shard)
    for _ in range(2):
        for part in parts:
            assert reader.read(part) == [whole[number] for number in part]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_read_knows_long_names_of_every_format(kind: int, tmp_path: Path) -> None:
    long = LONG if kind != tarfile.USTAR_FORMAT else "folder/" * 15 + "y" * 60
    shard = write(
        tmp_path / "0.tar", ["a.jpg", "a.txt", f"{long}.jpg", f"{long}.txt", "b.jpg"], kind
    )
    reader = open_range(shard)
    assert reader.count() == 3
    assert [sample.key for sample in reader.read(range(3))] == ["a", long, "b"]
    assert reader.read([1])[0].texts[0].content == f"{long}.txt" * 7


def test_samples_without_an_image_are_not_counted(tmp_path: Path) -> None:
    names = ["0.txt", "1.jpg", "2.json", "2.txt", "3.PNG", "3.txt", ".hidden", "folder", "4.txt"]
    reader = open_range(write(tmp_path / "0.tar", names))
    assert reader.count() == 2
    assert [sample.key for sample in reader.read(range(2))] == ["1", "3"]


def test_json_is_read_only_where_it_is_wanted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in [
            ("0.jpg", b"x"),
            ("0.json", b'{"caption": "in json"}'),
            ("0.txt", b"in text"),
            ("1.jpg", b"x"),
            ("1.json", b'{"caption": "in json"}'),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    shard = InputShard("0", Form.TAR, str(tmp_path / "0.tar"), 0, "")
    without, with_ = (open_range(shard, metadata=m).read(range(2)) for m in (False, True))
    assert [s.texts[0].content for s in without] == ["in text", "in json"]
    assert without[0].metadata == {}
    assert with_[0].metadata == {"caption": "in json"}


def test_a_tar_with_fewer_samples_than_asked_for_is_an_error(shard: InputShard) -> None:
    with pytest.raises(InputError, match=r"0\.tar: has 40 images, fewer than were counted"):
        open_range(shard).read(range(38, 41))
    with pytest.raises(InputError, match="has 40 images"):
        open_range(shard).read(range(50, 51))


@pytest.mark.parametrize("cut", [512 * 9, 512 * 9 + 100, 20_000])
def test_a_truncated_tar_is_an_error(shard: InputShard, cut: int) -> None:
    Path(shard.url).write_bytes(Path(shard.url).read_bytes()[:cut])
    with pytest.raises(InputError, match="truncated"):
        open_range(shard).count()
    with pytest.raises(InputError, match="truncated"):
        open_range(shard).read(range(40))


def test_a_damaged_header_is_an_error(shard: InputShard) -> None:
    data = bytearray(Path(shard.url).read_bytes())
    data[512 * 6 + 3] ^= 1
    Path(shard.url).write_bytes(data)
    with pytest.raises(InputError, match="a damaged tar: no valid header at byte 3072"):
        open_range(shard).count()
