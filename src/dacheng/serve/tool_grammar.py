"""The grammar of an answer: of a structure that it must have, and of the calls that it must, or may, consist of.

Calls are written as `tool_calls` reads them, so that a call that fits the grammar always parses, and its arguments fit
the tool's JSON schema. A model that thinks may do so before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dacheng.engine.grammar import embedded, embedded_schema
from dacheng.protocols import Grammar
from dacheng.serve.api_error import bad_request
from dacheng.serve.reasoning import CLOSE as THOUGHT_CLOSE
from dacheng.serve.reasoning import OPEN as THOUGHT_OPEN
from dacheng.serve.structure import Structure
from dacheng.serve.tool_calls import CLOSE, MISTRAL, MISTRAL_ARGUMENTS, OPEN
from dacheng.serve.tools import ToolRule, Tools

if TYPE_CHECKING:
    from dacheng.serve.served_model import ServedModel
    from dacheng.text import Tokenizer

_TEXT = "TEXT: /(.|\\n)*/"
_GAP = "/[ \\n]{0,4}/"


def answer_grammar(
    model: ServedModel, tools: Tools, rule: ToolRule | None, structure: Structure | None, inside: bool
) -> Structure | None:
    """What the engine has to be told; None: nothing. inside: the prompt has already opened a thought.

    Raises APIError 400 where a model cannot be held to it: its template teaches no calls, or one excludes the other.
    """
    if rule is not None and model.tool_format is None:
        if rule.restrains:
            raise bad_request(rule.param, "the chat template of this model teaches no format of tool calls")
        rule = None
    if rule is None or not (rule.restrains or structure):
        return structure if structure is None else _thought_of(model, structure, inside)
    template = "" if model.renderer is None else model.renderer.template
    lark = _Lark(model.tokenizer, model.tool_format or "", MISTRAL_ARGUMENTS in template)
    lark.tools(tools, rule, only_strict=not rule.must and structure is None)
    param = rule.param
    if rule.must:
        answer = lark.calls(rule.parallel)
    elif structure is not None:
        param = structure.param
        if structure.grammar.kind == "lark" or model.tool_format == "llama3":
            raise bad_request(param, "not together with tools: a call could not be told from it")
        answer = f"{embedded(structure.grammar)} | {lark.calls(rule.parallel)}"
    else:
        answer = lark.text_or_calls(rule.parallel)
    thinks = model.reasons and (inside or rule.must or structure is not None)
    return Structure(lark.grammar(answer, thinks, inside), param)


def _thought_of(model: ServedModel, structure: Structure, inside: bool) -> Structure:
    if not model.reasons:
        return structure
    if structure.grammar.kind == "lark":
        if inside:
            remedy = "use a JSON schema, a regular expression or a choice"
            raise bad_request(structure.param, f"this model thinks first, for which a grammar has no place; {remedy}")
        return structure
    lark = _Lark(model.tokenizer, "", False)
    return Structure(lark.grammar(embedded(structure.grammar), True, inside), structure.param)


class _Lark:
    """A grammar in llguidance's dialect of Lark. Markers that are special tokens of the tokenizer are named by their
    ids: no text is one of those."""

    def __init__(self, tokenizer: Tokenizer, kind: str, arguments_marker: bool) -> None:
        self._tokenizer, self._kind, self._arguments_marker = tokenizer, kind, arguments_marker
        self._rules = [_TEXT]

    def grammar(self, answer: str, thinks: bool, inside: bool) -> Grammar:
        head = ""
        if thinks:
            self._after("thought", THOUGHT_CLOSE)
            head = f"thought {_GAP} " if inside else f"({self._mark(THOUGHT_OPEN)} thought {_GAP})? "
        return Grammar("lark", "\n".join([f"start: {head}answer", f"answer: {answer}", *self._rules]) + "\n")

    def tools(self, tools: Tools, rule: ToolRule, *, only_strict: bool) -> None:
        """only_strict: the arguments of other tools are any object."""
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools.functions}
        for i, name in enumerate(rule.names):
            schema = schemas[name] if name in tools.strict or not only_strict else {}
            self._rules.append(f"tool_{i}: {self._call(name, _object(schema, f'tools ({name})'))}")
        self._rules.append("tool: " + " | ".join(f"tool_{i}" for i in range(len(rule.names))))
        if self._kind == "hermes":
            self._rules.append('body: "\\n" tool "\\n" ' + self._mark(CLOSE))

    def _call(self, name: str, arguments: str) -> str:
        if self._kind == "mistral" and self._arguments_marker:
            return f"{_text(name)} {self._mark(MISTRAL_ARGUMENTS)} {arguments}"
        key = "parameters" if self._kind == "llama3" else "arguments"
        opening = f'{{"name": {json.dumps(name)}, "{key}": '
        return f"{_text(opening)} {arguments} {_text('}')}"

    def calls(self, parallel: bool) -> str:
        """Nothing but calls."""
        if self._kind == "hermes":
            one = f"{self._mark(OPEN)} body"
            return f'{one} ("\\n" {one})*' if parallel else one
        if self._kind == "mistral":
            return f"{self._mark(MISTRAL)} {self._mistral(parallel)}"
        return "tool (/; ?/ tool)*" if parallel else "tool"

    def text_or_calls(self, parallel: bool) -> str:
        """Whatever the model writes, but where it begins a call, that is one."""
        if self._kind == "llama3":
            self._rules.append("LEAD: /[^\\s{<](.|\\n)*/")
            return f"LEAD? | {self.calls(parallel)}"
        self._after("opening", OPEN if self._kind == "hermes" else MISTRAL)
        if self._kind == "mistral":
            return f"TEXT | opening {self._mistral(parallel)}"
        return "(opening body)* TEXT" if parallel else "TEXT | opening body"

    def _mistral(self, parallel: bool) -> str:
        if self._arguments_marker:
            return f"tool ({self._mark(MISTRAL)} tool)*" if parallel else "tool"
        return '"[" tool (", " tool)* "]"' if parallel else '"[" tool "]"'

    def _after(self, name: str, marker: str) -> None:
        """A rule: text up to the first such marker, and this."""
        mark = self._mark(marker)
        lazy = "[lazy]" if mark.startswith('"') else ""
        self._rules.append(f"{name}{lazy}: TEXT {mark}")

    def _mark(self, marker: str) -> str:
        token_id = self._tokenizer.special_tokens.get(marker)
        return f"<[{token_id}]>" if token_id in self._tokenizer.special_ids else _text(marker)


def _text(text: str) -> str:
    return json.dumps(text)


def _object(schema: dict[str, Any], where: str) -> str:
    """Arguments are an object whatever the schema leaves open."""
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise bad_request("tools", f"the arguments of a tool are an object, not {kind!r}: {where}")
    return embedded_schema(schema | {"type": "object"})
