"""Blocks, which readers make of a document, and passages of blocks.

A passage never crosses a heading, keeps sentences, list items, table rows and paragraphs of code whole, and is about
as long as an answer's context needs: up to 220 words or 440 Chinese characters, and of equal length where a section
makes several.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dacheng.rag.passages import Kind, Passage, passage_key
from dacheng.rag.scripts import han_count, language_of
from dacheng.rag.sentences import sentence_spans

MAX_SIZE = 220  # words; a Han character counts half a word
_SECTION = 20 * MAX_SIZE  # a section longer than this is cut up piece by piece: memory stays bounded
_CHARACTERS = 8  # of one word at most, with the space after it: a line of code is long though it has few spaces
_FULL_WIDTH = re.compile("[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a list, a table or a piece of code. lines: (number in the document, text) in order. The first
    `header` lines of a table are repeated with each of its parts."""

    kind: Kind
    heading: str
    lines: tuple[tuple[int, str], ...]
    header: int = 0


class _Unit(NamedTuple):
    """What is kept whole. `glue` stands before it where it follows another."""

    text: str
    glue: str
    first: int
    last: int
    kind: Kind
    size: float


def size_of(text: str) -> float:
    """Words, by the spaces between them, a Han character being half a word; at least an eighth of the characters."""
    return max(len(text.split()) + han_count(text) / 2, len(text) / _CHARACTERS)


def passages_of(blocks: Iterable[Block], source: str) -> Iterator[Passage]:
    """The passages of a document, in order; `id` is 0. Empty ones are none."""
    section: list[_Unit] = []
    heading, size = "", 0.0
    for block in blocks:
        if section and (block.heading != heading or block.kind == "table" or size > _SECTION):
            yield from _pack(section, heading, source)
            section, size = [], 0.0
        heading = block.heading
        if block.kind == "table":
            yield from _table(block, source)
            continue
        for unit in _units(block):
            section.append(unit)
            size += unit.size
            if size > _SECTION:
                yield from _pack(section, heading, source)
                section, size = [], 0.0
    yield from _pack(section, heading, source)


