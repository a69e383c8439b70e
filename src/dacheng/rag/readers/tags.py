"""HTML as a stream of texts and tags, in one pass: the standard library's parser takes minutes for 60 kB of "<a "."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]{0,30}")
_QUOTES = re.compile("[\"']")
_RAW = {name: re.compile(f"</{name}", re.I) for name in ("script", "style")}  # their content is no markup


class Token(NamedTuple):
    """line: where it begins. text: of a tag its name in lower case. attributes: as they stand."""

    kind: Literal["text", "open", "close"]
    text: str
    line: int
    attributes: str = ""


def tokens(text: str) -> Iterator[Token]:
    """What is no tag is text; comments, declarations, scripts and styles are left out."""
    at, line, size = 0, 1, len(text)
    while at < size:
        start = text.find("<", at)
        end = size if start < 0 else start
        if end > at:
            yield Token("text", html.unescape(text[at:end]), line)
        if start < 0:
            return
        line += text.count("\n", at, start)
        found_end = _end(text, start)
        end = start + 1 if found_end is None else found_end
        if found_end is None:
            yield Token("text", "<", line)
        else:
            closing = text.startswith("</", start)
            name = _NAME.match(text, start + 1 + closing)
            if name:
                tag = name.group().lower()
                yield Token("close" if closing else "open", tag, line, text[name.end() : end][:2000])
                if tag in _RAW and not closing:
                    found = _RAW[tag].search(text, end)
                    line += text.count("\n", start, end)
                    start, end = end, found.start() if found else size
        line += text.count("\n", start, end)
        at = end


def _end(text: str, start: int) -> int | None:
    """Where what begins with "<" ends; None where that is only the character. What is never closed goes to the end."""
    following = text[start + 1 : start + 2]
    if text.startswith("<!--", start):
        end = text.find("-->", start + 4)
        return len(text) if end < 0 else end + 3
    if not (following.isascii() and (following.isalpha() or following in ("/", "!", "?"))):
        return None
    end, at = text.find(">", start), start
    while end >= 0:  # ">" in a quoted value is no end
        quote = _QUOTES.search(text, at, end)
        if quote is None:
            return end + 1
        closed = text.find(quote.group(), quote.end())
        if closed < 0:
            return end + 1
        at = closed + 1
        end = end if end > closed else text.find(">", closed)
    return len(text)
