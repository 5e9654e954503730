"""Parquet shards, in and out: one row per sample, the image's bytes in a column.

In: img2dataset's `parquet` form (a binary column `jpg`, `png` or `webp`) and what `datasets` writes
(`image`, a struct of bytes and path). Out: small row groups, because a group with its images must
fit into a reader's memory, and the metadata that lets `datasets` and its viewer show the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.config import ImageConfig
from capfilt.errors import InputError
from capfilt.io import files
from capfilt.io.fields import caption_fields, to_json, web_text_of
from capfilt.io.footer import Footer, read_footer
from capfilt.io.members import IMAGE_EXTS, readable, texts_of
from capfilt.io.store import storage_errors
from capfilt.record import Annotated, Reason, Sample
from capfilt.shard import InputShard

_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image")
CAPTION_COLUMNS = ("caption", "text", "txt")
_ROWS_READ = 16  # at once: 1.6 MB of images of 100 KB
_READ_BUFFER_BYTES = 8 * 2**20  # per column; without it a column's whole row group is read
_ROWS_PER_GROUP = 128  # 13 MB of images of 100 KB
_BYTES_PER_GROUP = 128 * 2**20  # fewer rows where images are large
# What no shard of images has: rows, values of nested columns in a row group, and bytes that were
# compressed so well.
_MAX_ROWS, _MAX_VALUES = 10_000_000, 2**27
_PLAUSIBLE_BYTES, _MAX_RATIO = 2**28, 100
# What pyarrow raises beside its own errors: broken UTF-8, statistics that contradict the schema.
_DAMAGE = (pa.ArrowException, ValueError, RuntimeError, LookupError, ArithmeticError)
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)

_CAPTION = pa.struct(
    [
        ("text", pa.string()),
        ("source", pa.string()),
        ("match_prob", pa.float32()),
        ("similarity", pa.float32()),
    ]
)
_EXTRA = pa.struct([("ext", pa.string()), ("data", pa.binary())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_parquet(shard: InputShard, limits: ImageConfig, images: bool = True) -> Iterator[Sample]:
    """The samples of a Parquet shard in its order, a few rows in memory at a time.

    Without `images` their column is not read.

    A row that img2dataset marks as failed is no sample. The metadata is every column but the
    image, as Python values; nanoseconds, and times that Python does not have, as integers.

    Raises:
        InputError: The file is missing, damaged, or has no image column.
    """
    with files.open_read(shard.url, seekable=True) as file, storage_errors(shard.url):
        try:
            _check_plausible(read_footer(file), shard.url)
            parquet = pq.ParquetFile(file, buffer_size=_READ_BUFFER_BYTES)
            column = image_column(parquet.schema_arrow, shard.url)
            row_number = 0
            names = [name for name in parquet.schema_arrow.names if images or name != column]
            for batch in parquet.iter_batches(batch_size=_ROWS_READ, columns=names):
                yield from samples_of(batch, column, row_number, shard, limits)
                row_number += batch.num_rows
        except _DAMAGE as error:
            raise InputError(f"{shard.url}: not a readable Parquet file ({error})") from error


def read_text_rows(shard: InputShard) -> Iterator[Sample]:
    """The samples of a Parquet shard that capfilt wrote without images: keys and metadata.

    Raises:
        InputError: The file is missing, damaged, or none of capfilt's.
    """
    with files.open_read(shard.url, seekable=True) as file, storage_errors(shard.url):
        try:
            for batch in pq.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    yield Sample(str(row["key"]), None, "", (), row)
        except (pa.ArrowException, KeyError) as error:
            raise InputError(f"{shard.url}: not a data shard of capfilt ({error})") from error


def samples_of(
    batch: Any, image_column: str, row_number: int, shard: InputShard, limits: ImageConfig
) -> Iterator[Sample]:
    """The samples in a record batch, which begins with row `row_number` of its shard.

    Without the image column, all its samples are taken to have one.
    """
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    has_images = image_column in columns
    images = columns.pop(image_column) if has_images else [None] * batch.num_rows
    caption_column = next((name for name in CAPTION_COLUMNS if name in columns), None)
    raw_captions = _raw_texts(batch.column(caption_column)) if caption_column else None
    for i, value in enumerate(images):
        metadata = {name: column[i] for name, column in columns.items()}
        image, ext = _image(value, image_column)
        if image is None and metadata.get("status", "success") != "success":
            continue
        problem = None
        if image is None:
            problem = Reason.NO_IMAGE if has_images else None
        elif len(image) > limits.max_bytes:
            image, problem = None, Reason.IMAGE_TOO_LARGE
        yield Sample(
            _key(metadata.get("key"), row_number + i),
            image,
            ext,
            texts_of(raw_captions[i] if raw_captions else None, shard.source),
            metadata,
            problem=problem,
        )


def _key(value: Any, row: int) -> str:
    if value is None:
        return f"{row:09d}"
    return readable(value)[0] if isinstance(value, bytes) else str(value)


def _check_plausible(footer: Footer, url: str) -> None:
    """Refuse a file of a few kilobytes that becomes gigabytes when it is read.

    Raises:
        InputError: It says that it is such a one.
    """
    if not 0 <= footer.rows <= _MAX_ROWS:
        raise InputError(f"{url}: says that it has {footer.rows} rows; a shard has fewer")
    for chunk in footer.chunks:
        size, stored = chunk.size_bytes, chunk.stored_bytes
        is_bomb = size > _PLAUSIBLE_BYTES and size > _MAX_RATIO * stored
        if is_bomb or chunk.values > _MAX_VALUES or min(size, stored) < 0:
            raise InputError(
                f"{url}: column {chunk.path!r} would be {chunk.values} values in "
                f"{size} bytes from {stored}: a bomb, or damaged"
            )


def image_column(schema: Any, url: str) -> str:
    """Which column of an Arrow schema holds the images.

    Raises:
        InputError: None does; `url` is what to call the file.
    """
    for name in _IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
                return name
            if _is_binary(kind):
                return name
    raise InputError(
        f"{url}: no image column: it needs bytes in one of {', '.join(_IMAGE_COLUMNS)}, "
        f"has {', '.join(schema.names)}"
    )


def _image(value: Any, column: str) -> tuple[bytes | None, str]:
    path = None
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
    if column != "image":
        return value, column
    if value is not None:
        for signature, ext in _SIGNATURES:
            if value.startswith(signature):
                return value, ext
        if value[:4] == b"RIFF" and value[8:12] == b"WEBP":
            return value, "webp"
    suffix = Path(path or "").suffix.removeprefix(".").lower()
    return value, suffix if suffix in IMAGE_EXTS else "jpg"


def _values(column: Any) -> list[Any]:
    kind = column.type
    if pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns":
        column = column.cast(pa.int64())  # Python's own times end at microseconds
    try:
        return list(column.to_pylist())
    except _DAMAGE:  # one cell's may be
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    """A cell's value: bytes that are not UTF-8 escaped, a time that Python has not an integer."""
    try:
        return cell.as_py()
    except _DAMAGE:
        if isinstance(cell, pa.StructScalar):
            return {field.name: _value(cell[i]) for i, field in enumerate(cell.type)}
        if isinstance(cell, pa.ListScalar):
            return [_value(item) for item in cell.values]
        if isinstance(cell, pa.BinaryScalar):
            return readable(cell.as_buffer().to_pybytes())[0]
        inner = cell.value
        return _value(inner) if isinstance(inner, pa.Scalar) else inner


