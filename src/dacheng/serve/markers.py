"""Markers in a stream of text: finding them whole, whatever the pieces are."""

from __future__ import annotations

from collections.abc import Sequence


def possible_start(window: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `window` with which a marker begins (and which is not all of it)."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(window)), 0, -1):
        if any(marker.startswith(window[-length:]) for marker in markers):
            return length
    return 0


def first_marker(window: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """(start, marker) of the first that is complete; of two that start together, the longer."""
    found = [(start, -len(marker), marker) for marker in markers if (start := window.find(marker)) >= 0]
    if not found:
        return None
    start, _, marker = min(found)
    return start, marker


def trailing_space(text: str) -> int:
    """Length of the white space at the end."""
    return len(text) - len(text.rstrip())
