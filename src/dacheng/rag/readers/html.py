"""HTML: title, headings, paragraphs, lists, tables, code. Scripts, styles, navigation and forms have no text; where a
page says which part is its main one, only that part is read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dacheng.rag.blocks import Block
from dacheng.rag.readers.plain import Breadcrumb, Line, clean
from dacheng.rag.readers.tags import tokens

_SKIPPED = frozenset([
    "script", "style", "noscript", "template", "svg", "math", "nav", "footer", "aside", "form", "button", "select",
    "iframe", "object",
])  # fmt: skip
_HEADINGS = {f"h{i}": i for i in range(1, 7)}
_BREAKS = frozenset([
    "p", "div", "section", "article", "main", "header", "ul", "ol", "dl", "li", "dt", "dd", "blockquote", "pre",
    "table", "caption", "tr", "td", "th", "figure", "figcaption", "hr", "body", "summary", "details", "address",
])  # fmt: skip
_VOID = frozenset([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
])  # fmt: skip
_ROLE = re.compile(r"role=[\"']?main", re.I)
_MAIN = re.compile(r"<(?:main|article)\b|role=[\"']main", re.I)


def read_html(text: str) -> Iterator[Block]:
    """The blocks of a page; lines are those of its source."""
    if _MAIN.search(text):
        found = _read(text, only_main=True)
        if found:  # else it stood in a comment
            return iter(found)
    return iter(_read(text, only_main=False))


def _read(text: str, *, only_main: bool) -> list[Block]:
    page = _Page(only_main)
    for kind, value, line, attributes in tokens(text):
        page.line = line
        if kind == "text":
            page.text(value)
        elif kind == "open":
            page.open(value, attributes)
        else:
            page.close(value)
    page.flush()
    return page.found


class _Page:
    def __init__(self, only_main: bool) -> None:
        self.line = 1
        self.found: list[Block] = []
        self._breadcrumb = Breadcrumb()
        self._only_main, self._main = only_main, 0
        self._skip: str | None = None  # the element whose text is not read, and how often it is open
        self._skipped = 0
        self._pre = self._title = False
        self._heading: int | None = None
        self._lines: list[Line] = []
        self._items: list[Line] = []  # of the list that is open
        self._lists = 0
        self._cells: list[str] | None = None  # of the row that is open
        self._rows: list[Line] = []
        self._header = self._tables = 0

    # --- tokens -------------------------------------------------------------------------------------------------------
    def open(self, tag: str, attributes: str) -> None:
        if self._skip is not None:
            self._skipped += tag == self._skip and tag not in _VOID
            return
        if tag in _SKIPPED:
            self._skip, self._skipped = tag, 1
            return
        if tag in ("main", "article") or (attributes and _ROLE.search(attributes)):
            self._main += 1
        if tag == "br":
            self._text("\n")
        elif tag == "title":
            self._title = True
            self._lines = []
        elif tag in _HEADINGS:
            self.flush()
            self._heading = _HEADINGS[tag]
        elif tag in _BREAKS:
            self._open(tag)

    def close(self, tag: str) -> None:
        if self._skip is not None:
            self._skipped -= tag == self._skip
            if self._skipped <= 0:
                self._skip = None
            return
        if tag == "title" and self._title:
            self._title = False
            title, self._lines = self._joined(), []
            self._breadcrumb = Breadcrumb(title)
        elif tag in _HEADINGS and self._heading is not None:
            title, self._lines = self._joined(), []
            if self._readable():
                if title and self._heading == 1 and self._breadcrumb.text.startswith(clean(title)):
                    self._breadcrumb = Breadcrumb()  # the page's title is "heading - name of the site"
                self._breadcrumb.enter(self._heading, title)
            self._heading = None
        elif tag in _BREAKS:
            self._close(tag)
        if tag in ("main", "article"):
            self._main = max(0, self._main - 1)

    def text(self, data: str) -> None:
        if self._skip is None:
            self._text(data)

    # --- blocks -------------------------------------------------------------------------------------------------------
    def _readable(self) -> bool:
        return not self._only_main or self._main > 0

    def _text(self, data: str) -> None:
        if not (self._title or self._readable()):
            return
        first = self.line
        for offset, line in enumerate(data.split("\n")):
            if offset == 0 and self._lines and (self._lines[-1][0] == first or self._pre):
                self._lines[-1] = (self._lines[-1][0], self._lines[-1][1] + line)
            else:
                self._lines.append((first + offset, line))

    def _open(self, tag: str) -> None:
        if tag == "table":
            self.flush()
            self._tables += 1
            self._rows, self._header = [], 0
        elif tag in ("td", "th") and self._tables:
            self._end_cell()
            if tag == "th" and not self._rows:
                self._header = 1
        elif tag == "tr" and self._tables:
            self._end_row()
            self._cells = []
        elif self._tables:
            self._text(" ")
        elif tag in ("ul", "ol", "dl"):
            self._end_block()
            self._lists += 1
        elif tag in ("li", "dt", "dd"):
            self._end_block()
        elif tag == "pre":
            self._end_block()
            self._pre = True
        else:
            self._end_block()

    def _close(self, tag: str) -> None:
        if tag == "table" and self._tables:
            self._end_row()
            self._tables -= 1
            if self._rows and not self._tables:
                self.found.append(Block("table", self._breadcrumb.text, tuple(self._rows), self._header))
                self._rows = []
        elif tag in ("td", "th", "tr") and self._tables:
            self._end_cell() if tag != "tr" else self._end_row()
        elif self._tables:
            self._text(" ")
        elif tag in ("ul", "ol", "dl") and self._lists:
            self._end_block()
            self._lists -= 1
            if not self._lists:
                self._end_list()
        else:
            self._end_block()
            if tag == "pre":
                self._pre = False

    def _end_cell(self) -> None:
        if self._cells is not None and self._lines:
            self._cells.append(self._joined())
        elif self._lines and self._joined():
            self._cells = [self._joined()]
        self._lines = []

    def _end_row(self) -> None:
        self._end_cell()
        if self._cells and any(self._cells):
            self._rows.append((self.line, " | ".join(self._cells)))
        self._cells = None

    def _end_block(self) -> None:
        lines, self._lines = self._lines, []
        if not any(line.strip() for _, line in lines):
            return
        if self._pre:
            while lines and not lines[0][1].strip():
                lines = lines[1:]
            self.found.append(Block("code", self._breadcrumb.text, tuple(lines)))
            return
        kept = [(number, " ".join(line.split())) for number, line in lines if line.strip()]
        if self._lists:
            self._items.append((kept[0][0], "- " + " ".join(line for _, line in kept)))
        else:
            self.found.append(Block("prose", self._breadcrumb.text, tuple(kept)))

    def _end_list(self) -> None:
        if self._items:
            self.found.append(Block("list", self._breadcrumb.text, tuple(self._items)))
        self._items = []

    def _joined(self) -> str:
        return " ".join(" ".join(line for _, line in self._lines).split())

    def flush(self) -> None:
        """What is still open where a heading or the end of the page comes."""
        if self._tables:
            self._tables = 1
            self._close("table")
        self._end_block()
        self._end_list()
        self._lists, self._pre = 0, False
