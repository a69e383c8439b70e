"""A GGUF file's keys read one by one, so that at the end every one has been understood, refused or noted."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError
from dacheng.formats.typed_values import REQUIRED, TypedValues

_OFF: tuple[Any, ...] = (False, 0, 0.0, "", [], "none")
# Keys of these groups say nothing about what the model computes. general.type is looked at before.
_ABOUT = ("general.", "tokenizer.", "quantize.", "imatrix.", "split.")


class Keys(TypedValues):
    """Typed values of `{architecture}.name`."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.path, self.notes = path, list[str]()
        self._metadata, self._taken = metadata, set[str]()
        found = metadata.get("general.architecture")
        if not isinstance(found, str):
            raise DachengError(
                f"{path} does not say what it holds", field="general.architecture", value=found,
                remedy="convert the model again",
            )  # fmt: skip
        self.architecture: str = found

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._metadata

    def get(self, name: str, default: Any = None) -> Any:
        self._taken.add(self._key(name))
        value = self._metadata.get(self._key(name), default)
        if value is REQUIRED:
            raise DachengError(
                f"{self.path} lacks a key", field=self._key(name), remedy="convert the model again, or copy it again"
            )
        return value

    def integer(self, name: str, default: Any = REQUIRED, *, minimum: int = 1, maximum: int = 2**31 - 1) -> Any:
        """As of any file; of a list with one value for every layer, that value."""
        value = self.get(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise self.error("differs from layer to layer, which is not supported", name, value)
        return value if value is default else self.bounded(name, value, minimum, maximum)

    def number(self, name: str, default: Any = REQUIRED, *, or_zero: bool = False) -> Any:
        """A positive number. It is stored in single precision: 1e-5 comes back as 1e-05 and not 9.99999974e-06."""
        value = super().number(name, default, or_zero=or_zero)
        return value if value is default else shortest(value)

    def understood(self, *names: str) -> None:
        """Keys that do not change the forward pass, or only repeat what another says."""
        self._taken.update(map(self._key, names))

    def finish(self) -> list[str]:
        """The notes, with one on each unknown key that is off or belongs to nobody we know. Raises DachengError on any
        other unknown key of the architecture: it may change what the model computes."""
        for key in sorted(set(self._metadata) - self._taken):
            value = self._metadata[key]
            if key.startswith(_ABOUT):
                continue
            if not key.startswith(f"{self.architecture}."):
                self.note(f"unknown key {key}, which names no part of the model")
            elif any(type(value) is type(off) and value == off for off in _OFF):
                self.note(f"unknown key {key} is {value!r}, taken as off")
            else:
                raise DachengError(
                    f"{self.path}: {key} is not known, and may change what the model computes",
                    field=key,
                    value=value,
                    remedy="use a model without it",
                )
        return self.notes

    def error(self, problem: str, name: str, value: object, remedy: str = "convert the model again") -> DachengError:
        key = self._key(name)
        return DachengError(f"{self.path}: {key} {problem}", field=key, value=value, remedy=remedy)

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same single-precision number; `value` itself if it is none."""
    single = struct.pack("<f", value) if abs(value) < 3.4e38 else b""
    if not single or struct.unpack("<f", single)[0] != value:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == single:
            return short
    return value
