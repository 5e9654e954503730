from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files, publish
from capfilt.io.inputs import find_shards, human_shards, is_unchanged, read_samples
from capfilt.record import Reason, Source
from capfilt.shard import Form
from tests.io.conftest import write_tar


def put(root: str | Path, *names: str) -> None:
    """Write files by their names; a _stats.json says one success."""
    for name in names:
        content = b'{"count": 2, "successes": 1}' if name.endswith("_stats.json") else b"x"
        publish.write_bytes(files.join(str(root), name), content)


def ids(url: str | Path, **options: bool) -> list[str]:
    return [shard.id for shard in find_shards(str(url), **options).shards]


def img2dataset_webdataset(root: str | Path) -> None:
    """Two finished shards and one that was killed."""
    for number in ("00000", "00001"):
        put(root, f"{number}.tar", f"{number}.parquet", f"{number}_stats.json")
    put(root, "00002.tar", "00002.parquet", "_tmp/3.feather")


def test_find_shards_webdataset_takes_tars_and_leaves_sidecars(place: str) -> None:
    img2dataset_webdataset(place)
    found = find_shards(place)
    assert [(s.id, s.form, s.size_bytes, s.expected) for s in found.shards] == [
        ("00000", Form.TAR, 1, 1),
        ("00001", Form.TAR, 1, 1),
    ]
    assert found.unfinished == ("00002",)
    assert found.shards[0].url == files.join(place, "00000.tar")
    assert all(shard.version for shard in found.shards)


def test_find_shards_allow_unfinished_takes_all(tmp_path: Path) -> None:
    img2dataset_webdataset(tmp_path)
    found = find_shards(str(tmp_path), allow_unfinished=True)
    assert [shard.id for shard in found.shards] == ["00000", "00001", "00002"]
    assert found.shards[2].expected is None
    assert found.unfinished == ()


