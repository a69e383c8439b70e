"""Plain text: paragraphs, and headings by underlines, numbering, capitals or chapter lines (English and Chinese)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from dacheng.rag.blocks import Block

Line = tuple[int, str]

_UNDERLINE = re.compile(r"^\s*([=\-~*#^])\1{2,}\s*$")
_NUMBERED = re.compile(
    r"^(?:(?:[Cc]hapter|[Pp]art|[Aa]ppendix|[Ss]ection)\s+)?"
    r"(?:(\d{1,3}(?:\.\d{1,3}){0,4})[.)]?|[IVXLC]{1,7}[.)]|[A-Z][.)])\s+[A-Z\u4e00-\u9fff]"
)
_CHAPTER_EN = re.compile(
    r"^\s*(?:chapter|part|book|appendix|act|scene)\s+(?:\d{1,3}|[ivxlc]{1,8}|[A-Z])\b.{0,60}$", re.I
)
_CHAPTER_ZH = re.compile(
    r"^\s*(?:正文\s*)?第\s*[0-9０-９一二三四五六七八九十百千零〇两]{1,7}\s*([部编卷篇集册章回节])(?![分课的])(?:\s|[:：]|$|.{0,40}$)"
)
_LIST_ZH = re.compile(r"^[一二三四五六七八九十]{1,3}、.{1,30}$")
_RANK_ZH = {"部": 1, "编": 1, "卷": 1, "集": 1, "册": 1, "篇": 2, "章": 3, "回": 3, "节": 4}
_CAPITALS = re.compile(r"^[A-Z][A-Z0-9 ,'&:/()\-]{2,60}$")
_ITEM = re.compile(r"^\s*(?:[-*•·+]|\d{1,3}[.)]|[（(]\d{1,3}[)）])\s+\S")
_CLOSED = re.compile(r"[.!?;,。！？；，、：…”」]$")
_MAX_HEADING = 90
_INDENTED = ("    ", "\t")


def read_plain(text: str) -> Iterator[Block]:
    """The blocks of a text."""
    yield from read_lines(enumerate(text.splitlines(), 1))


def read_lines(lines: Iterable[Line]) -> Iterator[Block]:
    """The blocks of numbered lines (a PDF's lines carry the number of their page)."""
    breadcrumb = Breadcrumb()
    paragraph: list[Line] = []
    blank = True
    for number, line, following in _with_next(lines):
        if not line.strip():
            yield from _flush(paragraph, breadcrumb.text)
            paragraph, blank = [], True
            continue
        if _UNDERLINE.match(line):
            if not paragraph and blank:  # a rule between sections
                continue
            title = paragraph.pop() if paragraph else None
            yield from _flush(paragraph, breadcrumb.text)
            paragraph = []
            if title is not None and len(title[1].strip()) <= _MAX_HEADING:
                breadcrumb.enter(_underline_rank(line), title[1])
            elif title is not None:
                paragraph = [title]
            blank = True
            continue
        rank = _rank(line, blank, following)
        if rank is not None:
            yield from _flush(paragraph, breadcrumb.text)
            paragraph, blank = [], True
            breadcrumb.enter(rank, line)
            continue
        if paragraph and (_begins(line, paragraph[-1][1])):
            yield from _flush(paragraph, breadcrumb.text)
            paragraph = []
        paragraph.append((number, line))
        blank = False
    yield from _flush(paragraph, breadcrumb.text)


class Breadcrumb:
    """The headings above the present place: `text` is "A > B"."""

    def __init__(self, *roots: str) -> None:
        self._open: list[tuple[float, str]] = [(-1.0, clean(root)) for root in roots if root.strip()]
        self.text = " > ".join(title for _, title in self._open)

    def enter(self, rank: float, title: str) -> None:
        """A heading closes those of its own and of lower rank (a greater number)."""
        while self._open and self._open[-1][0] >= rank:
            self._open.pop()
        if title.strip() and (not self._open or self._open[-1][1] != clean(title)):  # a page's title is often its h1
            self._open.append((rank, clean(title)))
        self.text = " > ".join(title for _, title in self._open)


def clean(title: str) -> str:
    """White space run together, at most 200 characters."""
    return " ".join(title.split())[:200]


def _with_next(lines: Iterable[Line]) -> Iterator[tuple[int, str, str]]:
    previous: Line | None = None
    for number, line in lines:
        if previous is not None:
            yield (*previous, line)
        previous = (number, line)
    if previous is not None:
        yield (*previous, "")


def _underline_rank(line: str) -> float:
    return 10 + "=#*-~^".index(line.strip()[0])


def _rank(line: str, blank: bool, following: str) -> float | None:
    """How high a heading this line is (small is high); None where it is none."""
    text = line.strip()
    if len(text) > _MAX_HEADING:
        return None
    chapter = _CHAPTER_ZH.match(line)
    if chapter and not text.endswith(("。", "，", "；", "”")):
        return float(_RANK_ZH[chapter.group(1)])
    if not blank or _CLOSED.search(text):
        return None
    if _CHAPTER_EN.match(line):
        return 3.0
    if following.strip():  # what follows is a heading only where it stands alone
        return 20.0 if _CAPITALS.match(line) and following.startswith((" ", "\t")) else None
    if _LIST_ZH.match(text):
        return 5.0
    numbered = _NUMBERED.match(line)
    if numbered and not line[0].isspace():
        return 4.0 + (numbered.group(1) or "").count(".")
    return 20.0 if _CAPITALS.match(line) else None


def _begins(line: str, before: str) -> bool:
    """Whether a line begins a paragraph of its own though no blank line stands before it."""
    if _ITEM.match(line) or line.startswith("\u3000\u3000"):
        return True
    return line.startswith(_INDENTED) and not before.startswith((" ", "\t"))


def _flush(paragraph: list[Line], heading: str) -> Iterator[Block]:
    if not paragraph:
        return
    if _ITEM.match(paragraph[0][1]):
        first, *rest = paragraph
        joined = " ".join([first[1].strip(), *(line.strip() for _, line in rest)])
        yield Block("list", heading, ((first[0], joined),)) if not rest else Block("prose", heading, tuple(paragraph))
    else:
        yield Block("prose", heading, tuple(paragraph))
