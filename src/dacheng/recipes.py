"""Typed configuration: nested dataclasses, filled from YAML, then from dotted overrides ("train.steps=200").

Every mistake is a UsageError that names the full path of the key, the value found and what would do. The YAML is that
of dacheng.yaml_text; what `dump` writes, `load` reads back equal.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from dacheng import yaml_text
from dacheng.errors import DachengError, UsageError

T = TypeVar("T")
_MAX_DEPTH = 50


# --- overrides --------------------------------------------------------------------------------------------------------
def split_override(override: str) -> tuple[list[str], Any]:
    """ "a.b=3" -> (["a", "b"], 3). The value is a YAML scalar, or a flow collection when it begins with [ { " or '.
    UsageError without "=", with an empty key, or with a broken collection."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(
            "an override has the form section.key=value",
            field="override",
            value=override,
            remedy="for example train.steps=200",
        )
    text = text.strip()
    try:
        return keys, yaml_text.parse(text) if text[:1] in ("[", "{", '"', "'") else yaml_text.scalar(text)
    except ValueError as error:
        problem = f"the value is not valid YAML: {error}"
        raise UsageError(problem, field=path, value=text, remedy="check the brackets and quotes") from None


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each override set; missing sections are made, list items are addressed by number.
    UsageError where the path leads into a plain value or to a list item that is not there."""
    result = _copy(values, 0)
    for override in overrides:
        keys, value = split_override(override)
        here: Any = result
        for depth, key in enumerate(keys):
            index = _index(here, keys, depth)
            if depth == len(keys) - 1:
                here[index] = value
            else:
                if isinstance(here, dict) and here.get(key) is None:
                    here[key] = {}
                here = here[index]
    return result


def _index(here: Any, keys: list[str], depth: int) -> str | int:
    """Where keys[depth] is in `here`, which is what keys[:depth] led to."""
    parent, path = ".".join(keys[:depth]), ".".join(keys)
    if isinstance(here, dict):
        return keys[depth]
    if not isinstance(here, list):
        raise UsageError(f"{parent} is a value, not a section", field=path, value=here, remedy=f"set {parent} itself")
    if not keys[depth].isdigit() or int(keys[depth]) >= len(here):
        problem = f"a list of {len(here)} has no item {keys[depth]}"
        raise UsageError(problem, field=path, remedy="items are numbered from 0; or set the whole list: [a, b]")
    return int(keys[depth])


def _copy(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UsageError("nested too deeply", field="recipe", remedy="check the anchors (&, *)")
    if isinstance(value, Mapping):
        return {key: _copy(item, depth + 1) for key, item in value.items()}
    return [_copy(item, depth + 1) for item in value] if isinstance(value, list) else value


# --- values to types --------------------------------------------------------------------------------------------------
def load(cls: type[T], source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `cls` from a YAML file or a mapping, then `overrides`.

    Raises UsageError: missing file, bad YAML, unknown key (with the nearest known one), wrong type, missing key.
    """
    values = dict(source) if isinstance(source, Mapping) else yaml_text.read_mapping(source)
    return build(cls, apply_overrides(values, overrides))


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """An instance of `cls` from plain values; `path` is put before the keys in errors."""
    return convert(cls, values, path)


def part_of(cls: type[T], whole: Any) -> T:
    """The `cls` in a dataclass that has all its fields, such as one derived from it."""
    return cls(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def convert(expected: Any, value: Any, path: str, depth: int = 0) -> Any:
    """`value` as the type `expected`, or a UsageError that names `path`, the value and the type.

    Nothing is guessed: a bool is no int, a number is no string. An int may be written 1e6, a float as a string.
    """
    if depth > _MAX_DEPTH:
        raise UsageError("nested too deeply", field=path, remedy="check the anchors (&, *)")
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or expected is object:
        return value
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(typing.cast(type, expected), value, path, depth)
    if origin is Literal:
        for choice in args:
            if value == choice and type(value) is type(choice):
                return value
        raise _wrong(expected, value, path, "no such choice")
    if origin in (Union, types.UnionType):
        return _convert_union(expected, args, value, path, depth)
    kind = origin or expected
    if kind in (list, tuple, Sequence, typing.Sequence) or (
        isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str
    ):
        return _convert_sequence(expected, kind, args, value, path, depth)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(expected, value, path)
        key_type, item_type = args or (Any, Any)
        return {
            convert(key_type, k, f"{path}.{k}", depth + 1): convert(item_type, v, _join(path, k), depth + 1)
            for k, v in value.items()
        }
    return _convert_scalar(expected, value, path)


def _convert_scalar(expected: Any, value: Any, path: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is float:
        if isinstance(value, str):
            try:
                value, number = float(value), True
            except ValueError:
                raise _wrong(expected, value, path) from None
        if number and not math.isnan(value):
            return float(value)
    elif expected is int:
        if number and (isinstance(value, int) or value.is_integer()):
            return int(value)
    elif expected is Path:
        if isinstance(value, (str, Path)) and str(value):
            return Path(value)
    elif expected is type(None) or expected is None:
        if value is None:
            return None
    elif isinstance(expected, type) and type(value) is expected:
        return value
    raise _wrong(expected, value, path)


def _convert_union(expected: Any, members: tuple[Any, ...], value: Any, path: str, depth: int) -> Any:
    for member in members:  # an exact match first: the string "3" stays one in `int | str`
        if member is type(value) or (member in (None, type(None)) and value is None):
            return convert(member, value, path, depth + 1)
    errors = []
    for member in members:
        try:
            return convert(member, value, path, depth + 1)
        except UsageError as error:
            errors.append((member, error))
    inside = [error for member, error in errors if dataclasses.is_dataclass(member) and isinstance(value, Mapping)]
    inside += [
        error for member, error in errors if typing.get_origin(member) in (list, dict, tuple) and error.field != path
    ]
    raise inside[0] if len(inside) == 1 else _wrong(expected, value, path)


def _convert_sequence(expected: Any, kind: Any, args: tuple[Any, ...], value: Any, path: str, depth: int) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(expected, value, path)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise _wrong(expected, value, path)
        return tuple(convert(t, item, f"{path}.{i}", depth + 1) for i, (t, item) in enumerate(zip(args, value)))
    item_type = args[0] if args else Any
    items = [convert(item_type, item, f"{path}.{i}", depth + 1) for i, item in enumerate(value)]
    return tuple(items) if kind is tuple else items


def _convert_dataclass(cls: type, value: Any, path: str, depth: int) -> Any:
    if isinstance(value, cls):
        return value
    if value is None:
        value = {}  # `section:` with nothing under it: all defaults
    if not isinstance(value, Mapping):
        raise _wrong(cls, value, path)
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise UsageError(
                "unknown key", field=_join(path, key), value=value[key], remedy=_suggest(cls, str(key), path)
            )
    arguments = {key: convert(hints[key], item, _join(path, key), depth + 1) for key, item in value.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise UsageError(
                "a required key is missing", field=_join(path, name), remedy=f"add {name}: {describe(hints[name])}"
            )
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UsageError(
            str(error), field=path or cls.__name__, value=dict(value), remedy="change the value"
        ) from error
    except UsageError as error:  # raised by __post_init__, which knows its own keys only
        if error.field is None or error.field.split(".")[0] not in fields:
            raise
        raise UsageError(
            error.problem, field=_join(path, error.field), value=error.value, remedy=error.remedy
        ) from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _wrong(expected: Any, value: Any, path: str, problem: str = "") -> UsageError:
    remedy = f"expected {describe(expected)}"
    near = nearest(value, [c for c in typing.get_args(expected) if isinstance(c, str)]) if problem else None
    if near is not None:
        remedy += f"; did you mean {near}?"
    elif expected is str and isinstance(value, (int, float)):
        remedy += f'; put it in quotes: "{value}" (on a command line: \'"{value}"\')'
    found = {"NoneType": "null", "dict": "a section", "list": "a list"}.get(type(value).__name__, type(value).__name__)
    return UsageError(problem or f"wrong type: {found}", field=path, value=value, remedy=remedy)


def describe(expected: Any) -> str:
    """A type as a user reads it: "int or null", "one of adamw, muon", "list of str"."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if expected is type(None) or expected is None:
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is dict:
        return f"mapping of {describe(args[0])} to {describe(args[1])}"
    if origin in (list, tuple, Sequence) or getattr(origin, "__name__", "") == "Sequence":
        fixed = origin is tuple and args and args[-1] is not Ellipsis
        return "list of " + (", ".join(map(describe, args)) if fixed else describe(args[0]) if args else "anything")
    if dataclasses.is_dataclass(expected):
        return f"a section with keys {', '.join(field.name for field in dataclasses.fields(expected))}"
    return {Path: "a path", Any: "anything"}.get(expected, getattr(expected, "__name__", str(expected)))


def nearest(word: object, known: Sequence[str]) -> str | None:
    """The most similar of `known`, or None when nothing is near."""
    found = difflib.get_close_matches(str(word).lower(), [k.lower() for k in known], 1, 0.5)
    return next(k for k in known if k.lower() == found[0]) if found else None


def _suggest(cls: type, key: str, path: str) -> str:
    own = [field.name for field in dataclasses.fields(cls)]
    inner = {leaf.split(".")[-1]: leaf for leaf in _leaves(cls) if "." in leaf}
    exact = inner.get(key)
    near = exact or nearest(key, own) or (inner[deep] if (deep := nearest(key, list(inner))) else None)
    listing = f"known here: {', '.join(own)}"
    return f"did you mean {_join(path, near)}? ({listing})" if near else listing


def _leaves(cls: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    for name, hint in _hints(cls).items():
        if depth and not name.startswith("_"):
            yield prefix + name
        for member in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(member) and depth < 6:
                yield from _leaves(member, f"{prefix}{name}.", depth + 1)


# --- types to values --------------------------------------------------------------------------------------------------
def to_dict(instance: Any) -> Any:
    """Plain data (dict, list, str, int, float, bool, None) of a dataclass or of anything made of such."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        return {
            field.name: to_dict(getattr(instance, field.name)) for field in dataclasses.fields(instance) if field.init
        }
    if isinstance(instance, Mapping):
        return {
            key if isinstance(key, (str, int, float, bool)) else str(key): to_dict(item)
            for key, item in instance.items()
        }
    if isinstance(instance, (list, tuple)):
        return [to_dict(item) for item in instance]
    if isinstance(instance, (set, frozenset)):
        return sorted(to_dict(item) for item in instance)
    if isinstance(instance, Path):
        return str(instance)
    if instance is None or isinstance(instance, (str, int, float, bool)):
        return instance
    raise TypeError(f"{type(instance).__name__} is not plain data")


def identity(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide a result, as plain data: not those marked "free", which move no weight, nor
    those marked "later" that are None (what was made before there was such a field is what it was)."""
    told = {f: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata.get("free")}
    return {f.name: to_dict(value) for f, value in told.items() if value is not None or not f.metadata.get("later")}


def dump(instance: Any) -> str:
    """YAML that `load` reads back equal."""
    return yaml_text.dump(to_dict(instance))


def fingerprint(obj: Any) -> str:
    """sha256 hex of the canonical JSON (sorted keys, no spaces, ASCII) of plain data or a dataclass."""
    canonical = json.dumps(to_dict(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def resolve_object(reference: str, field: str = "object") -> Any:
    """What "my_package.module:Name" names. The current directory can be imported from. For recipes on this machine
    only, never for what came with a model: importing runs code. UsageError when there is no such module or name."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", reference):
        raise UsageError(
            "not a reference to an object", field=field, value=reference, remedy="write my_package.module:Name"
        )
    module_name, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise DachengError(f"{module_name} cannot be imported: {error}", field=field, value=reference) from error
        raise UsageError(
            f"there is no module {error.name}",
            field=field,
            value=reference,
            remedy="install it, or run where it can be imported from",
        ) from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = nearest(name, [n for n in dir(found) if not n.startswith("_")])
            raise UsageError(
                f"{module_name} has no {attribute}",
                field=field,
                value=reference,
                remedy=f"did you mean {near}?" if near else "check the name",
            )
        found = getattr(found, name)
    return found
