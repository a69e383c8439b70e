"""JSON files that come from anywhere: bounded, strict on the way in, deterministic on the way out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.atomic import replacing_file

MAX_BYTES = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises DamagedFile on anything else: no UTF-8, no JSON, a repeated key, NaN, too big."""
    remedy = "copy the file from its source again"
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DamagedFile(f"{path} is too large for a JSON file", field="bytes", value=size, remedy=remedy)
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise DachengError(
            f"cannot open {path}: {error.strerror}", field="path", value=str(path), remedy="check the path"
        ) from None
    except ValueError as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}", field="file", value=str(path), remedy=remedy) from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds no JSON object", field="file", value=str(path), remedy=remedy)
    return value


def parse_json(data: bytes) -> Any:
    """Strict JSON. Raises ValueError on bad UTF-8, a repeated key, NaN or Infinity, and absurd nesting or digits."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constants)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Sorted, indented UTF-8, by atomic replacement. Values go through `plain`."""
    text = json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with replacing_file(path) as file:
        # A lone surrogate (from a file name, say) becomes its JSON escape: the file stays valid UTF-8.
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def plain(value: Any, where: str = "") -> Any:
    """`value` as JSON can hold it: dataclasses become objects, tuples lists, paths strings, numpy and torch scalars
    numbers. A float that is not finite becomes "nan", "inf" or "-inf": a diverged run must still be recordable.

    Raises DachengError naming the place of anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _not_plain(f"{where}.{key}".strip("."), key, "use text as keys")
        return {key: plain(item, f"{where}.{key}".strip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item(), where)
    raise _not_plain(where, value, "store numbers, text, lists and objects of these")


def _not_plain(where: str, value: object, remedy: str) -> DachengError:
    return DachengError(f"a {type(value).__name__} cannot be written as JSON", field=where, value=value, remedy=remedy)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} is there twice")
    return found


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
