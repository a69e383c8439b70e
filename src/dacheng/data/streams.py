"""Bytes of a file, compressed or not, as bounded lines and as text; what cannot be read is counted or an error."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from dacheng.errors import DachengError, DamagedFile, MissingExtra
from dacheng.records import Drops

COMPRESSED = (".gz", ".zst")


class ZstdReader(io.RawIOBase):
    """Zstandard frames, one after another, as a readable stream.

    The library's own stream reader ends quietly where a file was cut off; here that is an EOFError. A read is fed 4 KiB
    of input at a time: a block of 128 KiB can come from 4 bytes, so that one read yields 128 MiB at the very most.
    """

    _FEED = 4096

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._file, self._context = file, zstandard.ZstdDecompressor()
        self._frame = self._context.decompressobj()
        self._fed = self._taken = 0  # bytes fed to this frame; bytes of _ready already handed out
        self._pending = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._taken == len(self._ready):
            if not self._decompress():
                return 0
        chunk = memoryview(self._ready)[self._taken : self._taken + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._taken += len(chunk)
        return len(chunk)

    def _decompress(self) -> bool:
        """Refills `_ready` (it may stay empty); False at the end of the file."""
        data = self._pending or self._file.read(self._FEED)
        if not data:
            if self._fed:
                raise EOFError("the last zstandard frame is cut off")
            return False
        try:
            self._ready, self._taken = self._frame.decompress(data), 0
        except self._error as error:
            raise OSError(str(error)) from error
        self._fed, self._pending = self._fed + len(data), b""
        if self._frame.eof:
            self._pending, self._fed = self._frame.unused_data, 0
            self._frame = self._context.decompressobj()
        return True


@contextlib.contextmanager
def open_bytes(path: Path, raw: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file (.gz and .zst by name). `raw`: the file if already open, so that the caller can
    follow its position.

    Raises MissingExtra for .zst without zstandard, DamagedFile where the compressed data is cut off or altered.
    """
    with contextlib.ExitStack() as stack:
        file = raw if raw is not None else stack.enter_context(path.open("rb"))
        try:
            if path.suffix == ".gz":
                yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")))
            elif path.suffix == ".zst":
                try:
                    import zstandard  # noqa: F401
                except ImportError:
                    raise MissingExtra("zstandard", "data") from None
                yield cast(BinaryIO, stack.enter_context(io.BufferedReader(ZstdReader(file), 1 << 20)))
            else:
                yield file
        except (EOFError, zlib.error, OSError) as error:
            if path.suffix not in COMPRESSED:
                raise
            raise DamagedFile(
                f"the compressed file is cut off or damaged: {error}",
                field="path",
                value=str(path),
                remedy="fetch or make the file again",
            ) from error


def bounded_lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(line number from 1, the line without its end, its size in bytes). A line of more than `limit` bytes is None, and
    is skipped without being held in memory."""
    number = 0
    while line := stream.readline(limit + 2):
        number += 1
        size = len(line)
        if line.endswith(b"\n"):
            line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
        elif len(line) > limit:
            while rest := stream.readline(1 << 16):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield number, (line if len(line) <= limit else None), size


def decode(data: bytes, where: str, *, encoding: str, bad_bytes: str, drops: Drops) -> str | None:
    """Text of `data`; None if it was dropped.

    bad_bytes: "replace" puts U+FFFD for what is not `encoding`, counted as altered; "drop" counts the record as
    dropped; "error" raises DachengError. `where` (file:line) is kept as the example of its reason. Data that is more
    than a tenth replacement characters is no text, and is dropped in any case.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if bad_bytes == "error":
            raise DachengError(
                f"{where}: not {encoding}: {error.reason} at byte {error.start}",
                field="bad_bytes",
                value=data[error.start : error.start + 8],
                remedy="set encoding to the file's own, or bad_bytes to replace or drop",
            ) from None
    if bad_bytes == "drop":
        drops.drop(f"not_{encoding}", len(data), where)
        return None
    text = data.decode(encoding, "replace")
    if text.count("\ufffd") * 10 > len(text):
        drops.drop("not_text", len(data), where)
        return None
    note(drops, "bad_bytes_replaced", where)
    return text


def note(drops: Drops, reason: str, where: str, count: int = 1) -> None:
    """Counts an alteration and keeps the first place where it happened."""
    drops.alter(reason, count)
    drops.examples.setdefault(reason, where)
