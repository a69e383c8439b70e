"""Readers: the records of one open file, by its kind. Each counts what it cannot use with file:line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from dacheng.data.streams import bounded_lines, decode, note, open_bytes
from dacheng.errors import DachengError, DamagedFile, MissingExtra
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.data.sources import SourceSpec

MAX_NAMES = 20  # of ignored fields that are counted by name
_PARQUET_ROWS = 256  # decoded at once


class Place(NamedTuple):
    """A file being read: where it is, what it is called in ids and counts, and its open bytes."""

    path: Path
    name: str
    raw: BinaryIO


# --- plain text -------------------------------------------------------------------------------------------------------
def read_text(place: Place, spec: SourceSpec, drops: Drops) -> Iterator[Record]:
    """A text file as one record, or one a line, or one a paragraph. A binary file is dropped."""
    with open_bytes(place.path, place.raw) as stream:
        if spec.unit == "file":
            data = stream.read(spec.max_document_bytes + 1)
            if len(data) > spec.max_document_bytes:
                drops.drop("oversized", place.path.stat().st_size, place.name)
            elif not data:
                drops.drop("empty_file", 0, place.name)
            elif _binary(data):
                drops.drop("binary", len(data), place.name)
            else:
                yield from _text_record(data, place.name, {"path": place.name}, spec, drops)
            return
        for number, data in _units(stream, spec, place, drops):
            where = f"{place.name}:{number}"
            yield from _text_record(data, where, {"path": place.name, "line": number}, spec, drops)


def _binary(data: bytes) -> bool:
    """A zero byte near the beginning, as git has it, or a format that begins like text."""
    return b"\0" in data[:8192] or data.startswith((b"%PDF-", b"{\\rtf"))


def _text_record(data: bytes, where: str, meta: dict[str, Any], spec: SourceSpec, drops: Drops) -> Iterator[Record]:
    text = decode(data, where, encoding=spec.encoding, bad_bytes=spec.bad_bytes, drops=drops)
    if text is None:
        return
    if text.startswith("\ufeff"):
        text = text[1:]
        note(drops, "byte_order_mark_removed", where)
    yield Record(id=where, text=text, meta=meta)


def _units(stream: BinaryIO, spec: SourceSpec, place: Place, drops: Drops) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, bytes) of each non-empty line or paragraph."""
    limit = spec.max_document_bytes
    block: list[bytes] = []
    first = size = 0
    for number, line, line_bytes in bounded_lines(stream, limit):
        blank = line is not None and not line.strip()
        if spec.unit == "line":
            if line is None:
                drops.drop("line_too_long", line_bytes, f"{place.name}:{number}")
            elif blank:
                drops.drop("blank_line", line_bytes, f"{place.name}:{number}")
            else:
                yield number, line
            continue
        if not blank:
            first, size = first or number, size + line_bytes
            if size <= limit:
                block.append(line or b"")
            else:
                block.clear()  # it is dropped: only its size still counts
            continue
        yield from _paragraph(block, first, size, limit, place, drops)
        block, first, size = [], 0, 0
    if spec.unit == "paragraph":
        yield from _paragraph(block, first, size, limit, place, drops)


def _paragraph(
    block: list[bytes], first: int, size: int, limit: int, place: Place, drops: Drops
) -> Iterator[tuple[int, bytes]]:
    if size > limit:
        drops.drop("paragraph_too_long", size, f"{place.name}:{first}")
    elif block:
        yield first, b"\n".join(block)


# --- JSON -------------------------------------------------------------------------------------------------------------
def read_jsonl(place: Place, spec: SourceSpec, drops: Drops) -> Iterator[Record]:
    """One JSON object a line."""
    ignored: Counter[str] = Counter()
    with open_bytes(place.path, place.raw) as stream:
        for number, line, size in bounded_lines(stream, spec.max_document_bytes):
            where = f"{place.name}:{number}"
            if line is None:
                drops.drop("line_too_long", size, where)
            elif not line.strip():
                drops.drop("blank_line", size, where)
            else:
                text = decode(line, where, encoding=spec.encoding, bad_bytes=spec.bad_bytes, drops=drops)
                if text is not None:
                    yield from _parse(text.removeprefix("\ufeff"), size, where, number, place, spec, drops, ignored)
    _report_ignored(ignored, place, drops)


def _parse(
    text: str, size: int, where: str, number: int, place: Place, spec: SourceSpec, drops: Drops, ignored: Counter[str]
) -> Iterator[Record]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        drops.drop("bad_json", size, where)
        return
    yield from spec.records(value, where, size, {"path": place.name, "line": number}, drops, ignored)


