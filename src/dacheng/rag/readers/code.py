"""Code and data in other languages: pieces between blank lines, as many together as a passage holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dacheng.rag.blocks import Block

_PIECE = 400  # lines
_SIGN = re.compile(r"[{};=<>()\[\]]|^[ \t]*(?:#include|import |def |fn |func |class |#!)", re.M)


def read_code(text: str) -> Iterator[Block]:
    """Blocks of at most some hundred lines; their blank lines are where passages may end."""
    lines = list(enumerate(text.splitlines(), 1))
    for start in range(0, len(lines), _PIECE):
        yield Block("code", "", tuple(lines[start : start + _PIECE]))


def looks_like_code(text: str) -> bool:
    """Of a file without a suffix: more signs of code than one in three lines."""
    sample = text[:20_000]
    return len(_SIGN.findall(sample)) * 3 > sample.count("\n") + 1
