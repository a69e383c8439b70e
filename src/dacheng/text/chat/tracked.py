"""A string that remembers, for every character, who wrote it: the template, or which field of which message.

A chat template mixes its own text with the user's. Afterwards two questions need an answer for each character: may it
be a part of a special token (only what the template wrote may), and does it belong to what the assistant said? A
`Tracked` goes through a template like any str and keeps the answer through +, slices, strip, split, replace and join.
Whatever else makes a str out of it passes through `weld`, which attributes all of the result to the sources: the
answer may get coarser, never lost.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

TEMPLATE = 0  # written by the template; other sources are numbered from 1 by the caller
MIXED = (1 << 29) - 1  # several sources, and nobody knows which character is whose
GENERATED = 1 << 29  # this bit is set on top: the character was written inside {% generation %}
Runs = tuple[tuple[int, int], ...]


class Tracked(str):
    """`_runs`: (length, source) of each stretch with one source; the lengths sum to len(self), none is zero."""

    __slots__ = ("_runs",)
    _runs: Runs

    def __new__(cls, text: str, runs: Iterable[tuple[int, int]] | int) -> Tracked:
        made = str.__new__(cls, text)
        made._runs = ((len(text), runs),) if isinstance(runs, int) else tuple(runs)
        if not text:
            made._runs = ()
        return made

    def __str__(self) -> str:  # so that str(x), which Jinja writes around every output, keeps the sources
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tracked, (str.__str__(self), self._runs))

    # --- joining ------------------------------------------------------------------------------------------------------
    def __add__(self, other: str) -> str:
        return join_pieces((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return join_pieces((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return join_pieces([self] * operator.index(times))

    __rmul__ = __mul__

    def join(self, pieces: Iterable[str]) -> str:
        return join_with(self, pieces)

    # --- taking apart -------------------------------------------------------------------------------------------------
    def __getitem__(self, key: SupportsIndex | slice) -> str:  # type: ignore[override]
        if not isinstance(key, slice):
            index = operator.index(key)
            index += len(self) if index < 0 else 0
            if not 0 <= index < len(self):
                raise IndexError("string index out of range")
            return self._cut(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._cut(start, max(start, stop))
        codes = [code for length, code in self._runs for _ in range(length)][key]
        return Tracked(str.__getitem__(self, key), _compress((1, code) for code in codes))

    def __iter__(self) -> Iterator[str]:
        position = 0
        for length, code in self._runs:
            for i in range(position, position + length):
                yield Tracked(str.__getitem__(self, i), code)
            position += length

    def _cut(self, start: int, stop: int) -> Tracked:
        runs, position = [], 0
        for length, code in self._runs:
            kept = min(stop, position + length) - max(start, position)
            if kept > 0:
                runs.append((kept, code))
            position += length
        return Tracked(str.__getitem__(self, slice(start, stop)), runs)

    def lstrip(self, chars: str | None = None) -> str:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, max(start, len(str.rstrip(self, chars))))

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(self) - (len(suffix) if self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # type: ignore[override]
        return self._at(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # type: ignore[override]
        return self._at(str.rsplit(self, sep, maxsplit), sep)

    def _at(self, pieces: Sequence[str], sep: str | None) -> list[str]:
        """The pieces of a split, cut out of self. Between two is `sep`, or white space, where no piece begins."""
        found: list[str] = []
        position = 0
        for piece in pieces:
            start = position if sep is not None else str.find(self, piece, position)
            found.append(self._cut(start, start + len(piece)))
            position = start + len(piece) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:  # type: ignore[override]
        found, position = [], 0
        for line, shown in zip(str.splitlines(self, True), str.splitlines(self, keepends)):
            found.append(self._cut(position, position + len(shown)))
            position += len(line)
        return found  # type: ignore[return-value]

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._three(*map(len, str.partition(self, sep)))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._three(*map(len, str.rpartition(self, sep)))

    def _three(self, a: int, b: int, c: int) -> tuple[str, str, str]:
        return self._cut(0, a), self._cut(a, a + b), self._cut(a + b, a + b + c)

    # --- changing -----------------------------------------------------------------------------------------------------
    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:  # type: ignore[override]
        if not old:
            return weld(str.replace(self, old, new, count), self, new)
        limit = operator.index(count)
        return join_with(new, self.split(old, limit)) if limit else self

    def lower(self) -> str:
        return self._same_length(str.lower(self))

    def upper(self) -> str:
        return self._same_length(str.upper(self))

    def title(self) -> str:
        return self._same_length(str.title(self))

    def capitalize(self) -> str:
        return self._same_length(str.capitalize(self))

    def _same_length(self, text: str) -> str:
        return Tracked(text, self._runs) if len(text) == len(self) else weld(text, self)

    def __mod__(self, values: Any) -> str:
        return weld(str.__mod__(self, values), self, values)

    def __rmod__(self, layout: Any) -> str:
        return weld(str.__mod__(layout, str.__str__(self)), layout, self)

    def __format__(self, spec: str) -> str:
        return self if not spec else weld(str.__format__(self, spec), self)


# Methods of str whose result is a str or a list of str and that are not above: SandboxedEnvironment.call welds them.


def runs_of(text: str) -> Runs:
    """(length, source) of each stretch of any str."""
    return text._runs if isinstance(text, Tracked) else ((len(text), TEMPLATE),) if text else ()


def join_pieces(pieces: Iterable[str]) -> str:
    """ "".join, with sources. A plain str where no piece is tracked."""
    pieces = list(pieces)
    text = "".join(pieces)
    if not any(isinstance(piece, Tracked) for piece in pieces):
        return text
    return Tracked(text, _compress(run for piece in pieces for run in runs_of(piece)))


def join_with(separator: str, pieces: Iterable[str]) -> str:
    """separator.join(pieces), with sources."""
    apart: list[str] = []
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"join: expected str, found {type(piece).__name__}")
        apart += [separator, piece] if apart else [piece]
    return join_pieces(apart)


def weld(text: str, *origins: Any) -> str:
    """`text`, made from `origins` in a way that lost who wrote which character: all of it is theirs together.

    Their one source if they have but one, else MIXED; plain where nothing tracked is in them.
    """
    codes = {code for origin in origins for code in _sources(origin)} - {TEMPLATE}
    if not codes or not text:
        return str.__str__(text)
    plain = {code & ~GENERATED for code in codes} - {TEMPLATE}
    generated = GENERATED if any(code & GENERATED for code in codes) else 0
    code = plain.pop() if len(plain) == 1 else MIXED if plain else TEMPLATE
    return Tracked(text, code | generated)


def generated(text: str) -> str:
    """`text` marked as written inside {% generation %}."""
    return Tracked(text, [(length, code | GENERATED) for length, code in runs_of(text)])


def _sources(value: Any) -> set[int]:
    """All sources in a str, or in the strs of a plain list, tuple or dict (bounded by what the sandbox lets grow)."""
    if isinstance(value, Tracked):
        return {code for _, code in value._runs}
    found: set[int] = set()
    if isinstance(value, dict):
        for key, item in value.items():
            found |= _sources(key) | _sources(item)
    elif isinstance(value, list | tuple):
        for item in value:
            found |= _sources(item)
    elif not (value is None or isinstance(value, str | int | float | range)):
        found.add(MIXED)  # an object of the template's (a namespace, say) can hold anything
    return found


def _compress(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours of one source put together, empty ones left out."""
    found: list[tuple[int, int]] = []
    for length, code in runs:
        if not length:
            continue
        if found and found[-1][1] == code:
            found[-1] = (found[-1][0] + length, code)
        else:
            found.append((length, code))
    return found