def read_json(place: Place, spec: SourceSpec, drops: Drops) -> Iterator[Record]:
    """A JSON array of objects, or JSON lines under the name .json. An array is read whole, so it must be within
    max_document_bytes."""
    with open_bytes(place.path, place.raw) as stream:
        data = stream.read(spec.max_document_bytes + 1)
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        place.raw.seek(0)
        yield from read_jsonl(place, spec, drops)
        return
    if len(data) > spec.max_document_bytes:
        raise DachengError(
            "the JSON array is too large to read at once",
            field="source.max_document_bytes",
            value=spec.max_document_bytes,
            remedy="raise it, or convert the file to one object a line (.jsonl)",
        )
    text = decode(data, place.name, encoding=spec.encoding, bad_bytes=spec.bad_bytes, drops=drops)
    if text is None:
        return
    try:
        values = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(
            f"not valid JSON: {error}", field="source.path", value=str(place.path), remedy="mend the file"
        ) from None
    ignored: Counter[str] = Counter()
    for number, value in enumerate(values, 1):
        where, meta = f"{place.name}:{number}", {"path": place.name, "item": number}
        yield from spec.records(value, where, len(json.dumps(value)), meta, drops, ignored)
    _report_ignored(ignored, place, drops)


def to_record(
    value: Any, where: str, size: int, meta: dict[str, Any], spec: SourceSpec, drops: Drops, ignored: Counter[str]
) -> Record | None:
    """A record of a JSON object or a parquet row; None if it was dropped. `ignored` counts fields that nobody named."""
    if not isinstance(value, Mapping):
        drops.drop("not_an_object", size, where)
        return None
    record = Record(id=where, meta=meta)
    if spec.messages_field is not None and value.get(spec.messages_field) is not None:
        messages = value[spec.messages_field]
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            drops.drop(f"not_messages:{spec.messages_field}", size, where)
            return None
        record.messages = json.loads(encodable(json.dumps(messages, ensure_ascii=False), where, drops))
    elif value.get(spec.text_field) is None:
        drops.drop(f"missing_field:{spec.messages_field or spec.text_field}", size, where)
        return None
    elif not isinstance(value[spec.text_field], str):
        drops.drop(f"field_not_text:{spec.text_field}", size, where)
        return None
    else:
        record.text = encodable(value[spec.text_field], where, drops)
    if spec.id_field is not None and value.get(spec.id_field) is not None:
        record.id = str(value[spec.id_field])
    if spec.label_field is not None:
        if spec.label_field not in value:
            drops.drop(f"missing_field:{spec.label_field}", size, where)
            return None
        record.label = value[spec.label_field]
    used = spec.messages_field if record.messages is not None else spec.text_field
    for name in value:
        if name in spec.keep_fields:
            record.meta[name] = value[name]
        elif name not in (used, spec.id_field, spec.label_field):
            ignored[name if name in ignored or len(ignored) < MAX_NAMES else "(others)"] += 1
    return record


def encodable(text: str, where: str, drops: Drops) -> str:
    r"""JSON may spell half a surrogate pair ("\ud83d"), which is no character: nothing could write it again."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        note(drops, "lone_surrogates_replaced", where)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _report_ignored(ignored: Counter[str], place: Place, drops: Drops) -> None:
    for name, count in ignored.items():
        note(drops, f"field_ignored:{name}", place.name, count)


# --- parquet ----------------------------------------------------------------------------------------------------------
def read_parquet(place: Place, spec: SourceSpec, drops: Drops) -> Iterator[Record]:
    """One record a row; a few hundred rows are decoded at a time, and only the columns that are asked for."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None
    wanted = spec.columns()
    ignored: Counter[str] = Counter()
    number = 0
    try:
        file = pq.ParquetFile(place.raw)
        names = file.schema_arrow.names
        content = spec.messages_field or spec.text_field
        if wanted is not None and content not in names:
            raise DachengError(
                "the parquet file has no such column",
                field="source.messages_field" if spec.messages_field else "source.text_field",
                value=content,
                remedy=f"{place.name} has: {', '.join(names[:30])}",
            )
        for name in names:
            if wanted is not None and name not in wanted:
                ignored[name] = file.metadata.num_rows
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[n for n in names if wanted is None or n in wanted]):
            for row in _rows(batch, pa):
                number += 1
                unnamed = Counter[str]() if wanted is not None else ignored
                yield from _row_record(row, f"{place.name}:{number}", number, place, spec, drops, unnamed)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DamagedFile(
            f"the parquet file cannot be read: {error}",
            field="source.path",
            value=str(place.path),
            remedy="fetch or make the file again",
        ) from error
    _report_ignored(ignored, place, drops)


def _row_record(
    row: dict[str, Any], where: str, number: int, place: Place, spec: SourceSpec, drops: Drops, ignored: Counter[str]
) -> Iterator[Record]:
    size = sum(len(value) for value in row.values() if isinstance(value, bytes))
    for name, value in row.items():
        if isinstance(value, bytes):
            text = decode(value, where, encoding="utf-8", bad_bytes=spec.bad_bytes, drops=drops)
            if text is None:
                return
            row[name] = text
    yield from spec.records(row, where, size, {"path": place.name, "row": number}, drops, ignored)


def _rows(batch: Any, pa: Any) -> list[dict[str, Any]]:
    """Rows as dicts. Strings stay bytes: Arrow does not check that they are UTF-8, and Python would fail on a whole
    batch instead of one row."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type):
            column = column.cast(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())
        columns.append(column.to_pylist())
    return [dict(zip(batch.schema.names, values)) for values in zip(*columns)]
