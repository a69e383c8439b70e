"""reStructuredText: sections by their underlines, definitions (.. function::), literal blocks, lists, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dacheng.rag.blocks import Block
from dacheng.rag.readers.plain import Breadcrumb, Line

_ADORNMENT = re.compile(r"^([!-/:-@\[-`{-~])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^(\s*)\.\.\s+([a-zA-Z0-9:_+-]+)::\s*(.*)$")
_DEFINITION = re.compile(
    r"^(?:[a-z]+:)?(?:function|method|class|exception|data|attribute|classmethod|staticmethod|describe|option|module|"
    r"cmdoption|envvar|decorator|property|opcode|macro|type|member|var|term)$"
)
_CODE = frozenset(
    {"code-block", "code", "sourcecode", "literalinclude", "highlight", "doctest", "testcode", "parsed-literal"}
)
_SILENT = frozenset({"index", "toctree", "contents", "image", "figure", "include", "only", "raw", "highlight", "module",
                     "moduleauthor", "sectionauthor", "testsetup", "_", "currentmodule",
                     "py:currentmodule"})  # fmt: skip
_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LITERAL = re.compile(r"``([^`]*)``")
_REFERENCE = re.compile(r"`([^`<]+?)(?:\s*<[^`>]*>)?`__?")
_ITEM = re.compile(r"^\s*(?:[-*+•]|#\.|\d{1,3}[.)])\s+")
_FIELD = re.compile(r"^\s*:[A-Za-z][\w -]{0,30}:(?:\s|$)")
_GRID = re.compile(r"^\s*(?:\+[-=+]+\+|=+(?:\s+=+)+)\s*$")
_RANKS = 100  # below these a definition's heading


def read_rest(text: str) -> Iterator[Block]:
    """The blocks of a document. Roles and references keep their words; comments and page layout have none."""
    return _Rest(text.splitlines()).blocks()


class _Rest:
    def __init__(self, lines: list[str]) -> None:
        self._lines, self._at = lines, 0
        self._breadcrumb = Breadcrumb()
        self._ranks: list[str] = []  # adornments in the order in which they appear

    def blocks(self) -> Iterator[Block]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            directive = _DIRECTIVE.match(line)
            if line.strip():
                self._breadcrumb.enter(_RANKS + _indent(line), "")  # a definition ends with its indentation
            if not line.strip():
                self._at += 1
            elif self._section():
                pass
            elif directive:
                yield from self._directive(directive)
            elif line.lstrip().startswith(".. ") or line.strip() == "..":
                self._skip_body(_indent(line))
            elif _GRID.match(line):
                yield from self._table()
            elif _ITEM.match(line):
                yield Block("list", self._breadcrumb.text, tuple(self._items()))
            else:
                yield from self._paragraph()

    def _line(self, offset: int) -> str:
        at = self._at + offset
        return self._lines[at] if 0 <= at < len(self._lines) else ""

    def _section(self) -> bool:
        """Whether a heading stands here; it is entered."""
        over = _ADORNMENT.match(self._line(0)) and self._line(1).strip() and _ADORNMENT.match(self._line(2))
        title, under = (self._line(1), self._line(2)) if over else (self._line(0), self._line(1))
        marks = _ADORNMENT.match(under)
        if not over and (not title.strip() or title[0].isspace() or _ADORNMENT.match(title) or not marks):
            if _ADORNMENT.match(title) and not _GRID.match(title):  # a transition
                self._at += 1
                return True
            return False
        if marks is None or (len(under.strip()) < 4 and len(title.strip()) > 4):
            return False
        style = ("over " if over else "") + marks.group(1)
        if style not in self._ranks:
            self._ranks.append(style)
        self._breadcrumb.enter(self._ranks.index(style), _words(title))
        self._at += 3 if over else 2
        return True

    def _directive(self, found: re.Match[str]) -> Iterator[Block]:
        indent, name, argument = len(found.group(1)), found.group(2), found.group(3)
        if _DEFINITION.match(name) and argument:
            self._breadcrumb.enter(_RANKS + indent, argument.split("(")[0])
            yield Block("prose", self._breadcrumb.text, ((self._at + 1, _words(argument)),))
            self._at += 1
            self._skip_options()
        elif name in _CODE:
            self._at += 1
            self._skip_options()
            yield from self._literal(indent)
        elif name in _SILENT:
            self._skip_body(indent)
        else:  # note, warning, versionadded, …: their text is text
            if argument:
                self._lines[self._at] = " " * indent + argument
            else:
                self._at += 1
            self._skip_options()

    def _skip_options(self) -> None:
        while _FIELD.match(self._line(0)):
            self._at += 1

    def _skip_body(self, indent: int) -> None:
        self._at += 1
        while self._at < len(self._lines) and (not self._line(0).strip() or _indent(self._line(0)) > indent):
            self._at += 1

    def _literal(self, indent: int) -> Iterator[Block]:
        lines: list[Line] = []
        while self._at < len(self._lines) and (not self._line(0).strip() or _indent(self._line(0)) > indent):
            lines.append((self._at + 1, self._line(0)))
            self._at += 1
        while lines and not lines[-1][1].strip():
            lines.pop()
        while lines and not lines[0][1].strip():
            lines.pop(0)
        if lines:
            yield Block("code", self._breadcrumb.text, tuple(lines))

    def _table(self) -> Iterator[Block]:
        """A grid or simple table: its lines without the rules; the header ends at the second rule."""
        simple = self._line(0).lstrip().startswith("=")
        rows: list[Line] = []
        header = rules = 0
        while self._at < len(self._lines) and (self._line(0).strip() or (simple and rules < 3 and rows)):
            line = self._line(0)
            if _GRID.match(line):
                rules += 1
                if rules == 2 and (simple or "=" in line):
                    header = len(rows)
                if simple and rules == 3:
                    self._at += 1
                    break
            elif line.strip(" |"):
                rows.append((self._at + 1, _words(line).strip()))
            self._at += 1
        if simple and rules == 2:
            header = 0
        if rows:
            yield Block("table", self._breadcrumb.text, tuple(rows), header)

    def _items(self) -> list[Line]:
        items: list[Line] = []
        indent = _indent(self._line(0))
        while self._at < len(self._lines):
            line = self._line(0)
            if line.strip():
                if not _ITEM.match(line) and _indent(line) <= indent:
                    break
                if _DIRECTIVE.match(line):
                    break
                items.append((self._at + 1, _words(line)))
            elif self._line(1).strip() and not (_ITEM.match(self._line(1)) or _indent(self._line(1)) > indent):
                break
            self._at += 1
        return items

    def _paragraph(self) -> Iterator[Block]:
        lines: list[Line] = []
        indent = _indent(self._line(0))
        while self._at < len(self._lines):
            line = self._line(0)
            if not line.strip() or _DIRECTIVE.match(line) or (lines and _ADORNMENT.match(self._line(1))):
                break
            lines.append((self._at + 1, _words(line)))
            self._at += 1
        if lines:
            literal = lines[-1][1].rstrip().endswith("::")
            if literal:
                number, last = lines[-1]
                lines[-1] = (number, last.rstrip()[:-1])
            yield Block("prose", self._breadcrumb.text, tuple(lines))
            if literal and not self._line(0).strip():
                yield from self._literal(indent)
        else:
            self._at += 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _words(text: str) -> str:
    return _REFERENCE.sub(r"\1", _LITERAL.sub(r"\1", _ROLE.sub(r"\1", text)))
