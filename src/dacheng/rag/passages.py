"""A passage: what is found, shown, cited and asked about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Kind = Literal["prose", "code", "table", "list"]
Language = Literal["en", "zh", "other"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of one document under one heading.

    `id` is its number in a store, never used twice there (0 before it is stored). `source` is the document's path from
    the indexed folder, with "/". `heading` is a breadcrumb ("A > B"), for code the qualified name (shutil.copytree).
    `first_line` and `last_line` count from 1 in the document; where a document has no lines they count pages (PDF) or
    paragraphs (docx), see `place`. `key` names the passage by its content, the same after indexing anew.
    """

    id: int
    source: str
    heading: str
    first_line: int
    last_line: int
    text: str
    kind: Kind
    language: Language
    key: str

    @property
    def place(self) -> str:
        """Where it is in its document, for people: "lines 3-9", "page 4"."""
        unit = {"pdf": "page", "docx": "paragraph"}.get(self.source.rpartition(".")[2].lower(), "line")
        if self.first_line == self.last_line:
            return f"{unit} {self.first_line}"
        return f"{unit}s {self.first_line}-{self.last_line}"


def passage_key(source: str, heading: str, text: str) -> str:
    """sha256 hex of source, heading and text."""
    return hashlib.sha256("\0".join((source, heading, text)).encode("utf-8", "surrogatepass")).hexdigest()
