"""A config.json read field by field, so that at the end every field has been understood, refused or noted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dacheng.errors import DachengError
from dacheng.formats.typed_values import REQUIRED, TypedValues, is_positive

T = TypeVar("T")
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


class Fields(TypedValues):
    """Takes typed values out of `config`. Null counts as absent, as transformers writes it for "not set". `finish`
    accounts for what nobody took."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._config, self._taken = config, set[str]()

    def choice(self, name: str, choices: Mapping[str, T], default: str) -> T:
        """What `choices` maps the field's text to."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error("is not supported", name, value, "supported: " + ", ".join(choices))
        return choices[value]

    def numbers(self, name: str, *, most: int = 2**16) -> tuple[float, ...]:
        """A list of positive numbers; empty when absent."""
        value = self.get(name, [])
        if not isinstance(value, list) or len(value) > most or not all(is_positive(item) for item in value):
            raise self.error("must be a list of positive numbers", name, value)
        return tuple(float(item) for item in value)

    def given(self, name: str) -> bool:
        """Whether the field is there, be it null: to some families "none" and "not said" are different things."""
        return name in self._config

    def understood(self, names: Mapping[str, str]) -> None:
        """Fields that have no influence on the forward pass; the mapping says why, one by one."""
        self._taken.update(names)

    def get(self, name: str, default: Any = None) -> Any:
        self._taken.add(name)
        value = self._config.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise DachengError(
                f"{self.path} lacks a field", field=name, remedy="copy config.json from the model's source again"
            )
        return default

    def finish(self) -> list[str]:
        """The notes, with one on each unknown field that is off (null, false, 0, empty). Raises DachengError on any
        other unknown one: it may change what the model computes."""
        for name in sorted(set(self._config) - self._taken):
            value = self._config[name]
            if not any(type(value) is type(off) and value == off for off in _OFF):
                raise self.error(
                    "is not known, and may change what the model computes",
                    name,
                    value,
                    "if it does not, remove it from config.json; if it does, this model is not supported",
                )
            self.note(f"unknown field {name} is {value!r}, taken as off")
        return self.notes

    def error(self, problem: str, name: str, value: object, remedy: str = "correct it in config.json") -> DachengError:
        return DachengError(f"{self.path}: {name} {problem}", field=name, value=value, remedy=remedy)
