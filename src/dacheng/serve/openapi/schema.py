"""JSON schemas in few words. In a request null says the same as a field that is absent, as `serve.fields` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

BOOL: Schema = {"type": "boolean"}
NONE: Schema = {"type": "null"}  # of a field that is known, and not implemented
JSON_SCHEMA: Schema = {"type": "object", "description": "a JSON schema"}
ANY_OBJECT: Schema = {"type": "object"}


def text(longest: int | None = None, shortest: int = 0) -> Schema:
    found: Schema = {"type": "string"}
    if longest is not None:
        found["maxLength"] = longest
    return found | ({"minLength": shortest} if shortest else {})


def integer(low: int | None = None, high: int | None = None) -> Schema:
    return {"type": "integer"} | _bounds(low, high)


def number(low: float | None = None, high: float | None = None) -> Schema:
    return {"type": "number"} | _bounds(low, high)


def _bounds(low: float | None, high: float | None) -> Schema:
    return ({} if low is None else {"minimum": low}) | ({} if high is None else {"maximum": high})


def only(*values: Any) -> Schema:
    """One of these."""
    return {"enum": list(values)}


def items(of: Schema, most: int | None = None, least: int = 0) -> Schema:
    found: Schema = {"type": "array", "items": of}
    if most is not None:
        found["maxItems"] = most
    return found | ({"minItems": least} if least else {})


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    kind = schema.get("type")
    if kind == "null":
        return schema
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    if isinstance(kind, str):
        return schema | {"type": [kind, "null"]}
    return {"anyOf": [*schema["anyOf"], NONE]} if "anyOf" in schema else {"anyOf": [schema, NONE]}


def asked(fields: Mapping[str, Schema], *required: str) -> Schema:
    """An object of a request: all else is refused, and what is not required may be null."""
    known = {name: schema if name in required else or_null(schema) for name, schema in fields.items()}
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def said(fields: Mapping[str, Schema], *, maybe: Mapping[str, Schema] | None = None) -> Schema:
    """An object of an answer, with all these fields; `maybe` it has those, too."""
    known = {**fields, **(maybe or {})}
    return {"type": "object", "properties": known, "required": list(fields), "additionalProperties": False}


def const(value: Any) -> Schema:
    return {"const": value}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
