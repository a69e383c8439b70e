"""Markdown: headings, paragraphs, lists, fenced and indented code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dacheng.rag.blocks import Block
from dacheng.rag.readers.plain import Breadcrumb, Line

_HEADING = re.compile(r"^ {0,3}(#{1,6})(?:\s+(.*?))?\s*#*\s*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d{1,9}[.)])\s+")
_RULE = re.compile(r"^ {0,3}([-*_])(?:\s*\1){2,}\s*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)\s*$")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{1,}:?\s*(?:\|\s*:?-{1,}:?\s*)*\|?\s*$")
_MAX_LINE = 20_000  # characters in which comments and links are looked for
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"]*\")?\)")


def read_markdown(text: str) -> Iterator[Block]:
    """The blocks of a document. Of a link or picture its words are kept, not its address."""
    return _Markdown(text.splitlines()).blocks()


class _Markdown:
    def __init__(self, lines: list[str]) -> None:
        self._lines, self._at = lines, 0
        self._breadcrumb = Breadcrumb()

    def blocks(self) -> Iterator[Block]:
        self._skip_front_matter()
        while self._at < len(self._lines):
            line = self._lines[self._at]
            heading, fence = _HEADING.match(line), _FENCE.match(line)
            if heading:
                self._breadcrumb.enter(len(heading.group(1)), _words(heading.group(2) or ""))
                self._at += 1
            elif fence:
                yield from self._fenced(fence.group(1))
            elif not line.strip() or _RULE.match(line):
                self._at += 1
            elif self._is_table():
                yield self._table()
            elif _ITEM.match(line):
                yield self._list()
            elif line.startswith(("    ", "\t")):
                yield self._block("code", self._while(lambda text: text.startswith(("    ", "\t")) or not text.strip()))
            else:
                yield from self._paragraph()

    def _skip_front_matter(self) -> None:
        if self._lines and self._lines[0].rstrip() == "---" and "---" in (line.rstrip() for line in self._lines[1:50]):
            self._at = [line.rstrip() for line in self._lines].index("---", 1) + 1

    def _block(self, kind: str, lines: list[Line], header: int = 0) -> Block:
        return Block(kind, self._breadcrumb.text, tuple(lines), header)  # type: ignore[arg-type]

    def _while(self, belongs) -> list[Line]:  # type: ignore[no-untyped-def]
        found: list[Line] = []
        while self._at < len(self._lines) and belongs(self._lines[self._at]):
            found.append((self._at + 1, self._lines[self._at]))
            self._at += 1
        while found and not found[-1][1].strip():
            found.pop()
        return found

    def _fenced(self, fence: str) -> Iterator[Block]:
        """Up to the closing fence, or the end of the document where it was forgotten."""
        self._at += 1
        closed = re.compile(rf"^ {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}\s*$")
        lines = self._while(lambda text: not closed.match(text))
        self._at += 1
        if lines:
            yield self._block("code", lines)

    def _is_table(self) -> bool:
        following = self._lines[self._at + 1] if self._at + 1 < len(self._lines) else ""
        return "|" in self._lines[self._at] and "-" in following and bool(_TABLE_RULE.match(following))

    def _table(self) -> Block:
        lines = self._while(lambda text: "|" in text)
        return self._block("table", [(n, _words(line)) for n, line in lines], header=2)

    def _list(self) -> Block:
        """Each item a line of its own, with the lines that go on with it."""
        items: list[Line] = []
        blank = False
        while self._at < len(self._lines):
            line = self._lines[self._at]
            indented = line[:1] in (" ", "\t")
            if _ITEM.match(line) and not _RULE.match(line):
                items.append((self._at + 1, _words(line).rstrip()))
            elif not line.strip():
                blank = True
                self._at += 1
                continue
            elif (blank and not indented) or _HEADING.match(line) or _FENCE.match(line):
                break
            else:
                items.append((self._at + 1, _words(line).rstrip()))
            blank = False
            self._at += 1
        return self._block("list", items)

    def _paragraph(self) -> Iterator[Block]:
        found: list[Line] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            under = _UNDERLINE.match(line)
            if under and found:
                if found[:-1]:
                    yield self._block("prose", found[:-1])
                self._breadcrumb.enter(1 if under.group(1)[0] == "=" else 2, found[-1][1])
                self._at += 1
                return
            if not line.strip() or _HEADING.match(line) or _FENCE.match(line):
                break
            if found and (_ITEM.match(line) or _RULE.match(line) or self._is_table()):
                break
            found.append((self._at + 1, _words(line)))
            self._at += 1
        if found:
            yield self._block("prose", found)


def _words(text: str) -> str:
    """A line without comments and addresses."""
    while len(text) < _MAX_LINE and (start := text.find("<!--")) >= 0 and (end := text.find("-->", start)) >= 0:
        text = text[:start] + text[end + 3 :]
    return _LINK.sub(r"\1", text) if len(text) < _MAX_LINE else text
