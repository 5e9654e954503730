"""Discovery: which shards an INPUT holds, under which ids, in which version.

INPUT is the URL of a folder, a glob or a brace range of shards: img2dataset's `webdataset`,
`parquet` and `files` outputs, any WebDataset tars, or the output of an earlier run. One listing per
folder says everything.

img2dataset writes `NNNNN_stats.json` last, so in a folder that has any, a shard without one is
still being written or was killed: it is left alone and named. What INPUT asks for and is not there
is an error; nothing is passed over in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

from braceexpand import braceexpand

from capfilt.errors import InputError
from capfilt.io import files, outputs
from capfilt.io.entry import Entry
from capfilt.io.listing import FORMS, REQUESTS, STATS, Folder, Found
from capfilt.io.members import readable
from capfilt.io.pairs import IMAGES_PER_SHARD, slice_pairs
from capfilt.io.reader import read_samples
from capfilt.jsontree import parse_json
from capfilt.record import Source
from capfilt.shard import Form, InputShard, place_of, root_of, shard_id

__all__ = ["Inputs", "find_shards", "human_shards", "read_samples"]

_LOOKS = 50 * REQUESTS  # shards that are looked at together
_LARGEST_STATS = 2**26  # bytes; img2dataset counts 100,000 messages at most
_MOST_IMAGES = 10**7  # of a shard
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The shards of an input, sorted by id, and the ids of those that are not finished."""

    shards: tuple[InputShard, ...]
    unfinished: tuple[str, ...] = ()


def find_shards(
    url: str,
    *,
    allow_unfinished: bool = False,
    with_stats: bool = False,
    known: Container[str] = (),
) -> Inputs:
    """Find the shards of an input. There may be none but unfinished ones.

    Args:
        url: A folder, a shard, a glob or a brace range; an fsspec URL or a local path.
        allow_unfinished: Take shards that img2dataset has not finished as well.
        with_stats: A shard without `_stats.json` is unfinished, also where no shard has any yet.
        known: Ids of shards to leave out, without a look at them.

    Raises:
        InputError: Something that `url` names is missing, there is no shard, two have one id, or
            one a name that is not UTF-8.
    """
    place = files.absolute(url)
    committed = _committed(place)
    if committed is not None:
        place = files.join(place, "data")
    shards: dict[str, InputShard] = {}
    unfinished = []
    found = _with_ids(place, url)
    with ThreadPoolExecutor(REQUESTS) as pool:
        for shard, finished in chain.from_iterable(
            _looked_at(pool, some) for some in _spans(found, known)
        ):
            if with_stats and shard.expected is None:
                finished = False
            if allow_unfinished or (finished and (committed is None or shard.id in committed)):
                shards[shard.id] = shard
            else:
                unfinished.append(shard.id)
    return Inputs(tuple(shards.values()), tuple(unfinished))


def check_unchanged(shard: InputShard) -> None:
    """Look whether a shard that was read is still the one that was listed.

    Raises:
        InputError: It is not, so what was read may be of neither.
    """
    if not is_unchanged(shard):
        raise InputError(f"{shard.url}: has changed since this run began; the next run takes it")


def is_unchanged(shard: InputShard) -> bool:
    """Whether a shard is the one that was listed, by its size and version."""
    if shard.form is Form.FILES:
        return Folder.at(shard.url).as_entry("").version == shard.version
    entry = files.info(shard.url)
    if entry is None:
        return False
    is_whole = shard.form is not Form.PAIRS
    if is_whole and entry.size_bytes not in (0, shard.size_bytes):  # 0: a server that does not say
        return False
    return shard.version.startswith(entry.version)  # of PAIRS it goes on with its images'


def human_shards(
    url: str, images: str | None = None, *, per_shard: int = IMAGES_PER_SHARD
) -> tuple[InputShard, ...]:
    """Find human-made captions: shards like any input's, or a captions file (`capfilt.io.pairs`).

    Args:
        url: Anything `find_shards` takes, or the URL of a `.json`.
        images: The folder that a captions file's image paths start from; None: where it lies.
        per_shard: How many images of a captions file make one shard.

    Returns:
        Shards of source HUMAN whose ids start with `human-`.

    Raises:
        InputError: As `find_shards`; a shard is unfinished; the captions file is none.
    """
    if url.endswith(".json"):
        return slice_pairs(url, images, per_shard)
    found = find_shards(url)
    if found.unfinished:
        raise InputError(f"{url}: unfinished shards, e.g. {found.unfinished[0]}")
    return tuple(
        replace(shard, id=f"human-{shard.id}", place=shard.url, source=Source.HUMAN)
        for shard in found.shards
    )


def _with_ids(place: str, shown: str) -> dict[str, Found]:
    """Every shard by id, sorted."""
    items = _items(place)
    found = _search(items)
    if not found:
        raise InputError(f"{shown}: {_why_empty(items)}")
    if items != [place]:
        root = root_of(place)
    else:
        root = files.parent(place) if found[0].entry.url == place else place
    by_id: dict[str, Found] = {}
    for shard in found:
        url = shard.entry.url
        told, is_utf8 = readable(url)
        if not is_utf8:  # which no commit, ledger or tar could name
            raise InputError(f"{told}: its name is not UTF-8: rename it")
        # A folder's name has no ending to lose: `v1.0` and `v1.1` are two.
        name = shard_id(f"{url}.files" if shard.form is Form.FILES else url, root)
        other = by_id.setdefault(name, shard).entry.url
        if other != url:
            raise InputError(f"{other} and {url} would both be shard {name!r}: rename one")
    return dict(sorted(by_id.items()))


