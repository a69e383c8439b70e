"""docx by zipfile and an XML parser: headings, paragraphs, lists, tables. Lines are numbered by paragraph.

A docx may come from anywhere: what is unpacked is bounded in size and ratio, and XML with a document type (which could
define entities) is refused.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree

from dacheng.rag.blocks import Block
from dacheng.rag.passages import Kind
from dacheng.rag.readers.plain import Breadcrumb, Line
from dacheng.records import Drops

MAX_XML = 64 << 20
_MAX_RATIO = 200
_MAX_DEPTH = 200
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"^(?:heading|berschrift|titre|标题)\s*([1-9])$|^([1-9])$", re.I)


class _RefusedError(Exception):
    """Why a file is not read; its argument is the reason counted."""


def read_docx(data: bytes, name: str, drops: Drops) -> Iterator[Block]:
    """The blocks of a document; nothing, and a drop with the reason, where it is refused or broken."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            document = _unpacked(archive, "word/document.xml", required=True)
            styles = _unpacked(archive, "word/styles.xml", required=False)
        blocks = list(_blocks(document, _heading_styles(styles)))
    except _RefusedError as refused:
        drops.drop(str(refused), len(data), name)
        return
    except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, EOFError, OSError, KeyError, NotImplementedError,
            RuntimeError, ValueError):  # fmt: skip
        drops.drop("broken_docx", len(data), name)
        return
    yield from blocks


def _unpacked(archive: zipfile.ZipFile, entry: str, *, required: bool) -> bytes:
    try:
        info = archive.getinfo(entry)
    except KeyError:
        if required:
            raise
        return b""
    if info.flag_bits & 1:
        raise _RefusedError("encrypted_docx")
    limit = min(MAX_XML, max(1 << 20, info.compress_size * _MAX_RATIO))
    with archive.open(info) as stream:  # what it says about its own size is not to be trusted
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise _RefusedError("docx_too_large_inside")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _RefusedError("docx_with_document_type")
    return data


def _events(data: bytes) -> Iterator[tuple[str, ElementTree.Element]]:
    depth = 0
    for event, element in ElementTree.iterparse(BytesIO(data), ("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > _MAX_DEPTH:
            raise _RefusedError("docx_too_deep")
        yield event, element


def _heading_styles(data: bytes) -> dict[str, int]:
    """Style id -> heading level, by the style's name: ids are translated, names are not."""
    levels: dict[str, int] = {}
    if not data:
        return levels
    for event, element in _events(data):
        if event == "end" and element.tag == f"{_WORD}style":
            named = element.find(f"{_WORD}name")
            name = named.get(f"{_WORD}val", "") if named is not None else ""
            found = _HEADING.match(name)
            if found:
                levels[element.get(f"{_WORD}styleId", "")] = int(found.group(1) or found.group(2))
            elif name.lower() == "title":
                levels[element.get(f"{_WORD}styleId", "")] = 0
    return levels


def _blocks(data: bytes, levels: dict[str, int]) -> Iterator[Block]:
    breadcrumb = Breadcrumb()
    number = tables = 0
    row: list[str] = []
    rows: list[Line] = []
    cell: list[str] = []
    for event, element in _events(data):
        if element.tag == f"{_WORD}tbl":
            tables += 1 if event == "start" else -1
            if event == "end" and not tables and rows:
                yield Block("table", breadcrumb.text, tuple(rows), 1)
                rows = []
        if event == "start":
            continue
        if element.tag == f"{_WORD}p":
            number += 1
            text = _text(element)
            if tables:
                cell.append(text)
            elif text.strip():
                level = _level(element, levels)
                if level is not None:
                    breadcrumb.enter(level, text)
                else:
                    kind: Kind = "list" if element.find(f"{_WORD}pPr/{_WORD}numPr") is not None else "prose"
                    yield Block(kind, breadcrumb.text, ((number, ("- " if kind == "list" else "") + text),))
            element.clear()
        elif element.tag == f"{_WORD}tc":
            row.append(" ".join(" ".join(cell).split()))
            cell = []
        elif element.tag == f"{_WORD}tr":
            if any(row):
                rows.append((number, " | ".join(row)))
            row = []
            element.clear()


def _level(paragraph: ElementTree.Element, levels: dict[str, int]) -> int | None:
    style = paragraph.find(f"{_WORD}pPr/{_WORD}pStyle")
    name = style.get(f"{_WORD}val", "") if style is not None else ""
    if name in levels:
        return levels[name]
    found = re.match(r"^Heading([1-9])$", name)
    return int(found.group(1)) if found else None


def _text(paragraph: ElementTree.Element) -> str:
    parts: list[str] = []
    for element in paragraph.iter():
        if element.tag == f"{_WORD}t":
            parts.append(element.text or "")
        elif element.tag in (f"{_WORD}tab", f"{_WORD}br", f"{_WORD}cr"):
            parts.append(" ")
    return " ".join("".join(parts).split())
