"""Tool calls in what a model writes: the formats that models are trained on, read from pieces of any size.

hermes   <tool_call>{"name": …, "arguments": {…}}</tool_call>      (Hermes, ChatML, Qwen)
mistral  [TOOL_CALLS][{"name": …, "arguments": {…}}, …]            (also [TOOL_CALLS]name[ARGS]{…})
llama3   {"name": …, "parameters": {…}}                            (the whole answer; also after <|python_tag|>, and
                                                                    several with ; between)

A call is given out when it is complete: what cannot be read as one stays text, and is given out as text. What comes
out does not depend on how the text was split (a property test holds it).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dacheng.serve.markers import possible_start, trailing_space

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MISTRAL, MISTRAL_ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
PYTHON_TAG = "<|python_tag|>"
FORMATS = ("hermes", "mistral", "llama3")
MARKERS = (OPEN, CLOSE, MISTRAL, MISTRAL_ARGUMENTS, PYTHON_TAG)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Models write line breaks inside strings; they are escaped again when the arguments are given out.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)


@dataclass(frozen=True, slots=True)
class Call:
    """arguments: JSON text of an object."""

    name: str
    arguments: str


Piece = str | Call


def detect_format(template: str | None) -> str | None:
    """The format that a chat template teaches; None where it knows no tools."""
    if template is None or "tools" not in template:
        return None
    if OPEN in template:
        return "hermes"
    if MISTRAL in template or "[AVAILABLE_TOOLS]" in template:
        return "mistral"
    return "llama3" if PYTHON_TAG in template or '"parameters"' in template or "ipython" in template else "hermes"


def tool_parser(kind: str, names: Collection[str] = ()) -> ToolParser:
    """names: of the tools there are; only llama3, which has no marker, needs them."""
    if kind == "hermes":
        return HermesParser()
    return WholeParser(kind, names)


class ToolParser:
    """`push` pieces of text, then `finish`: together, text (str) and calls in order."""

    def push(self, piece: str) -> list[Piece]:
        raise NotImplementedError

    def finish(self) -> list[Piece]:
        raise NotImplementedError


class HermesParser(ToolParser):
    """White space next to a call belongs to its markers."""

    def __init__(self) -> None:
        self._held, self._in_call, self._after_call = "", False, False
        self._gap = ""  # white space before the call, given out if it is none

    def push(self, piece: str) -> list[Piece]:
        self._held += piece
        return self._advance()

    def finish(self) -> list[Piece]:
        out = self._advance()
        rest, self._held = self._held, ""
        if self._in_call:  # the turn ended before the closing marker
            calls = _calls(rest)
            return out + (list(calls) if calls else [self._gap + OPEN + rest])
        if self._after_call and not rest.strip():
            return out
        return out + ([rest] if rest else [])

    def _advance(self) -> list[Piece]:
        out: list[Piece] = []
        while True:
            if self._in_call:
                end = self._call_end()
                if end < 0:
                    return out
                inner, self._held = self._held[:end], self._held[end + len(CLOSE) :]
                calls = _calls(inner)
                out += calls or [self._gap + OPEN + inner + CLOSE]
                self._in_call, self._after_call = False, bool(calls)
            if not self._text(out):
                return out

    def _text(self, out: list[Piece]) -> bool:
        """Gives out text up to the next opening marker; whether there was one."""
        before, opened, rest = self._held.partition(OPEN)
        kept = 0 if opened else possible_start(before, [OPEN])
        kept += trailing_space(before[: len(before) - kept])
        shown = before[: len(before) - kept]
        if shown:
            out.append(shown.lstrip() if self._after_call else shown)
            self._after_call = False
        if not opened:
            self._held = before[len(before) - kept :]
            return False
        self._gap = "" if self._after_call else before[len(before) - kept :]
        self._held, self._in_call = rest, True
        return True

    def _call_end(self) -> int:
        """Where the closing marker is that is not inside a JSON string; -1 if it has not come yet."""
        end = self._held.find(CLOSE)
        while end >= 0 and _inside_string(self._held[:end]):
            end = self._held.find(CLOSE, end + 1)
        return end


class WholeParser(ToolParser):
    """Formats whose calls take the rest of the answer: it is read when it is complete.

    mistral: text may stand before the marker. llama3: the answer has to begin with the call.
    """

    def __init__(self, kind: str, names: Collection[str]) -> None:
        self._kind, self._names = kind, frozenset(names)
        self._held, self._state = "", "open"  # then "text" (no call any more) or "call"

    def push(self, piece: str) -> list[Piece]:
        if self._state == "text":
            return [piece] if piece else []
        self._held += piece
        if self._state == "call":
            return []
        return self._mistral() if self._kind == "mistral" else self._llama3()

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._state == "call":
            calls = _mistral_calls(held) if self._kind == "mistral" else self._llama3_calls(held)
            if calls:
                return list(calls)
        return [held] if held else []

    def _mistral(self) -> list[Piece]:
        before, marker, _ = self._held.partition(MISTRAL)
        kept = 0 if marker else possible_start(before, [MISTRAL])
        kept += trailing_space(before[: len(before) - kept])
        shown, rest = before[: len(before) - kept], self._held[len(before) - kept :]
        self._held = rest
        if marker:
            self._state = "call"
        return [shown] if shown else []

    def _llama3(self) -> list[Piece]:
        begun = self._held.lstrip()
        if begun.startswith(("{", PYTHON_TAG)):
            self._state = "call"
        elif not PYTHON_TAG.startswith(begun):
            self._state = "text"
            shown, self._held = self._held, ""
            return [shown]
        return []

    def _llama3_calls(self, text: str) -> list[Call]:
        """Without a marker an object is a call only if it names a tool that there is."""
        marked = text.lstrip().startswith(PYTHON_TAG)
        calls = _calls(text.lstrip().removeprefix(PYTHON_TAG), separator=";")
        return calls if marked or all(call.name in self._names for call in calls) else []


def _mistral_calls(text: str) -> list[Call]:
    calls: list[Call] = []
    for part in _between_markers(text.strip()):
        name, named, arguments = part.partition(MISTRAL_ARGUMENTS)
        if named and "[" not in name and "{" not in name:
            found = _calls(json.dumps({"name": name.strip()})[:-1] + ', "arguments": ' + arguments + "}")
        else:
            found = _calls(part)
        if not found:
            return []
        calls += found
    return calls


def _between_markers(text: str) -> list[str]:
    """Cut at the markers that are not inside a JSON string; the text begins with one."""
    parts, start, at = [], len(MISTRAL), len(MISTRAL)
    while (at := text.find(MISTRAL, at)) >= 0:
        if not _inside_string(text[start:at]):
            parts.append(text[start:at])
            start = at + len(MISTRAL)
        at += len(MISTRAL)
    return [*parts, text[start:]]


def _calls(text: str, separator: str = "") -> list[Call]:
    """The calls of which `text` consists, objects or lists of them; [] when there is anything else in it."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        if text[at].isspace() or (text[at] == separator and calls):
            at += 1
            continue
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = _call(item)
            if call is None:
                return []
            calls.append(call)
    return calls


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _inside_string(text: str) -> bool:
    """Whether a JSON text stops inside a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and inside:
            escaped = True
        elif character == '"':
            inside = not inside
    return inside
