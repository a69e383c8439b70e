"""A JSON object read field by field, so that nothing in it is ignored."""

from __future__ import annotations

import json
import math
from typing import Any

from dacheng.serve.api_error import APIError, bad_request, unimplemented

_MISSING = object()


def parse_json(raw: bytes) -> Any:
    """Raises APIError 400 for what is not JSON (NaN and Infinity are not)."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is not JSON: {error}", code="invalid_json") from None


class Fields:
    """Each reader takes its field out and checks its type and range; null is the same as absent; `done` refuses what
    is left. All raise APIError 400 naming the field, with its path."""

    def __init__(self, value: Any, where: str = "") -> None:
        if not isinstance(value, dict):
            raise bad_request(where or "body", "expected an object")
        self._left, self.where = dict(value), where

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def raw(self, key: str, default: Any = None) -> Any:
        found = self._left.pop(key, None)
        return default if found is None else found

    def peek(self, key: str, default: Any = None) -> Any:
        """The value as it was sent, which is still to be read."""
        found = self._left.get(key)
        return default if found is None else found

    def demand(self, key: str, value: Any) -> Any:
        """`value`, which was read from `key`, if it is there."""
        if value is None:
            raise APIError(400, "this field is required", param=self.path(key), code="missing_required_parameter")
        return value

    def text(self, key: str, default: Any = None, *, choices: tuple[str, ...] = (), longest: int | None = None) -> Any:
        found = self.raw(key)
        if found is None:
            return default
        if not isinstance(found, str):
            raise bad_request(self.path(key), "expected a string")
        if choices and found not in choices:
            raise bad_request(self.path(key), f"expected one of {', '.join(choices)}")
        if longest is not None and len(found) > longest:
            raise bad_request(self.path(key), f"longer than {longest} characters")
        return found

    def integer(self, key: str, default: Any = None, *, low: int | None = None, high: int | None = None) -> Any:
        found = self.raw(key)
        if found is None:
            return default
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int):
            raise bad_request(self.path(key), "expected an integer")
        return self._within(key, found, low, high)

    def number(self, key: str, default: Any = None, *, low: float | None = None, high: float | None = None) -> Any:
        found = self.raw(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not _finite(found):
            raise bad_request(self.path(key), "expected a number")
        return float(self._within(key, found, low, high))

    def _within(self, key: str, found: Any, low: float | None, high: float | None) -> Any:
        if low is not None and found < low:
            raise bad_request(self.path(key), f"must be at least {low}")
        if high is not None and found > high:
            raise bad_request(self.path(key), f"must be at most {high}")
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        found = self.raw(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise bad_request(self.path(key), "expected true or false")
        return found

    def items(self, key: str, *, most: int) -> list[Any] | None:
        found = self.raw(key)
        if found is None:
            return None
        if not isinstance(found, list):
            raise bad_request(self.path(key), "expected a list")
        if len(found) > most:
            raise bad_request(self.path(key), f"more than {most} entries")
        return found

    def object(self, key: str) -> Fields | None:
        found = self.raw(key)
        return None if found is None else Fields(found, self.path(key))

    def rest(self) -> dict[str, Any]:
        """All that is left."""
        found, self._left = self._left, {}
        return found

    def only(self, key: str, *allowed: Any) -> None:
        """A field of which only these values (and none) are implemented."""
        found = self._left.pop(key, None)
        if found is not None and not any(type(found) is type(value) and found == value for value in allowed):
            remedy = f"use {' or '.join(map(repr, allowed))}, or leave it out" if allowed else "leave it out"
            raise unimplemented(self.path(key), remedy)

    def done(self) -> None:
        for key in self._left:
            if self._left[key] is not None:
                raise APIError(400, "there is no such field here", param=self.path(key), code="unknown_parameter")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of a thousand digits
        return False
