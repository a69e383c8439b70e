"""What a chat template may use up. Templates come with models from anywhere: one must not hang or fill the machine.

Everything that repeats counts steps (each pass of a loop, each call, each statement), everything that grows is
measured before it is made, and the clock is looked at on the way. A single step is bounded by MAX_TEXT and MAX_ITEMS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MAX_SOURCE = 1 << 18  # characters of a template; the longest in use have 40,000
MAX_STEPS = 1_000_000  # a conversation of 2,000 messages takes some 60,000
MAX_SECONDS = 10.0
MAX_TEXT = 1 << 24  # characters of any one string, the result included
MAX_ITEMS = 1 << 18  # items in a list or dict, those inside it included
MAX_NUMBER = 100_000  # given to a function or filter: a width, a count; also jinja2.sandbox.MAX_RANGE
MAX_BITS = 4096  # of an integer

_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\d{5}|\{)")


class Refused(Exception):
    """The template asked for something that templates do not get. `what` names it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Budget:
    __slots__ = ("deadline", "steps")

    def __init__(self) -> None:
        self.steps, self.deadline = 0, time.monotonic() + MAX_SECONDS


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def budget() -> Iterator[None]:
    """Steps and seconds for what is compiled or rendered in this block."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def tick() -> None:
    """One step. Raises Refused when there were too many, or it took too long."""
    used = _budget.get()
    used.steps += 1
    if used.steps > MAX_STEPS:
        raise Refused(f"more than {MAX_STEPS:,} steps: it loops without end, or very long")
    if not used.steps & 63 and time.monotonic() > used.deadline:
        raise Refused(f"more than {MAX_SECONDS:.0f} seconds")


def check_text(length: int) -> None:
    if length > MAX_TEXT:
        raise Refused(f"a text of {length:,} characters, the most is {MAX_TEXT:,}")


def check_numbers(values: Iterable[Any]) -> None:
    """For the arguments of any function or filter: widths, counts, ranges."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise Refused(f"the number {value if abs(value) < 10**30 else '10^30 or more'} as a size or count")


def check_items(value: Any) -> Any:
    """`value`, when it and all that is in it, counted as often as it is reached, stay in bounds: a list that holds
    itself twice, forty times over, is small in memory and endless to print."""
    left, waiting = MAX_ITEMS, [value]
    length = 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            length += len(item)
        elif isinstance(item, dict):
            left -= 2 * len(item)
            waiting += [*item, *item.values()] if left > 0 else ()
        elif isinstance(item, list | tuple):
            left -= len(item)
            waiting += item if left > 0 else ()
        if left <= 0:
            raise Refused(f"a list or dict of over {MAX_ITEMS:,} items")
        check_text(length)
    return value


def size_of(value: Any) -> int:
    """Characters that `value` has at most when it is printed, roughly; for strings exactly."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(size_of(key) + size_of(item) + 8 for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(size_of(item) + 4 for item in value)
    return 1300 if isinstance(value, int) else 64  # an int of MAX_BITS has 1,234 digits


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before `left operator right` is computed."""
    texts = isinstance(left, str | list | tuple), isinstance(right, str | list | tuple)
    if operator == "*":
        if any(texts):
            sequence, times = (left, right) if texts[0] else (right, left)
            if isinstance(times, int) and times > 0:
                limit = MAX_TEXT if isinstance(sequence, str) else MAX_ITEMS
                if len(sequence) * times > limit:
                    raise Refused(f"a repetition of {len(sequence):,} x {min(times, 10**30):,}")
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(max(1, left.bit_length()) * abs(right) if abs(left) > 1 else 0)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        check_text(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        if _WIDE_PERCENT.search(left):
            raise Refused("a width in a % format")
        check_text(len(left) + left.count("%") * size_of(right))


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise Refused(f"an integer of {min(bits, 10**30):,} bits")


def check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a method of a str is called, or a filter of the same name applied to one."""
    values = [*args, *kwargs.values()]
    check_numbers(values)
    longest = max(map(size_of, values), default=0)
    widest = max((len(value) if isinstance(value, str) else int(value) for value in values
                  if isinstance(value, str | int)), default=8)  # fmt: skip
    if name == "replace" and values:
        old = values[0]
        count = (text.count(old) if isinstance(old, str) else len(text)) + 1
        check_text(len(text) + count * longest)
    elif name == "join":
        check_text(sum(len(items) * len(text) + size_of(items) for items in args))
    elif name in ("format", "format_map"):
        if _WIDE_BRACES.search(text) or _WIDE_PERCENT.search(text):
            raise Refused("a width in a format")
        check_text(len(text) + (text.count("{") + text.count("%")) * longest)
    elif name == "expandtabs":
        check_text(len(text) + text.count("\t") * widest)
    elif name == "indent":
        lines = sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")) + 1
        check_text(len(text) + lines * widest)
    elif name == "translate":
        check_text(len(text) * max(1, longest))
