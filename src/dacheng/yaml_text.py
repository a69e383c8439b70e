"""YAML as recipes use it: safe tags, version 1.2, no key given twice; and text that reads back equal.

Python's yaml speaks version 1.1, where `no` is false, 1e-3 a string, 1:30 ninety and 2024-01-01 a date. Here each of
these is what it looks like.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from dacheng.errors import UsageError

_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$"
)
_RESOLVERS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"^<<$"), ["<"]),
)
_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")  # line breaks to some readers: only an escape survives them all
_NOT_BLOCK = re.compile(r"[ \t]\n|\A\s|[\x00-\x08\x0b-\x1f\x7f-\xa0]")


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Knows version 1.1's words beside ours: a string that either reader would take for something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    block = "\n" in text and not _NOT_BLOCK.search(text)  # prompts stay readable
    style = '"' if _BREAKS.search(text) else "|" if block else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def parse(text: str) -> Any:
    """The value of a YAML document. Raises ValueError with the line and what is wrong there."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def scalar(text: str) -> Any:
    """What a plain scalar stands for, without YAML's comments and indicators: `# x` and `def f(a): b` are strings."""
    loader = _Loader("")
    try:
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """Plain data as YAML that `parse` reads back equal, and a version 1.1 reader too."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_mapping(source: Path | str) -> dict[str, Any]:
    """The mapping in a file. UsageError for a missing file, bad YAML, a key given twice, or anything but a mapping."""
    path = Path(source)
    shown = {"field": "recipe", "value": str(path)}
    try:
        value = parse(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"the recipe is not UTF-8: {error.reason} at byte {error.start}"
        raise UsageError(problem, **shown, remedy="save it as UTF-8") from None
    except OSError as error:
        problem = f"the recipe cannot be read: {error.strerror}"
        raise UsageError(problem, **shown, remedy=_similar_file(path)) from None
    except ValueError as error:
        raise UsageError(f"the recipe is not valid YAML: {error}", **shown, remedy="mend that line") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problem = "a recipe is a mapping of keys to values"
        raise UsageError(problem, **shown, remedy="begin with a line like `do: train`")
    return value


def _similar_file(path: Path) -> str:
    try:
        names = sorted(child.name for child in path.parent.iterdir() if child.suffix in (".yaml", ".yml"))
    except OSError:
        return "check the path"
    best = difflib.get_close_matches(path.name, names, 1, 0.4)
    return f"did you mean {path.parent / best[0]}?" if best else "check the path"
