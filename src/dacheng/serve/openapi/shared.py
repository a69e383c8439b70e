"""Parts of requests that several routes take, as sampling, structure, tools and messages read them."""

from __future__ import annotations

from dacheng.engine.params import SEEDS
from dacheng.serve.limits import Limits
from dacheng.serve.openapi.schema import (
    ANY_OBJECT,
    BOOL,
    JSON_SCHEMA,
    NONE,
    Schema,
    asked,
    either,
    integer,
    items,
    number,
    only,
    text,
)  # fmt: skip
from dacheng.serve.sampling import ALREADY

NAME = text(128, 1) | {"pattern": "^[A-Za-z0-9_.:-]{1,128}$"}
LABEL = text(512)
MODEL = text(256) | {"description": "a name that GET /v1/models lists"}


def sampling(limits: Limits) -> dict[str, Schema]:
    """serve.sampling.read_sampling."""
    return {
        "temperature": number(0, 2), "top_p": number(0, 1), "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "logit_bias": ANY_OBJECT | {
            "additionalProperties": number(-100, 100), "maxProperties": limits.logit_bias,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "description": "token ids, and what is added to their logits",
        },
        "seed": integer(*SEEDS), "stop": stops(limits), "top_k": integer(-1), "min_p": number(0, 1),
        "repetition_penalty": number(0.01, 10), "min_tokens": integer(0, 1 << 20), "ignore_eos": BOOL,
        **{key: only(*dict.fromkeys(values)) for key, values in ALREADY.items()},
        "stop_token_ids": items(integer(0), 64),
    }  # fmt: skip


def stops(limits: Limits) -> Schema:
    one = text(limits.stop_chars, 1)
    return either(one, items(one, limits.stops))


def structure() -> dict[str, Schema]:
    """serve.structure.read_structure."""
    schema = either(JSON_SCHEMA, text())
    choices = items(text(None, 1), None, 1)
    guided = {"json": schema, "regex": text(None, 1), "choice": choices, "grammar": text(None, 1)}
    off = {key: only(False) for key in ("disable_fallback", "disable_any_whitespace", "disable_additional_properties")}
    return {
        "response_format": either(
            asked({"type": only("text", "json_object")}, "type"),
            asked({"type": only("json_schema"), "json_schema": asked(named_schema(), "name", "schema")},
                  "type", "json_schema"),
        ),
        "structured_outputs": asked({**guided, "json_object": BOOL, **off}) | {"description": "vLLM's; one of them"},
        **{f"guided_{kind}": value for kind, value in guided.items()},
    }  # fmt: skip


def named_schema() -> dict[str, Schema]:
    return {"name": text(64), "description": text(4096), "strict": BOOL, "schema": JSON_SCHEMA}


def stream_options() -> Schema:
    return asked({"include_usage": BOOL, "include_obfuscation": only(False), "continuous_usage_stats": only(False)}) | {
        "description": "only with stream=true"
    }


def function(schema: str = "parameters") -> dict[str, Schema]:
    """serve.tools.checked_tool."""
    return {"name": NAME, "description": text(), schema: JSON_SCHEMA, "strict": BOOL}


def tools(limits: Limits) -> Schema:
    return items(
        asked({"type": only("function"), "function": asked(function(), "name")}, "type", "function"), limits.tools
    )


def tool_choice() -> Schema:
    named = asked({"type": only("function"), "function": asked({"name": text()}, "name")}, "type", "function")
    allowed = asked({"mode": only("auto", "required"), "tools": items(named, 128, 1)}, "mode", "tools")
    return either(
        only("none", "auto", "required"), named,
        asked({"type": only("allowed_tools"), "allowed_tools": allowed}, "type", "allowed_tools"),
    )  # fmt: skip


def messages(limits: Limits) -> Schema:
    """serve.messages.read_messages."""
    content = either(text(), items(asked({"type": only("text"), "text": text()}, "type", "text")))
    call = asked(
        {
            "type": only("function"), "id": text(), "index": integer(),
            "function": asked({"name": text(), "arguments": text()}, "name"),
        }, "function",
    )  # fmt: skip
    spoken = asked(
        {"role": only("system", "developer", "user"), "content": content, "name": text(128)}, "role", "content"
    )
    answer = asked(
        {
            "role": only("assistant"), "content": content, "name": text(128), "refusal": NONE, "audio": NONE,
            "function_call": NONE, "annotations": only([]), "reasoning_content": text(), "tool_calls": items(call, 128),
        }, "role",
    )  # fmt: skip
    result = asked(
        {"role": only("tool"), "content": content, "name": text(128), "tool_call_id": text()},
        "role", "content", "tool_call_id",
    )  # fmt: skip
    return items(either(spoken, answer, result), limits.messages, 1)
