"""Which files of a folder are read, in an order that does not depend on the file system; the rest is counted."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from dacheng.data.streams import COMPRESSED
from dacheng.errors import DachengError
from dacheng.records import Drops

File = tuple[Path, str, int]
"""(path, its name relative to the folder with "/", bytes)."""

_CACHES = frozenset({"__pycache__", "node_modules"})
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def walk(
    root: Path, drops: Drops, *, suffixes: Sequence[str] = (), records: Sequence[str] = (), max_bytes: int
) -> Iterator[File]:
    """The documents of a folder, sorted by name at each level.

    Counted as dropped: hidden files and folders, caches (__pycache__, node_modules), links (they may lead outside or
    round in circles), empty and oversized files, files whose suffix was not asked for, and files of records (`records`
    suffixes) among documents. A folder that is not entered counts once. Binary files are recognised when read.
    """
    for path, name in _descend(root, root, drops):
        size = path.lstat().st_size
        if path.is_symlink():
            drops.drop("link", size, name)
        elif not path.is_file():
            drops.drop("not_a_file", 0, name)
        elif path.name.startswith("."):
            drops.drop("hidden", size, name)
        elif suffixes and path.suffix not in suffixes:
            drops.drop("suffix_not_selected", size, name)
        elif inner_suffix(path) in records:
            drops.drop("file_of_records", size, name)
        elif size == 0:
            drops.drop("empty_file", 0, name)
        elif size > max_bytes:
            drops.drop("oversized", size, name)
        else:
            yield path, name, size


def files_of_kind(root: Path, drops: Drops, *, suffixes: Sequence[str]) -> Iterator[File]:
    """The files of records under a folder: those with one of `suffixes` (also compressed); others are counted."""
    for path, name in _descend(root, root, drops):
        if not path.is_file() or path.name.startswith(".") or inner_suffix(path) not in suffixes:
            drops.drop("suffix_not_selected", path.lstat().st_size, name)
        else:
            yield path, name, path.stat().st_size


def inner_suffix(path: Path) -> str:
    """.jsonl of a.jsonl.gz."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def _descend(folder: Path, root: Path, drops: Drops) -> Iterator[tuple[Path, str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        drops.drop("unreadable", 0, _name(folder, root))
        return
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            yield path, _name(path, root)
        elif entry.name.startswith("."):
            drops.drop("hidden_folder", 0, _name(path, root))
        elif entry.name in _CACHES:
            drops.drop("cache_folder", 0, _name(path, root))
        else:
            yield from _descend(path, root, drops)


def _name(path: Path, root: Path) -> str:
    # A file name that is not UTF-8 carries surrogates, which no later writer could encode.
    return path.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def python_stdlib() -> list[File]:
    """The running interpreter's own library: about 12 MB of Python without site-packages and tests, on every machine.

    Not the same bytes under another version of Python; fingerprints tell them apart.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: list[File] = []
    for folder, names, found in os.walk(root):
        names[:] = sorted(name for name in names if name not in _NOT_LIBRARY)
        for file in sorted(found):
            path = Path(folder, file)
            if file.endswith(".py") and path.is_file():
                files.append((path, _name(path, root), path.stat().st_size))
    if not files:
        raise DachengError(
            "this interpreter keeps its library in no folder of .py files",
            field="source",
            value=str(root),
            remedy="name a folder of text instead",
        )
    return files