def _pack(units: list[_Unit], heading: str, source: str) -> Iterator[Passage]:
    """Parts of about equal size, none above MAX_SIZE."""
    total = sum(unit.size for unit in units)
    left = max(1, int(-(-total // MAX_SIZE)))
    target = total / left
    part: list[_Unit] = []
    size = 0.0
    for unit in units:
        if part and (size + unit.size > MAX_SIZE or (left > 1 and size + unit.size / 2 > target)):
            yield from _passage(part, heading, source)
            part, size, left = [], 0.0, left - 1
        part.append(unit)
        size += unit.size
    yield from _passage(part, heading, source)


def _passage(units: list[_Unit], heading: str, source: str) -> Iterator[Passage]:
    text = "".join(unit.glue * (i > 0) + unit.text for i, unit in enumerate(units)).strip("\n")
    if not text.strip():
        return
    kinds: dict[Kind, float] = {}
    for unit in units:
        kinds[unit.kind] = kinds.get(unit.kind, 0) + unit.size
    kind = max(kinds, key=lambda name: kinds[name])
    yield _make(source, heading, units[0].first, units[-1].last, text, kind)


def _make(source: str, heading: str, first: int, last: int, text: str, kind: Kind) -> Passage:
    return Passage(0, source, heading, first, last, text, kind, language_of(text), passage_key(source, heading, text))


def _table(block: Block, source: str) -> Iterator[Passage]:
    header, rows = block.lines[: block.header], block.lines[block.header :]
    head = [text for _, text in header if size_of(text) <= MAX_SIZE / 2]
    room = MAX_SIZE - size_of("\n".join(head))
    first = header[0][0] if header else 0
    part: list[tuple[int, str]] = []
    size = 0.0
    for number, text in rows or header:
        for piece in _pieces(text, room) if size_of(text) > room else (text,):
            if part and size + size_of(piece) > room:
                yield _make_table(part, head if rows else [], first, block.heading, source)
                part, size, first = [], 0.0, 0
            part.append((number, piece))
            size += size_of(piece)
    if part:
        yield _make_table(part, head if rows else [], first, block.heading, source)


def _make_table(part: list[tuple[int, str]], head: list[str], first: int, heading: str, source: str) -> Passage:
    """The lines cited are those of the rows; of the first part (first > 0) those of the header too."""
    text = "\n".join([*head, *(text for _, text in part)])
    return _make(source, heading, first or part[0][0], part[-1][0], text, "table")


# --- units ------------------------------------------------------------------------------------------------------------
def _units(block: Block) -> Iterator[_Unit]:
    if block.kind == "prose":
        yield from _sentences(block)
        return
    units = _paragraphs(block) if block.kind == "code" else ((number, number, text) for number, text in block.lines)
    glue = "\n\n"
    for first, last, text in units:
        size = size_of(text)
        if size <= MAX_SIZE:
            yield _Unit(text, glue, first, last, block.kind, size)
        else:
            for piece in _pieces(text, MAX_SIZE):
                yield _Unit(piece, glue, first, last, block.kind, size_of(piece))
        glue = "\n"


def _paragraphs(block: Block) -> Iterator[tuple[int, int, str]]:
    """Code between blank lines where that is short enough, else its lines. A blank line goes with what it follows."""
    group: list[tuple[int, str]] = []
    for line in (*block.lines, (0, None)):
        if group and (line[1] is None or (line[1].strip() and not group[-1][1].strip())):
            text = "\n".join(text for _, text in group)
            if size_of(text) <= MAX_SIZE / 2:
                yield group[0][0], group[-1][0] - _blank_tail(group), text
            else:
                yield from ((number, number, text) for number, text in group)
            group = []
        if line[1] is not None:
            group.append((line[0], line[1]))


def _blank_tail(group: list[tuple[int, str]]) -> int:
    """How far the last line with something in it is from the last one."""
    full = [number for number, text in group if text.strip()]
    return group[-1][0] - full[-1] if full else 0


def _sentences(block: Block) -> Iterator[_Unit]:
    """A paragraph's lines joined, then cut into sentences, each with the lines that it came from."""
    starts: list[int] = []
    numbers: list[int] = []
    parts: list[str] = []
    length = 0
    for number, line in block.lines:
        line = line.strip()
        if not line:
            continue
        between = "" if not parts or _close(parts[-1][-1], line[0]) else " "
        starts.append(length + len(between))
        numbers.append(number)
        parts.append(between + line)
        length += len(between) + len(line)
    text = "".join(parts)
    glue = "\n\n"
    for start, end in sentence_spans(text):
        first, last = (numbers[bisect_right(starts, at) - 1] for at in (start, end - 1))
        piece = text[start:end]
        size = size_of(piece)
        if size <= MAX_SIZE:
            yield _Unit(piece, glue, first, last, block.kind, size)
        else:
            at = start
            for cut in _pieces(piece, MAX_SIZE):
                at = text.index(cut, at)
                first, last = (numbers[bisect_right(starts, x) - 1] for x in (at, at + len(cut) - 1))
                yield _Unit(cut, glue, first, last, block.kind, size_of(cut))
                at, glue = at + len(cut), " "
        glue = "" if end < len(text) and not text[end].isspace() else " "


def _close(before: str, after: str) -> bool:
    """No space was meant where a line ended between two characters of a script without spaces."""
    return bool(_FULL_WIDTH.match(before) and _FULL_WIDTH.match(after))


def _pieces(text: str, size: float) -> Iterator[str]:
    """A text that is too long to be kept whole, cut at spaces, and within a word where there is none."""
    step, at = max(1, int(size)) * _CHARACTERS, 0
    while at < len(text):
        cut = text[at : at + step]
        if size_of(cut) > size:
            low, high = 1, len(cut)
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if size_of(cut[:middle]) <= size else (low, middle - 1)
            cut = cut[:low]
        end = at + len(cut)
        if end < len(text) and not text[end].isspace():
            space = cut.rfind(" ")
            if space > len(cut) // 2:
                cut = cut[:space]
                end = at + space
        if cut.strip():
            yield cut.strip()
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