def _raw_texts(column: Any) -> list[Any]:
    """Texts as bytes: Arrow does not check that a string column is UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return _values(column.cast(_raw_type(column.type)))


def _raw_type(kind: Any) -> Any:
    types = pa.types
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(_raw_type(kind.value_type))
    return pa.large_list(_raw_type(kind.value_type)) if types.is_large_list(kind) else kind


def _is_binary(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


class ParquetWriter:
    """Writes kept samples as a Parquet shard that `datasets` opens with images. Same samples, same
    bytes.

    Columns: key, image, caption, captions (text, source, match_prob, similarity), web_text, `json`
    with every original field or column but the image (`fields.to_json`), and `extras` with what
    else lay beside it. They are the same of every input, so that all shards load as one dataset.
    """

    def __init__(self, file: Path | BinaryIO, *, images: bool = True) -> None:
        """Begin a shard.

        Args:
            file: A local path or an open file.
            images: Whether to write images, and what else the input had beside texts.
        """
        self._schema = _output_schema(images=images)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._writer = pq.ParquetWriter(
            str(file) if isinstance(file, Path) else file,
            self._schema,
            compression="zstd",
            use_dictionary=False,
        )

    def write(self, annotated: Annotated) -> None:
        """Add a sample that keeps at least one text."""
        sample = annotated.sample
        row = {
            "key": sample.key,
            "image": {"bytes": sample.image, "path": f"{sample.key}.{sample.image_ext}"},
            "caption": annotated.kept[0].content,
            "captions": [caption_fields(text) for text in annotated.kept],
            "web_text": web_text_of(annotated),
            "json": to_json(sample.metadata),
            "extras": [{"ext": e, "data": data} for e, data in sorted(sample.extras.items())],
        }
        self._rows.append(row)
        self._bytes += len(sample.image or b"") + sum(map(len, sample.extras.values()))
        if len(self._rows) == _ROWS_PER_GROUP or self._bytes >= _BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        arrays = [
            pa.array([row[field.name] for row in self._rows], type=field.type)
            for field in self._schema
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left and the file's footer."""
        if self._rows:
            self._flush()
        self._writer.close()

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _output_schema(*, images: bool) -> Any:
    fields = [pa.field("key", pa.string())]
    if images:
        fields.append(pa.field("image", _IMAGE))
    fields += [
        pa.field("caption", pa.string()),
        pa.field("captions", pa.list_(_CAPTION)),
        pa.field("web_text", pa.string()),
        pa.field("json", pa.string()),
    ]
    if not images:
        return pa.schema(fields)
    fields.append(pa.field("extras", pa.list_(_EXTRA)))
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    return pa.schema(fields, metadata={"huggingface": json.dumps(features)})
