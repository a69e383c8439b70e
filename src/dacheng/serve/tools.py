"""Tools of a request, and what it asks of the calls: none, one of them, only these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Tools:
    """functions: as the templates know them. strict: names of those whose arguments must fit their schema even where
    nothing else restrains the answer."""

    functions: tuple[dict[str, Any], ...] = ()
    strict: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool["function"]["name"] for tool in self.functions)

    def for_template(self) -> list[dict[str, Any]] | None:
        return list(self.functions) or None


@dataclass(frozen=True, slots=True)
class ToolRule:
    """What the calls of an answer may be. must: the answer is nothing but calls, at least one. names: of the tools that
    may be called. parallel: whether there may be several. restrains: whether this asks for more than looking for calls
    in what the model writes; `param` is the field that asks for it."""

    must: bool = False
    names: tuple[str, ...] = ()
    parallel: bool = True
    restrains: bool = False
    param: str = "tool_choice"


def read_tools(body: Fields, limits: Limits) -> Tools:
    """OpenAI's chat tools: {"type": "function", "function": {…}}."""
    found = []
    for i, item in enumerate(body.items("tools", most=limits.tools) or []):
        entry = Fields(item, f"tools[{i}]")
        if (kind := entry.demand("type", entry.text("type"))) != "function":
            raise unimplemented(f"tools[{i}].type", f"{kind!r} is no function")
        function = entry.demand("function", entry.object("function"))
        entry.done()
        found.append(checked_tool(function))
    return gathered(found, "tools[{}].function.name")


def gathered(found: list[tuple[dict[str, Any], bool]], where: str) -> Tools:
    """Of what `checked_tool` gave. where: how the field of the i-th name is called."""
    names = set()
    for i, (tool, _) in enumerate(found):
        if (name := tool["function"]["name"]) in names:
            raise bad_request(where.format(i), f"{name} is there twice")
        names.add(name)
    strict = frozenset(tool["function"]["name"] for tool, is_strict in found if is_strict)
    return Tools(tuple(tool for tool, _ in found), strict)


def checked_tool(function: Fields, *, schema: str = "parameters") -> tuple[dict[str, Any], bool]:
    """(a function as the templates know it, whether it is strict). schema: the field that holds its JSON schema."""
    name = function.demand("name", function.text("name"))
    if not _NAME.fullmatch(name):
        raise bad_request(function.path("name"), "expected letters, digits, _ . : -, 128 at most")
    found: dict[str, Any] = {"name": name, "description": function.text("description", "")}
    parameters = function.raw(schema, {"type": "object", "properties": {}})
    if not isinstance(parameters, dict):
        raise bad_request(function.path(schema), "expected a JSON schema")
    found["parameters"] = parameters
    strict = function.flag("strict")
    function.done()
    return {"type": "function", "function": found}, strict


def read_tool_choice(body: Fields, tools: Tools, *, flat: bool = False) -> ToolRule | None:
    """OpenAI's tool_choice and parallel_tool_calls. None: no calls are looked for. flat: as the Responses API writes a
    choice, without an object of the kind's name around it."""
    parallel = body.flag("parallel_tool_calls", True)
    choice = body.raw("tool_choice")
    if choice == "none":
        return None
    if not tools.functions:
        if choice is None or choice == "auto":
            return None
        raise bad_request("tool_choice", "there are no tools")
    if choice is None or choice == "auto":
        return rule_of(tools, parallel=parallel)
    if choice == "required":
        return rule_of(tools, must=True, parallel=parallel)
    if not isinstance(choice, dict):
        raise bad_request("tool_choice", "expected none, auto, required or an object")
    must, names = _chosen(Fields(choice, "tool_choice"), flat)
    return rule_of(tools, must=must, names=names, parallel=parallel)


def _chosen(entry: Fields, flat: bool) -> tuple[bool, list[str]]:
    """(must, names) of a choice that names tools."""
    kind = entry.demand("type", entry.text("type", choices=("function", "allowed_tools")))
    inner = entry if flat else entry.demand(kind, entry.object(kind))
    if kind == "function":
        must, names = True, [inner.demand("name", inner.text("name"))]
    else:
        must = inner.demand("mode", inner.text("mode", choices=("auto", "required"))) == "required"
        names = []
        for i, item in enumerate(inner.demand("tools", inner.items("tools", most=128))):
            tool = Fields(item, f"{inner.path('tools')}[{i}]")
            tool.demand("type", tool.text("type", choices=("function",)))
            function = tool if flat else tool.demand("function", tool.object("function"))
            names.append(function.demand("name", function.text("name")))
            function.done()
            tool.done()
        if not names:
            raise bad_request(inner.path("tools"), "there are no tools")
    inner.done()
    entry.done()
    return must, names


def rule_of(
    tools: Tools,
    *,
    must: bool = False,
    names: list[str] | None = None,
    parallel: bool = True,
    where: str = "tool_choice",
) -> ToolRule:
    """Raises APIError 400 for a name that no tool has. where: the field that the names are from."""
    for name in names or ():
        if name not in tools.names:
            raise bad_request(where, f"there is no tool {name!r}; there is {', '.join(tools.names)}")
    chosen = tools.names if names is None else tuple(name for name in tools.names if name in names)
    if must or names is not None:
        param = where
    else:
        param = "parallel_tool_calls" if not parallel else "tools"
    restrains = must or names is not None or not parallel or bool(tools.strict & set(chosen))
    return ToolRule(must, chosen, parallel, restrains, param)
