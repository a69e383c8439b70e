"""Documents: which files of a folder are read, by which reader, and what a file comes to."""

from __future__ import annotations

import codecs
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dacheng.data.folders import File, python_stdlib, walk
from dacheng.data.streams import note
from dacheng.errors import UsageError
from dacheng.rag.blocks import Block, passages_of
from dacheng.rag.passages import Passage
from dacheng.rag.scripts import language_of
from dacheng.records import Drops

MAX_BYTES = 64 << 20
"""Of one document. Larger files are counted as oversized."""

STDLIB = "stdlib"
_TICK = 256  # passages
# Tools and tables, not the library.
_UNDOCUMENTED = frozenset(["idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "ensurepip", "distutils"])
_TEXT_READERS = {
    ".md": "markdown:read_markdown",
    ".markdown": "markdown:read_markdown",
    ".txt": "plain:read_plain",
    ".text": "plain:read_plain",
    ".rst": "rest:read_rest",
    ".html": "html:read_html",
    ".htm": "html:read_html",
    ".xhtml": "html:read_html",
    ".csv": "separated:read_csv",
    ".tsv": "separated:read_tsv",
}
_BINARY_READERS = {".pdf": "pdf:read_pdf", ".docx": "docx:read_docx"}
_PROSE_NAMES = frozenset({"readme", "license", "licence", "copying", "authors", "changes", "changelog", "news", "todo"})


def documents(root: Path | str, drops: Drops, *, skip: frozenset[Path] = frozenset()) -> list[File]:
    """The files to read, in an order that does not depend on the file system. root: a folder, or "stdlib".

    Hidden files, caches, links, empty and oversized files are counted in `drops`; those of `skip` are not seen.
    Raises UsageError where there is no such folder.
    """
    if root == STDLIB:
        return [file for file in python_stdlib() if not _UNDOCUMENTED & set(file[1].split("/"))]
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", field="source", value=str(root), remedy='name a folder of documents, or "stdlib"'
        )
    seen = Drops()
    found = [file for file in walk(folder, seen, max_bytes=MAX_BYTES) if file[0].absolute() not in skip]
    drops.merge(seen)
    return found


def root_name(root: Path | str) -> str:
    """What a store calls the folder that it was made of."""
    return STDLIB if root == STDLIB else str(Path(root).resolve())


def library_folder() -> Path:
    """Where the sources of a "stdlib" store lie."""
    return Path(sysconfig.get_path("stdlib"))


def read_document(
    data: bytes,
    name: str,
    drops: Drops,
    *,
    docstrings: bool = False,
    tick: Callable[[int], None] | None = None,
) -> list[Passage]:
    """The passages of one file. Nothing readable in it: counted in `drops` with the reason.

    docstrings: of Python only what is documented (the interpreter's library), not the code. tick: called now and then
    with the characters of the passages so far.
    """
    suffix = "." + name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
    reasons = sum(drops.dropped.values())
    if suffix in _BINARY_READERS:
        blocks: Iterator[Block] = _reader(_BINARY_READERS[suffix])(data, name, drops)
    else:
        text = _text(data, name, drops)
        if text is None:
            return []
        blocks = _blocks_of_text(text, name, suffix, drops, docstrings)
    passages = _distinct(passages_of(blocks, name), name, drops, tick)
    if (
        not passages and suffix not in _BINARY_READERS and not docstrings
    ):  # nothing but headings: then they are the text
        passages = list(passages_of(_reader("code:read_code")(text), name))
    if passages:
        drops.keep(len(data))
    elif sum(drops.dropped.values()) == reasons:
        drops.drop("undocumented" if docstrings else "no_text", len(data), name)
    return passages


def _blocks_of_text(text: str, name: str, suffix: str, drops: Drops, docstrings: bool) -> Iterator[Block]:
    from dacheng.rag.readers import code, python

    if suffix in (".py", ".pyi"):
        tree = python.parse(text)
        if tree is not None:
            return (python.read_docstrings if docstrings else python.read_code)(tree, text, name)
        note(drops, "python_not_parsed", name)
        return code.read_code(text)
    if name.lower().endswith(".rst.txt"):
        suffix = ".rst"
    if suffix in _TEXT_READERS:
        return _reader(_TEXT_READERS[suffix])(text)
    if suffix == "" and (name.rpartition("/")[2].lower() in _PROSE_NAMES or not code.looks_like_code(text)):
        return _reader(_TEXT_READERS[".txt"])(text)
    return code.read_code(text)


def _reader(target: str) -> Callable[..., Iterator[Block]]:
    from importlib import import_module

    module, name = target.split(":")
    return getattr(import_module(f"dacheng.rag.readers.{module}"), name)


def _distinct(
    passages: Iterator[Passage], name: str, drops: Drops, tick: Callable[[int], None] | None
) -> list[Passage]:
    """A passage that a document holds twice under one heading is kept once: it would be cited twice."""
    found: dict[str, Passage] = {}
    characters = 0
    for count, passage in enumerate(passages):
        characters += len(passage.text)
        if tick is not None and count % _TICK == _TICK - 1:
            tick(characters)
        if passage.key in found:
            note(drops, "repeated_passage", f"{name}:{passage.first_line}")
        else:
            found[passage.key] = passage
    return list(found.values())


def _text(data: bytes, name: str, drops: Drops) -> str | None:
    """UTF-8, UTF-16 with its mark, or GB 18030 where that gives Chinese; None where it is no text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _clean(data.decode("utf-16", "replace"))
    if b"\0" in data[:8192] or data.startswith((b"%PDF-", b"{\\rtf")):
        drops.drop("binary", len(data), name)
        return None
    try:
        return _clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("gb18030")
        if language_of(text[:100_000]) == "zh":  # bytes of Latin-1 pass for some odd Han characters too
            note(drops, "read_as_gb18030", name)
            return _clean(text)
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 10 > len(text):
        drops.drop("not_text", len(data), name)
        return None
    note(drops, "bad_bytes_replaced", name)
    return _clean(text)


def _clean(text: str) -> str:
    r"""Only "\n" ends a line: form feeds and the rarer separators of str.splitlines would shift the line numbers."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_LINE_ENDS)


_LINE_ENDS = {ord(mark): " " for mark in "\v\f\x1c\x1d\x1e\x85\u2028\u2029\0"}


def renumbered(passage: Passage, number: int) -> Passage:
    """The passage under its number in a store."""
    return replace(passage, id=number)