def _items(place: str) -> list[str]:
    """The files and folders that INPUT names, its braces and wildcards resolved."""
    wildcards = "*[" if _is_web(place) else "*?["
    if not any(c in place for c in wildcards + "{") or files.info(place) is not None:
        return [place]  # a name that exists as it is means itself
    try:
        expanded = list(braceexpand(place))
    except ValueError as error:  # unbalanced braces
        raise InputError(f"{place}: {error}") from error
    items: dict[str, None] = {}
    for item in expanded:
        matches = files.glob(item) if any(c in item for c in wildcards) else [item]
        if not matches:
            raise InputError(f"{item}: matches nothing")
        items.update(dict.fromkeys(matches))
    return list(items)


def _search(items: list[str]) -> list[Found]:
    if len(items) == 1 and not items[0].endswith(tuple(FORMS)):
        entry = files.info(items[0])
        if entry and not entry.is_folder and not _is_web(items[0]):
            return []
        return _search_folder(items[0], None)
    by_folder: dict[str, list[str]] = defaultdict(list)
    for item in items:
        by_folder[files.parent(item)].append(item.rpartition("/")[2])
    found = []
    for url, names in by_folder.items():
        folder = Folder.with_names(url, names)
        found += folder.file_shards(names)
        for inner in folder.folders():
            if inner.name in names:
                found += _search_folder(inner.url, folder)
    return found


def _search_folder(place: str, siblings: Folder | None) -> list[Found]:
    folder = Folder.at(place)
    if folder.has_images() and not folder.file_shards(folder.entries):
        siblings = siblings or Folder.at(files.parent(place))
        return [siblings.shard(folder.as_entry(place.rpartition("/")[2]), Form.FILES)]
    found, below = _search_listing(folder)
    if not found:  # a folder of datasets
        for inner in below:
            found += _search_listing(inner)[0]
    return found


def _search_listing(folder: Folder) -> tuple[list[Found], list[Folder]]:
    """The shards directly in a folder, and its other folders."""
    found = folder.file_shards(folder.entries)
    candidates = folder.folders()
    if found:  # do not look into everything that lies beside tars
        candidates = [entry for entry in candidates if entry.name + STATS in folder.entries]
    with ThreadPoolExecutor(REQUESTS) as pool:
        listings = list(pool.map(Folder.at, [entry.url for entry in candidates]))
    others = []
    for entry, listing in zip(candidates, listings, strict=True):
        if listing.has_images():
            found.append(folder.shard(listing.as_entry(entry.name), Form.FILES))
        else:
            others.append(listing)
    return found, others


def _spans(found: dict[str, Found], known: Container[str]) -> Iterator[list[tuple[str, Found]]]:
    """Some at a time, which `found` has no more: of 100,000 the shards take its place in memory."""
    wanted = (name for name in list(found) if name not in known)
    while some := [(name, found.pop(name)) for name in islice(wanted, _LOOKS)]:
        yield some


def _looked_at(
    pool: ThreadPoolExecutor, some: list[tuple[str, Found]]
) -> Iterable[tuple[InputShard, bool]]:
    """Shards, and whether each is finished; in the pool where there is a store or a file to ask."""
    if any(found.stats or not found.entry.version for _, found in some):
        return pool.map(_input_shard, *zip(*some, strict=True))
    return (_input_shard(name, found) for name, found in some)


def _input_shard(name: str, found: Found) -> tuple[InputShard, bool]:
    """The shard, and whether it is finished."""
    entry = found.entry
    if not entry.version:  # the listing of a web server says nothing
        entry = files.info(entry.url) or entry
    expected = _successes(found.stats) if found.stats else None
    place = place_of(entry.url, name)
    shard = InputShard(name, found.form, place, entry.size_bytes, entry.version, expected=expected)
    return shard, found.finished and (found.stats is None or expected is not None)


def _successes(stats: Entry) -> int | None:
    """How many images img2dataset says a shard has; None where the file does not say.

    A killed writer left no JSON; a stranger wrote anything.
    """
    if stats.size_bytes > _LARGEST_STATS:
        return None
    try:
        count = parse_json(files.read_bytes(stats.url))["successes"]
    except (ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) and 0 <= count <= _MOST_IMAGES else None


def _committed(place: str) -> set[str] | None:
    """The ids that count where INPUT is the output of an earlier run; None where it is none."""
    if any(c in place for c in "*?[{") or place.endswith(tuple(FORMS)) or _is_web(place):
        return None
    parts = (place, files.join(place, "data"), files.join(place, outputs.COMMITS))
    if not all(files.exists(part) for part in parts):
        return None
    commits = files.find_names(files.join(place, outputs.COMMITS))
    return {name.removesuffix(".json") for name in commits}


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _why_empty(items: list[str]) -> str:
    names = items
    entry = files.info(items[0])
    if len(items) == 1 and entry and entry.is_folder:
        names = [entry.name for entry in files.list_folder(items[0])]
    if any(name.endswith(_COMPRESSED) for name in names):
        return "only compressed tars, which are not read: decompress them to .tar"
    return "no shards; capfilt reads .tar and .parquet shards and folders of images"
