"""PDF by pypdf (extra `rag`): the text of its pages. Lines are numbered by their page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from dacheng.data.streams import note
from dacheng.rag.blocks import Block
from dacheng.rag.readers.plain import Line, read_lines
from dacheng.records import Drops

MAX_PAGES = 5000
_MAX_PAGE = 1 << 20  # characters of one page


def read_pdf(data: bytes, name: str, drops: Drops) -> Iterator[Block]:
    """The blocks of a document; nothing, and a drop, where it is encrypted, broken, or pypdf is not installed.

    A file that is only pictures of pages has no text and comes to nothing too.
    """
    try:
        import pypdf
    except ImportError:
        drops.drop("needs_pypdf", len(data), name)  # pip install 'dacheng[rag]'
        return
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells every flaw of a file on stderr
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            drops.drop("encrypted_pdf", len(data), name)
            return
        lines = list(_lines(reader, name, drops))
    except pypdf.errors.DependencyError:
        drops.drop("encrypted_pdf", len(data), name)
        return
    except Exception:  # a malformed file can make it raise anything at all
        drops.drop("broken_pdf", len(data), name)
        return
    yield from read_lines(lines)


def _lines(reader: Any, name: str, drops: Drops) -> Iterator[Line]:
    """A page ends no paragraph: a sentence may run on over it."""
    for number, page in enumerate(reader.pages, 1):
        if number > MAX_PAGES:
            note(drops, "pages_left_out", name, len(reader.pages) - MAX_PAGES)
            return
        try:
            text = page.extract_text()
        except Exception:  # one broken page leaves the others
            note(drops, "broken_page", f"{name}:{number}")
            continue
        for line in text[:_MAX_PAGE].encode("utf-8", "replace").decode().splitlines():
            yield number, line
