"""Files and directories that are either the old one or the new one, whatever interrupts the writing."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dacheng.errors import DachengError

try:
    import fcntl
except ImportError:  # pragma: no cover - not POSIX: what a killed writer left is then not swept
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place when the block ends well: on disk first, then renamed.

    Readers that have mapped the old file keep it. On an error the old file is untouched and the new one is gone.
    """
    staging = path.with_name(f".{path.name}.{_unique()}.tmp")
    try:
        with open(staging, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
        sync_directory(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """An empty directory beside `path` that takes its place, whole, when the block ends well.

    Where the system can exchange two names (Linux), `path` exists at every moment; elsewhere there is an instant in
    which only `.{name}.replaced-*` beside it holds the old contents. Leftovers of killed writers are swept. Raises
    DachengError when `path` is something other than a directory, or the one this process works in.
    """
    path = Path(os.path.realpath(path))  # through a link: what it points at is replaced, the link stays
    if path.exists() and (not path.is_dir() or Path.cwd().is_relative_to(path)):
        problem = "the working directory cannot be replaced" if path.is_dir() else "this is not a directory"
        raise DachengError(problem, field="directory", value=str(path), remedy="choose another output folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.saving-"
    _sweep(path.parent, prefix)
    staging = path.parent / (prefix + _unique())
    staging.mkdir()
    held = _hold(staging)
    try:
        yield staging
        _sync_tree(staging)
        _take_place(staging, path)
        sync_directory(path.parent)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(staging, ignore_errors=True)  # after an exchange this is the directory that was replaced


def sync_directory(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # pragma: no cover - a system that cannot open directories
        return
    try:
        os.fsync(descriptor)
    except OSError:  # pragma: no cover - a file system that cannot sync them
        pass
    finally:
        os.close(descriptor)


def _unique() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        sync_directory(Path(folder))


def _take_place(staging: Path, path: Path) -> None:
    if not path.exists():
        os.rename(staging, path)
    elif not _exchange(staging, path):
        replaced = path.with_name(f".{path.name}.replaced-{_unique()}")
        os.rename(path, replaced)
        os.rename(staging, path)
        os.rename(replaced, staging)  # swept with the rest


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step (renameat2, Linux 3.15). False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # pragma: no cover - an old or another C library
        return False
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _hold(directory: Path) -> int | None:
    """Marks `directory` as in use by this process until the descriptor is closed, or the process dies."""
    if fcntl is None:  # pragma: no cover
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # pragma: no cover - a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path, prefix: str) -> None:
    """Removes staging directories whose writer was killed: those that nobody holds."""
    for entry in parent.iterdir():
        if fcntl is None or not entry.name.startswith(prefix) or not entry.is_dir():
            continue
        held = _hold(entry)
        if held is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(held)
