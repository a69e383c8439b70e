"""Values of a model's description, each checked for its type and bounds: what config.json and GGUF's keys share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from dacheng.errors import DachengError

REQUIRED: Final = object()


def is_positive(value: Any, or_zero: bool = False) -> bool:
    """Whether a value is a positive number that a float can hold (integers in JSON may be longer than any)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= sys.float_info.max or (or_zero and value == 0)


class TypedValues:
    """Every error names the file, the field, the value found and a remedy. Subclasses say where values come from and
    what an error looks like."""

    path: Path
    notes: list[str]

    def get(self, name: str, default: Any = None) -> Any:
        """The raw value, which counts as looked at from now on. Raises DachengError when it is absent and required."""
        raise NotImplementedError

    def error(self, problem: str, name: str, value: object, remedy: str = "") -> DachengError:
        raise NotImplementedError

    def integer(self, name: str, default: Any = REQUIRED, *, minimum: int = 1, maximum: int = 2**24) -> Any:
        """An integer in [minimum, maximum]. The bounds keep an absurd count from allocating anything."""
        value = self.get(name, default)
        return value if value is default else self.bounded(name, value, minimum, maximum)

    def bounded(self, name: str, value: Any, minimum: int, maximum: int) -> int:
        """`value` if it is an integer in [minimum, maximum]; else raises DachengError."""
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(f"must be an integer from {minimum} to {maximum}", name, value)
        return value

    def number(self, name: str, default: Any = REQUIRED, *, or_zero: bool = False) -> Any:
        """A finite positive number, as float; with `or_zero`, zero too."""
        value = self.get(name, default)
        if value is default:
            return value
        if not is_positive(value, or_zero):
            raise self.error("must be a positive number", name, value)
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error("must be true or false", name, value)
        return value

    def only(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuses any value but those in `allowed` (and absence): a feature that is recognised and not built."""
        value = self.get(name)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            raise self.error(why, name, value, "use a model without it" + (f" (allowed: {allowed})" if allowed else ""))

    def note(self, text: str) -> None:
        """Something the user should be shown, and that stops nothing."""
        self.notes.append(f"{self.path.name}: {text}")
