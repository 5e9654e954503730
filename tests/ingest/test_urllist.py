import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import ConfigError, InputError
from capfilt.ingest.urllist import UrlList


def write(path: Path, text: str) -> str:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'NSFW,"TEXT",URL\nno,a,http://b\n'),
        ("list.csv.gz", "NSFW,TEXT,URL\nno,a,http://b\n"),
        ("list.tsv", "\ufeffNSFW\tTEXT\tURL\r\nno\ta\thttp://b\r\n"),
        ("list.jsonl", json.dumps({"NSFW": "no", "TEXT": "a", "URL": "http://b"}) + "\n{}\n"),
        ("list.json", json.dumps([{"NSFW": "no", "TEXT": "a", "URL": "http://b"}])),
    ],
)
def test_read_header_finds_usual_names(tmp_path: Path, name: str, text: str) -> None:
    found = UrlList.read_header(write(tmp_path / name, text))
    assert (found.url_column, found.caption_column) == ("URL", "TEXT")
    assert found.other_columns == ("NSFW",)
    assert found.format == name.partition(".")[2]


def test_read_header_of_a_folder_of_parquet(tmp_path: Path) -> None:
    for part in range(2):
        table = pa.table({"url": ["http://b"], "caption": ["a"], "score": [0.5]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").touch()
    found = UrlList.read_header(str(tmp_path))
    assert found == UrlList("parquet", "url", "caption", ("score",))


def test_read_header_prefers_the_columns_asked_for(tmp_path: Path) -> None:
    urls = write(tmp_path / "list.csv", "url,thumb,caption,alt\n")
    found = UrlList.read_header(urls, url_column="thumb", caption_column="alt")
    assert found == UrlList("csv", "thumb", "alt", ("url", "caption"))


def test_read_header_of_a_list_without_texts(tmp_path: Path) -> None:
    urls = write(tmp_path / "list.csv", "url,score\n")
    with pytest.raises(ConfigError, match=r"caption_column.*url, score.*'none'"):
        UrlList.read_header(urls)
    assert UrlList.read_header(urls, caption_column="none").caption_column is None
    assert UrlList.read_header(write(tmp_path / "list.txt", "http://b\n")).caption_column is None


def test_read_header_missing_column_names_those_there(tmp_path: Path) -> None:
    urls = write(tmp_path / "list.csv", "link,text,score\n")
    with pytest.raises(ConfigError, match=r"'url' for url_column; there are link, text, score"):
        UrlList.read_header(urls, url_column="url")


def test_read_header_of_a_list_without_header_says_what_to_add(tmp_path: Path) -> None:
    urls = write(tmp_path / "list.tsv", "a very large dog\thttp://b/c.jpg\n")
    with pytest.raises(ConfigError, match=r"caption\\turl"):
        UrlList.read_header(urls)


@pytest.mark.parametrize("name", ["list.xlsx", "list.csv.gz", "list.parquet", "list.jsonl"])
def test_read_header_of_something_else_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00 nothing that reads")
    with pytest.raises(InputError, match=r"list\."):
        UrlList.read_header(str(tmp_path / name))


def test_read_header_of_nothing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        UrlList.read_header(str(tmp_path / "absent.csv"))
    with pytest.raises(InputError, match="no list"):
        UrlList.read_header(str(tmp_path))
