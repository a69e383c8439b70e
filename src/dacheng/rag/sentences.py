"""Sentences of a passage: prose in English and Chinese, docstrings with their lists, signatures and examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_SENTENCES = 400  # of one passage: it is a few hundred words
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Mr|Mrs|Dr|St|No|Fig|Jr|al|approx|resp)|\b[A-Z])\.$")
_END = re.compile(r"[.!?。！？；…]+[\"')\]”’」』）]*")
_SPACE = re.compile(r"\s*")
_BREAK = re.compile(r"^\s*(?:$|>>>|\.\.\. |[-*•] |\d+[.)] |#{1,6} |\||:\w+)")
_RULE = re.compile(r"\s*(?:[=~*#_-]{3,}\s*)+")
_ALONE = re.compile(r"\s*(?:>>>|\.\.\. |\||#{1,6} |[=~*#_-]{3,}|[\w.]+\(.*\)(?: *->.*)?:?$)")
_BLANK = re.compile(r"\s+")
_WIDE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
_BETWEEN_HAN = re.compile(rf"(?<={_WIDE}) (?={_WIDE})")


class Sentence(NamedTuple):
    """A sentence in one line (white space run together). is_example: a line of an
    interactive session or a row of a table."""

    text: str
    is_example: bool = False


def sentences(text: str) -> list[Sentence]:
    """The sentences in order. Lines that were only wrapped are joined; an empty line, a bullet, a row of a table and a
    line of an interactive session each begin a new one. At most MAX_SENTENCES."""
    found: list[Sentence] = []
    for block in _blocks(text):
        if block.startswith((">>>", "... ", "|")):
            found.append(Sentence(block, True))
        else:
            found.extend(Sentence(sentence) for sentence in _split(block))
        if len(found) >= MAX_SENTENCES:
            break
    return found[:MAX_SENTENCES]


def one_line(text: str) -> str:
    """White space run together; none between two Han characters that a line break parted."""
    joined = _BLANK.sub(" ", text).strip()
    return _BETWEEN_HAN.sub("", joined)


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence of a paragraph in one line, without the space between them."""
    start = 0
    for match in _END.finditer(text):
        mark = text[match.start()]
        if mark in ".!?" and not text[match.end() : match.end() + 1].isspace():  # 3.14, os.path
            continue
        if mark == "." and _ABBREVIATION.search(text, max(start, match.end() - 8), match.end()):
            continue
        yield start, match.end()
        start = _SPACE.match(text, match.end()).end()  # type: ignore[union-attr]
    if start < len(text):
        yield start, len(text)


def _blocks(text: str) -> list[str]:
    """Paragraphs, bullets and rows, each in one line."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        alone = bool(_ALONE.match(line))
        if alone or _BREAK.match(line):
            blocks.append([])
        if line.strip() and not _RULE.fullmatch(line):
            blocks[-1].append(line.strip())
        if alone:
            blocks.append([])
    return [one_line("\n".join(block)) for block in blocks if block]


def _split(block: str) -> list[str]:
    return [block[start:end] for start, end in sentence_spans(block)]
