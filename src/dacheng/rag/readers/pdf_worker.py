"""The process that takes PDFs apart: what a hostile file does to it (endless loops, memory) ends with it.

Frames on stdin and stdout: eight bytes of length (big-endian), then a PDF, or the JSON that came of it:
{"status": "ok" | "encrypted" | "broken", "lines": [[page, line]…], "broken_pages": [page…], "left_out": pages}.
It ends where stdin ends.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
from io import BytesIO
from typing import IO, Any

LENGTH = struct.Struct(">Q")
MAX_PAGES = 5000
MAX_CHARACTERS = 32 << 20  # of one document
_MAX_PAGE = 1 << 20  # characters
_MEMORY = 4 << 30  # of this process


def text_of(data: bytes) -> dict[str, Any]:
    """The lines of one PDF with their pages, or why there are none. Never raises for what is in the file."""
    import pypdf

    found: dict[str, Any] = {"status": "ok", "lines": [], "broken_pages": [], "left_out": 0}
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {**found, "status": "encrypted"}
        _read_pages(reader, found)
    except pypdf.errors.DependencyError:
        return {**found, "status": "encrypted"}
    except Exception:  # a malformed file can make it raise anything at all
        return {**found, "status": "broken"}
    return found


def _read_pages(reader: Any, found: dict[str, Any]) -> None:
    room = MAX_CHARACTERS
    for number, page in enumerate(reader.pages, 1):
        if number > MAX_PAGES or room <= 0:
            found["left_out"] = len(reader.pages) - number + 1
            return
        try:
            text = page.extract_text()[: min(_MAX_PAGE, room)]
        except Exception:  # one broken page leaves the others
            found["broken_pages"].append(number)
            continue
        room -= len(text)
        found["lines"] += [(number, line) for line in text.encode("utf-8", "replace").decode().splitlines()]


def read_frame(stream: IO[bytes]) -> bytes | None:
    """None where the stream has ended."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(header)[0])


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def main() -> None:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells every flaw of a file on stderr
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    while (data := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, json.dumps(text_of(data)).encode())


if __name__ == "__main__":
    main()