@pytest.mark.parametrize(
    "stats",
    [
        pytest.param(b"[" * 200_000, id="nested brackets"),
        pytest.param(b'{"successes": 1e999}', id="infinity"),
        pytest.param(b'{"successes": NaN}', id="no number"),
        pytest.param(b'{"successes": -5}', id="negative"),
        pytest.param(b'{"successes": ' + b"9" * 30 + b"}", id="more than there can be"),
        pytest.param(b'{"successes": ' + b"9" * 5000 + b"}", id="too many digits"),
        pytest.param(b'{"successes": "7"}', id="a word"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff", id="no text"),
    ],
)
def test_find_shards_stats_of_anything_is_unfinished(stats: bytes, tmp_path: Path) -> None:
    put(tmp_path, "00000.tar", "00000_stats.json", "00001.tar")
    (tmp_path / "00001_stats.json").write_bytes(stats)
    found = find_shards(str(tmp_path))
    assert [(shard.id, shard.expected) for shard in found.shards] == [("00000", 1)]
    assert found.unfinished == ("00001",)


def test_find_shards_stats_larger_than_any_is_not_read(tmp_path: Path) -> None:
    put(tmp_path, "00001.tar")
    with (tmp_path / "00001_stats.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    assert find_shards(str(tmp_path)).unfinished == ("00001",)


def test_find_shards_stats_cut_off_by_a_kill_is_unfinished(tmp_path: Path) -> None:
    img2dataset_webdataset(tmp_path)
    (tmp_path / "00001_stats.json").write_bytes(b'{"count"')
    assert find_shards(str(tmp_path)).unfinished == ("00001", "00002")


def test_find_shards_all_unfinished_names_them(tmp_path: Path) -> None:
    put(tmp_path, "00000.tar", "00009_stats.json")
    found = find_shards(str(tmp_path))
    assert (found.shards, found.unfinished) == ((), ("00000",))


def test_find_shards_parquet_without_tars_are_shards(place: str) -> None:
    put(place, "00000.parquet", "00000_stats.json", "00001.parquet")
    found = find_shards(place)
    assert [(s.id, s.form) for s in found.shards] == [("00000", Form.PARQUET)]
    assert found.unfinished == ("00001",)


def test_find_shards_files_form_is_a_folder_per_shard(place: str) -> None:
    for number in ("00000", "00001"):
        put(place, f"{number}/1.jpg", f"{number}/1.txt", f"{number}/1.json", f"{number}.parquet")
    put(place, "00000_stats.json", "_tmp/x.jpg")
    found = find_shards(place)
    assert [(s.id, s.form, s.size_bytes) for s in found.shards] == [("00000", Form.FILES, 3)]
    assert found.unfinished == ("00001",)


def test_find_shards_files_form_version_follows_any_file(tmp_path: Path) -> None:
    put(tmp_path, "00000/1.jpg", "00000/1.txt")
    [before] = find_shards(str(tmp_path)).shards
    [same] = find_shards(str(tmp_path)).shards
    (tmp_path / "00000" / "1.txt").write_text("another text")
    [after] = find_shards(str(tmp_path)).shards
    assert before == same
    assert before.version != after.version


def test_find_shards_one_folder_of_the_files_form(tmp_path: Path) -> None:
    put(tmp_path, "00000/1.jpg", "00000.parquet", "00000_stats.json", "00001/1.jpg")
    [shard] = find_shards(str(tmp_path / "00000")).shards
    assert (shard.id, shard.form, shard.expected) == ("00000", Form.FILES, 1)
    assert find_shards(str(tmp_path / "00001")).unfinished == ("00001",)


def test_find_shards_folder_names_with_dots_stay_apart(tmp_path: Path) -> None:
    put(tmp_path, "v1.0/1.jpg", "v1.1/1.jpg")
    assert ids(tmp_path) == ["v1.0", "v1.1"]


def test_find_shards_plain_tars_need_no_stats(place: str) -> None:
    put(place, "train-0.tar", "train-1.tar", "README.md", ".hidden.tar")
    assert ids(place) == ["train-0", "train-1"]


def test_find_shards_folder_of_datasets_keeps_their_names(place: str) -> None:
    img2dataset_webdataset(files.join(place, "laion"))
    put(place, "cc3m/0.tar", "files/00000/1.jpg")
    assert ids(place) == ["cc3m/0", "files/00000", "laion/00000", "laion/00001"]


def test_find_shards_glob_follows_the_stats_of_each_folder(place: str) -> None:
    img2dataset_webdataset(files.join(place, "laion"))
    put(place, "cc3m/0.tar")
    found = find_shards(files.join(place, "*", "*.tar"))
    assert [shard.id for shard in found.shards] == ["cc3m/0", "laion/00000", "laion/00001"]
    assert found.unfinished == ("laion/00002",)


def test_find_shards_glob_of_everything_takes_shards_only(tmp_path: Path) -> None:
    img2dataset_webdataset(tmp_path)
    put(tmp_path, "_tmp/x.jpg", "notes.txt")
    assert ids(tmp_path / "*") == ["00000", "00001"]


def test_find_shards_brace_range_takes_its_items(place: str) -> None:
    img2dataset_webdataset(place)
    found = find_shards(files.join(place, "{00000..00002}.tar"))
    assert [shard.id for shard in found.shards] == ["00000", "00001"]
    assert found.unfinished == ("00002",)


def test_find_shards_brace_item_missing_is_named(place: str) -> None:
    img2dataset_webdataset(place)
    with pytest.raises(InputError, match=r"00003\.tar: not found"):
        find_shards(files.join(place, "{00000..00003}.tar"))


def test_find_shards_braces_of_folders(tmp_path: Path) -> None:
    put(tmp_path, "cc3m/0.tar", "laion/0.tar", "other/0.tar")
    assert ids(tmp_path / "{cc3m,laion}") == ["cc3m/0", "laion/0"]
    assert ids(f"{tmp_path}/{{cc3m,laion}}/*.tar") == ["cc3m/0", "laion/0"]
    with pytest.raises(InputError, match="sbu: not found"):
        ids(tmp_path / "{cc3m,sbu}")


def test_find_shards_one_shard_is_named_by_its_file(tmp_path: Path) -> None:
    img2dataset_webdataset(tmp_path)
    assert ids(tmp_path / "00000.tar") == ["00000"]
    assert find_shards(str(tmp_path / "00002.tar")).unfinished == ("00002",)


def test_find_shards_name_with_brackets_means_itself(tmp_path: Path) -> None:
    put(tmp_path / "[old]", "0.tar")
    assert [s.url for s in find_shards(str(tmp_path / "[old]")).shards] == [
        str(tmp_path / "[old]" / "0.tar")
    ]


def test_find_shards_relative_path_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in", "0.tar")
    monkeypatch.chdir(tmp_path)
    [shard] = find_shards("in").shards
    assert (shard.id, shard.url) == ("0", str(tmp_path / "in" / "0.tar"))


def test_find_shards_links_are_followed_to_what_is_read(tmp_path: Path) -> None:
    put(tmp_path / "blobs", "abc", "def")
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / "0.tar"
    link.symlink_to(tmp_path / "blobs" / "abc")
    [before] = find_shards(str(tmp_path / "in")).shards
    (tmp_path / "blobs" / "abc").write_text("another")
    [after] = find_shards(str(tmp_path / "in")).shards
    assert (before.size_bytes, after.size_bytes) == (1, 7)
    assert before.version != after.version


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: not found"),
        ("nowhere.tar", r"nowhere\.tar: not found"),
        ("empty", "no shards"),
        ("in/*.tar", "matches nothing"),
        ("in/{a", "nbalanced"),
        ("in/x.txt", "no shards"),
        ("gz", "compressed"),
        ("gz/0.tar.gz", "compressed"),
    ],
)
def test_find_shards_nothing_to_find_says_why(tmp_path: Path, name: str, message: str) -> None:
    put(tmp_path, "in/x.txt", "gz/0.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as raised:
        find_shards(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_find_shards_two_shards_of_one_id_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.tar", "a/1.jpg", "a_stats.json")
    with pytest.raises(InputError, match="would both be shard 'a'"):
        find_shards(str(tmp_path))


@pytest.mark.parametrize("name", ["caf\udce9.tar", "caf\udce9/00000.tar", "caf\udce9/1.jpg"])
def test_find_shards_name_that_is_not_utf8_is_named(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    with pytest.raises(InputError, match=r"caf\\udce9.*: its name is not UTF-8: rename it"):
        find_shards(str(tmp_path))


def test_find_shards_files_form_takes_file_names_of_any_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a/caf\udce9.jpg", "a/fine.jpg", "b/1.jpg")
    shard, other = find_shards(str(tmp_path)).shards
    assert (shard.id, other.id) == ("a", "b")
    problems = [(s.key, s.problem) for s in read_samples(shard, ImageConfig())]
    assert problems == [("caf\\udce9", Reason.INVALID_KEY), ("fine", None)]
    assert is_unchanged(shard)
    (tmp_path / "a/caf\udce9.jpg").rename(tmp_path / "a/caf\udcea.jpg")
    assert not is_unchanged(shard)


def test_find_shards_output_of_a_run_takes_what_is_committed(place: str) -> None:
    put(place, "data/00000.tar", "data/00001.tar", "ledger/00000.parquet", "commits/00000.json")
    put(place, "manifest.json")
    found = find_shards(place)
    assert [shard.id for shard in found.shards] == ["00000"]
    assert found.unfinished == ("00001",)


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder behind a web server, which knows no byte ranges."""
    root = tmp_path / "www"
    root.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()


def test_find_shards_web_server_brace_range(web_folder: tuple[str, Path]) -> None:
    url, root = web_folder
    img2dataset_webdataset(root / "laion")
    found = find_shards(f"{url}/laion/{{00000..00002}}.tar")
    assert [(s.id, s.size_bytes, s.expected) for s in found.shards] == [
        ("00000", 1, 1),
        ("00001", 1, 1),
    ]
    assert found.unfinished == ("00002",)
    with pytest.raises(InputError, match=r"00003\.tar: not found"):
        find_shards(f"{url}/laion/{{00000..00003}}.tar")


def test_find_shards_web_server_that_lists_nothing(web_folder: tuple[str, Path]) -> None:
    url, root = web_folder
    img2dataset_webdataset(root / "laion")
    (root / "laion" / "index.html").write_text("<html>no listing here</html>")
    found = find_shards(f"{url}/laion/{{00000..00002}}.tar")
    assert [(s.id, s.expected) for s in found.shards] == [("00000", 1), ("00001", 1)]
    assert found.unfinished == ("00002",)


def test_find_shards_web_server_folder(web_folder: tuple[str, Path]) -> None:
    url, root = web_folder
    img2dataset_webdataset(root / "laion")
    found = find_shards(f"{url}/laion/")
    assert [(s.id, s.size_bytes) for s in found.shards] == [("00000", 1), ("00001", 1)]


def test_read_samples_web_server_without_byte_ranges(web_folder: tuple[str, Path]) -> None:
    url, root = web_folder
    # More than one block of a reader: a server without ranges can only be read from the start.
    write_tar(root / "0.tar", [(f"{i}.jpg", bytes([i]) * 5_000_000) for i in range(4)])
    samples = list(read_samples(find_shards(f"{url}/0.tar").shards[0], ImageConfig()))
    assert [(s.key, s.image == bytes([i]) * 5_000_000) for i, s in enumerate(samples)] == [
        ("0", True),
        ("1", True),
        ("2", True),
        ("3", True),
    ]
    with (root / "0.tar").open("rb+") as file:
        file.truncate(9_000_000)
    with pytest.raises(InputError, match="truncated"):
        list(read_samples(find_shards(f"{url}/0.tar").shards[0], ImageConfig()))


def test_human_shards_of_a_folder_are_marked(tmp_path: Path) -> None:
    put(tmp_path, "0.tar")
    [shard] = human_shards(str(tmp_path))
    assert (shard.id, shard.source, shard.form) == ("human-0", Source.HUMAN, Form.TAR)


def test_human_shards_unfinished_is_an_error(tmp_path: Path) -> None:
    img2dataset_webdataset(tmp_path)
    with pytest.raises(InputError, match=r"unfinished shards, e\.g\. 00002"):
        human_shards(str(tmp_path))


def test_human_shards_of_a_captions_file_are_slices(tmp_path: Path) -> None:
    pairs = [{"image": f"{i}.jpg", "caption": "a dog"} for i in range(5)]
    (tmp_path / "train.json").write_text(json.dumps(pairs))
    shards = human_shards(str(tmp_path / "train.json"), per_shard=2)
    assert [(s.id, s.start, s.stop) for s in shards] == [
        ("human-train-00000", 0, 2),
        ("human-train-00001", 2, 4),
        ("human-train-00002", 4, 5),
    ]
    assert {(s.form, s.source, s.images) for s in shards} == {
        (Form.PAIRS, Source.HUMAN, str(tmp_path))
    }
