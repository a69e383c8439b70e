"""Output that is whole or absent: a directory is written beside its final place, flushed to disk, and renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile, Locked, UsageError

MANIFEST = "manifest.json"
"""The file that makes a directory one of ours. It is written last, so its presence says that the rest is there."""


@contextlib.contextmanager
def fresh_directory(out: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `out` when the block ends well, and is removed when it does not.

    After `kill -9` at any moment `out` is what it was before (or, for the instant between two renames, is put back by
    the next writer). An earlier output of ours is replaced; anything else in the way is refused.

    Raises UsageError if `out` holds something that is not ours, Locked if another process is writing it, DachengError
    if the disk is full.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = (out.parent / f".{out.name}.{kind}" for kind in ("partial", "previous"))
    with _lock(out.parent / f".{out.name}.lock", out):
        if previous.exists():  # an earlier writer was killed while it exchanged the two
            _remove(previous) if out.exists() else previous.rename(out)
        _refuse_foreign(out)
        _remove(partial)
        partial.mkdir()
        try:
            yield partial
            _flush(partial)
        except BaseException as error:
            _remove(partial)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DachengError(
                    f"the disk is full: {error}", field="out", value=str(out), remedy="free some space, then run again"
                ) from error
            raise
        if out.exists():
            out.rename(previous)
        partial.rename(out)
        _flush_folder(out.parent)
        _remove(previous)


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        return
    raise UsageError(
        "the output is taken by something that was not made here",
        field="out",
        value=str(out),
        remedy="name a new directory, or remove this one yourself",
    )


@contextlib.contextmanager
def _lock(path: Path, out: Path) -> Iterator[None]:
    """One writer at a time. The lock is the kernel's, so it ends with the process however that ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise Locked(
                "another process is writing this output",
                field="out",
                value=str(out),
                remedy="wait for it, or name another directory",
            ) from None
        # The previous owner may have removed the file between our open and our lock: then the lock is on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_manifest(folder: Path, kind: str, version: int, values: dict[str, Any]) -> None:
    text = json.dumps({"kind": kind, "version": version, **values}, ensure_ascii=False, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """The manifest of a directory of ours.

    Raises DachengError if it has none or another kind, DamagedFile if it cannot be parsed.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DachengError(
            f"this is not a {kind} directory: it has no {MANIFEST}",
            field="path",
            value=str(folder),
            remedy="name a directory that prepare or tokenize has written",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["kind"], manifest["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(
            f"the manifest cannot be read: {error}", field="path", value=str(path), remedy="make the directory again"
        ) from error
    if found != (kind, version):
        raise DachengError(
            f"expected {kind} version {version}, found {found[0]} version {found[1]}",
            field="path",
            value=str(folder),
            remedy="name another directory, or make it again with this version",
        )
    return manifest


def sha256_file(path: Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
