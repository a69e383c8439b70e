"""/v1/completions, /v1/embeddings, /tokenize, /detokenize."""

from __future__ import annotations

from dacheng.serve.limits import Limits
from dacheng.serve.openapi import shared
from dacheng.serve.openapi.chat import usage
from dacheng.serve.openapi.schema import (
    ANY_OBJECT,
    BOOL,
    Schema,
    asked,
    const,
    either,
    integer,
    items,
    number,
    only,
    or_null,
    said,
    text,
)  # fmt: skip


def prompts(most: int) -> Schema:
    """serve.openai_completions.read_prompts."""
    ids = items(integer(0), None, 1)
    return either(text(), items(text(), most, 1), ids, items(ids, most, 1))


def completion_request(limits: Limits) -> Schema:
    fields: dict[str, Schema] = {
        "model": shared.MODEL, "prompt": prompts(limits.prompts), "stream": BOOL,
        "stream_options": shared.stream_options(), "n": integer(1, limits.n), "best_of": integer(1, limits.n),
        "suffix": only(""), "user": shared.LABEL, "echo": BOOL, "logprobs": integer(0, limits.top_logprobs),
        "max_tokens": integer(0, limits.max_tokens), **shared.sampling(limits), **shared.structure(),
        "cache_salt": text(256),
    }  # fmt: skip
    return asked(fields, "model", "prompt")


def embedding_request(limits: Limits) -> Schema:
    fields = {
        "model": shared.MODEL, "input": prompts(limits.inputs), "encoding_format": only("float", "base64"),
        "dimensions": integer(1), "user": shared.LABEL,
    }  # fmt: skip
    return asked(fields, "model", "input")


def tokenize_request(limits: Limits) -> Schema:
    shown = {"model": shared.MODEL, "return_token_strs": BOOL}
    return either(
        asked({**shown, "prompt": text(), "add_special_tokens": BOOL}, "prompt"),
        asked({
            **shown, "messages": shared.messages(limits), "tools": shared.tools(limits),
            "add_generation_prompt": only(True), "chat_template_kwargs": ANY_OBJECT,
        }, "messages"),
    )  # fmt: skip


def detokenize_request(limits: Limits) -> Schema:
    return asked({"model": shared.MODEL, "tokens": items(integer(0), 1 << 20)}, "tokens")


def answers() -> dict[str, Schema]:
    logprobs = said({
        "tokens": items(text()), "token_logprobs": items(or_null(number())), "text_offset": items(integer(0)),
        "top_logprobs": items(or_null(ANY_OBJECT | {"additionalProperties": number()})),
    })  # fmt: skip
    choice: dict[str, Schema] = {
        "index": integer(0), "text": text(), "logprobs": or_null(logprobs),
        "finish_reason": or_null(only("stop", "length")),
    }  # fmt: skip
    head: dict[str, Schema] = {
        "id": text(), "object": const("text_completion"), "created": integer(), "model": text(),
        "choices": items(said(choice)),
    }  # fmt: skip
    vector = said({
        "object": const("embedding"), "index": integer(0), "embedding": either(items(number()), text()),
    })  # fmt: skip
    return {
        "Completion": said({**head, "usage": usage()}),
        "CompletionChunk": said(head, maybe={"usage": or_null(usage())}),
        "Embeddings": said({
            "object": const("list"), "data": items(vector), "model": text(),
            "usage": said({"prompt_tokens": integer(0), "total_tokens": integer(0)}),
        }),
        "Tokens": said({
            "count": integer(0), "max_model_len": integer(1), "tokens": items(integer(0)),
            "token_strs": or_null(items(or_null(text()))),
        }),
        "Detokenized": said({"prompt": text()}),
    }  # fmt: skip
