"""What the fields of a configuration have to be: the checks that settings of every stage share."""

from __future__ import annotations

from typing import Any

from dacheng.errors import UsageError


def at_least_one(config: Any, *names: str) -> None:
    """Raises UsageError for a field that is less than 1; None means no such limit."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError("must be at least 1", field=name, value=value, remedy="raise it, or leave it out")


def above_zero(config: Any, *names: str) -> None:
    """Raises UsageError for a field that is not a finite number above 0; None means no such limit."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError("must be above 0", field=name, value=value, remedy="leave it out for no such limit")


def says_how_long(config: Any, *names: str) -> None:
    """Raises UsageError where none of the fields that end a training is set."""
    if all(getattr(config, name) is None for name in names):
        remedy = f"set {', '.join(names[:-1])} or {names[-1]}"
        raise UsageError("nothing says how long to train", field=names[0], remedy=remedy)
