"""The tools of a recipe: which a model may call while it writes, and between which marks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dacheng.align.tools.calculator import Calculator
from dacheng.align.tools.turns import CallMarks, ToolTurns
from dacheng.errors import UsageError
from dacheng.protocols import Tool
from dacheng.recipes import nearest, resolve_object

KNOWN: dict[str, type[Any]] = {"calculator": Calculator}


@dataclass(frozen=True, kw_only=True)
class ToolsConfig(CallMarks):
    """use: names of KNOWN, or "my_package.module:MyTool" (a protocols.Tool, or a class that makes one without being
    told anything). opening, closing, before, after, json_calls: see ToolTurns. Raises UsageError for values that make
    no calls."""

    use: tuple[str, ...] = ("calculator",)

    def __post_init__(self) -> None:
        if not self.use:
            raise UsageError("no tool is named", field="use", value=[], remedy=f"use: [{', '.join(KNOWN)}]")
        for name in self.use:
            if name not in KNOWN and ":" not in name:
                near = nearest(name, list(KNOWN))
                remedy = (f"did you mean {near}? " if near else "") + f"known: {', '.join(KNOWN)}"
                raise UsageError("no such tool", field="use", value=name, remedy=f"{remedy}; or my_package.module:Tool")
        for name in ("opening", "closing"):
            if not getattr(self, name).strip():
                raise UsageError("a call stands between two marks", field=name, value=getattr(self, name),
                                 remedy="<calc> and </calc>, or what the model has learnt")  # fmt: skip
        if len(self.use) > 1 and not self.json_calls:
            raise UsageError("a call by its text alone does not say which tool", field="json_calls", value=False,
                             remedy="json_calls: true, or one tool")  # fmt: skip

    def turns(self) -> ToolTurns:
        """What a rollout worker goes on with. Raises UsageError for what is no tool, or not one of a single argument
        where calls are plain text."""
        marks = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "use"}
        return ToolTurns(tools=[_tool(name) for name in self.use], **marks)


def _tool(name: str) -> Tool:
    found = KNOWN.get(name) or resolve_object(name, "tools.use")
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Tool):
        remedy = "a tool has name, description, parameters and __call__(**arguments) -> str"
        raise UsageError("this is no tool", field="tools.use", value=name, remedy=remedy)
    return made
