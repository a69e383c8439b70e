"""What an answer has to be, as requests say it: OpenAI's response_format, and the fields that clients of vLLM send.

All end in one Grammar; whether it can be followed is said by the engine, whose refusal names the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dacheng.errors import UsageError
from dacheng.protocols import Grammar
from dacheng.serve.api_error import bad_request
from dacheng.serve.fields import Fields, parse_json

GUIDED = ("json", "regex", "choice", "grammar")  # guided_json, …: vLLM's before structured_outputs


@dataclass(frozen=True, slots=True)
class Structure:
    """param: the field that asks for it."""

    grammar: Grammar
    param: str


def read_structure(body: Fields) -> Structure | None:
    """response_format, structured_outputs, guided_json and its like, of which there may be one. None: any text."""
    found = [read_format(body, "response_format"), _structured_outputs(body)]
    for kind in GUIDED:
        key = f"guided_{kind}"
        value = body.raw(key)
        found.append(None if value is None else Structure(_grammar(kind, value, key), key))
    there = [structure for structure in found if structure is not None]
    if len(there) > 1:
        raise bad_request(there[1].param, f"not together with {there[0].param}")
    return there[0] if there else None


def read_format(body: Fields, key: str, *, flat: bool = False) -> Structure | None:
    """flat: as the Responses API writes a format, the schema beside the type."""
    form = body.object(key)
    if form is None:
        return None
    kind = form.demand("type", form.text("type", choices=("text", "json_object", "json_schema")))
    grammar = None
    if kind == "json_object":
        grammar = Grammar.json_object()
    elif kind == "json_schema":
        inner = form if flat else form.demand("json_schema", form.object("json_schema"))
        inner.demand("name", inner.text("name", longest=64))
        inner.text("description", longest=4096)
        inner.flag("strict")  # the schema is always kept to
        schema = inner.demand("schema", inner.raw("schema"))
        if not isinstance(schema, dict):
            raise bad_request(inner.path("schema"), "expected a JSON schema")
        grammar = Grammar.json_schema(schema)
        inner.done()
    form.done()
    return None if grammar is None else Structure(grammar, body.path(key))


def _structured_outputs(body: Fields) -> Structure | None:
    entry = body.object("structured_outputs")
    if entry is None:
        return None
    given = {kind: value for kind in (*GUIDED, "json_object") if (value := entry.raw(kind)) not in (None, False)}
    for key in ("disable_fallback", "disable_any_whitespace", "disable_additional_properties"):
        entry.only(key, False)
    entry.done()
    if len(given) != 1:
        kinds = ", ".join((*GUIDED, "json_object"))
        raise bad_request("structured_outputs", f"expected one of {kinds}")
    ((kind, value),) = given.items()
    return Structure(_grammar(kind, value, f"structured_outputs.{kind}"), f"structured_outputs.{kind}")


def _grammar(kind: str, value: Any, where: str) -> Grammar:
    if kind == "json_object":
        if value is not True:
            raise bad_request(where, "expected true or false")
        return Grammar.json_object()
    if kind == "choice":
        try:
            return Grammar.choice(value if isinstance(value, list) else [])
        except UsageError as error:
            raise bad_request(where, error.problem) from None
    if kind == "json":
        schema = parse_json(value.encode("utf-8", "replace")) if isinstance(value, str) else value
        if not isinstance(schema, dict):
            raise bad_request(where, "expected a JSON schema")
        return Grammar.json_schema(schema)
    if not isinstance(value, str) or not value:
        raise bad_request(where, "expected a string that is not empty")
    return Grammar("regex" if kind == "regex" else "lark", value)
