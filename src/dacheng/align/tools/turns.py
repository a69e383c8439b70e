"""Answers of several turns: the model writes a call, a tool writes its result behind it, the model goes on.

ToolTurns is the `continuation` of a rollout worker. The worker stops at the end of a call (`stop`), puts in what is
said here, and masks it out: the loss is on the model's own tokens alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dacheng.align.tools.calculator import Calculator
from dacheng.errors import UsageError
from dacheng.protocols import Tool

MAX_RESULT = 400


@dataclass(frozen=True, kw_only=True)
class CallMarks:
    """Between which marks a call and its result stand, and whether a call is JSON: see ToolTurns."""

    opening: str = "<calc>"
    closing: str = "</calc>"
    before: str = "<result>"
    after: str = "</result>"
    json_calls: bool = False

    @property
    def stop(self) -> tuple[str, ...]:
        """What sampling has to stop at."""
        return (self.closing,)


@dataclass(frozen=True, kw_only=True)
class ToolTurns(CallMarks):
    """Between `opening` and `closing` the model writes a call; behind it stands `before` + the result + `after`.

    One tool with one argument is called by that argument's text: "<calc>12 * 7</calc><result>84</result>". With
    json_calls, a call is {"name": …, "arguments": {…}}, as chat templates write them, and picks among the tools.
    GSM8K's annotations ("<<12*7=84>>") are opening "<<", closing "=", before "", after ">>".

    Whatever goes wrong in a call is its result, "error: …", for the model to read; a result is cut at 400 characters.
    """

    tools: Sequence[Tool]

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if not self.opening or not self.closing or not names or len(set(names)) != len(names):
            raise UsageError("tools need marks around a call, and a name each", field="tools", value=names,
                             remedy="each tool once, with an opening and a closing mark")  # fmt: skip
        if not self.json_calls and (len(names) != 1 or self._argument() is None):
            raise UsageError(
                "a call by its text alone is of one tool with one argument", field="tools", value=names,
                remedy="json_calls: true",
            )  # fmt: skip

    def __call__(self, text: str) -> str | None:
        """What to put behind `text`, which the model has just stopped writing; "" where it stopped at a mark that ends
        no call (it goes on), None where the text is complete."""
        end = text.rfind(self.closing)
        if end < 0 or text[end + len(self.closing) :].strip():
            return None
        start = text.rfind(self.opening, 0, end)
        if start < 0 or self.closing in text[start + len(self.opening) : end]:
            return ""
        result = self._result(text[start + len(self.opening) : end].strip())
        return f"{self.before}{result[:MAX_RESULT]}{self.after}"

    def _argument(self) -> str | None:
        required = self.tools[0].parameters.get("properties", {})
        return next(iter(required)) if len(required) == 1 else None

    def _result(self, call: str) -> str:
        tool, arguments = self.tools[0], {str(self._argument()): call}
        if self.json_calls:
            found = _json_call(call)
            if isinstance(found, str):
                return found
            name, arguments = found
            known = {tool.name: tool for tool in self.tools}
            if name not in known:
                return f"error: no tool {name!r}; there are {', '.join(known)}"
            tool = known[name]
        try:
            return str(tool(**arguments))
        except Exception as error:  # a tool that breaks is an answer too: the rollout goes on
            return f"error: {type(error).__name__}: {error}"


def calculator_turns(**marks: str) -> ToolTurns:
    """ToolTurns with the calculator alone."""
    return ToolTurns(tools=(Calculator(),), **marks)  # type: ignore[arg-type]


def _json_call(text: str) -> tuple[str, dict[str, Any]] | str:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"error: no JSON: {error}"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return 'error: a call is {"name": …, "arguments": {…}}'
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        return "error: arguments are an object"
    return call["name"], arguments
