"""Tables in text: CSV and TSV, a row a line, the first row as the header."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from dacheng.rag.blocks import Block

_ROWS = 2000  # of one block
_FIELD = 1 << 17  # characters, as the csv module has it


def read_csv(text: str) -> Iterator[Block]:
    """Comma or semicolon separated, as the first line has more of."""
    first = text.split("\n", 1)[0]
    return _read(text, ";" if first.count(";") > first.count(",") else ",")


def read_tsv(text: str) -> Iterator[Block]:
    """Tab separated."""
    return _read(text, "\t")


def _read(text: str, delimiter: str) -> Iterator[Block]:
    """A row is "a | b | c", as in Markdown. What the csv module refuses (a field without end) ends the table; the rest
    are rows as they stand."""
    lines = text.splitlines()
    reader = csv.reader((line[:_FIELD] for line in lines), delimiter=delimiter)
    header: tuple[int, str] | None = None
    rows: list[tuple[int, str]] = []
    number = 1
    try:
        for row in reader:
            joined = " | ".join(" ".join(cell.split()) for cell in row)
            if joined.strip(" |"):
                if header is None:
                    header = (number, joined)
                else:
                    rows.append((number, joined))
            number = reader.line_num + 1
            if header is not None and len(rows) >= _ROWS:
                yield Block("table", "", (header, *rows), 1)
                rows = []
    except csv.Error:
        rows += [(i, line) for i, line in enumerate(lines[number - 1 :], number) if line.strip()]
    if header is not None and (rows or number <= 3):
        yield Block("table", "", (header, *rows), 1)
