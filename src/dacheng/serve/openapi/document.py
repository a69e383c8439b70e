"""All routes as one OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dacheng.serve.limits import Limits
from dacheng.serve.openapi import adapters, anthropic, chat, responses, texts
from dacheng.serve.openapi.schema import (
    ANY_OBJECT,
    Schema,
    const,
    either,
    integer,
    items,
    only,
    or_null,
    ref,
    said,
    text,
)

_EVENTS = "text/event-stream"
_REFUSALS = {
    400: "a field is missing, malformed, unknown or not implemented; the error names it", 401: "a key is needed",
    403: "not a host of this server", 404: "there is no such model", 408: "the body did not arrive in time",
    413: "the body is too large", 415: "the body is not declared as application/json",
    429: "the queue is full; Retry-After says when to come back",
}  # fmt: skip
_FAILURES = {500: "the server failed", 503: "it is stopping or broken", 504: "the deadline passed"}


@dataclass(frozen=True, slots=True)
class Operation:
    """request: makes the schema of the body; None for GET. answer: a component, or the media type of a text. events:
    what a stream of the answer consists of, where stream=true is taken, each a `chunk`, a component."""

    path: str
    summary: str
    answer: str
    request: Callable[[Limits], Schema] | None = None
    events: str = ""
    chunk: str = "Event"

    @property
    def method(self) -> str:
        return "get" if self.request is None else "post"


OPERATIONS = (
    Operation("/v1/chat/completions", "OpenAI's chat completions", "ChatCompletion", chat.request,
              "the role, deltas, a finish_reason for each choice, the usage if asked for", "ChatCompletionChunk"),
    Operation("/v1/completions", "OpenAI's completions", "Completion", texts.completion_request,
              "pieces of text, the usage if asked for", "CompletionChunk"),
    Operation("/v1/responses", "OpenAI's responses; nothing is stored", "Response", responses.request,
              "response.created to response.completed, each with its sequence_number"),
    Operation("/v1/embeddings", "OpenAI's embeddings, of length 1", "Embeddings", texts.embedding_request),
    Operation("/v1/messages", "Anthropic's messages", "Message", anthropic.request, "message_start to message_stop"),
    Operation("/v1/messages/count_tokens", "Tokens of a message", "TokenCount", anthropic.count_request),
    Operation("/tokenize", "Token ids of a text or a chat", "Tokens", texts.tokenize_request),
    Operation("/detokenize", "The text of token ids", "Detokenized", texts.detokenize_request),
    Operation("/v1/load_lora_adapter", "Loads an adapter (vLLM's)", "text/plain", adapters.load_request),
    Operation("/v1/unload_lora_adapter", "Unloads an adapter (vLLM's)", "text/plain", adapters.unload_request),
    Operation("/v1/models", "The models that are served", "ModelList"),
    Operation("/v1/models/{name}", "One of them", "Model"),
    Operation("/tokenizer_info", "tokenizer_config.json and the special ids", "TokenizerInfo"),
    Operation("/health", "Whether every engine works", "Health"),
    Operation("/metrics", "Metrics for Prometheus, under vLLM's names where they match", "text/plain"),
    Operation("/version", "The version of the server", "Version"),
    Operation("/openapi.json", "This document", "Document"),
)  # fmt: skip


def document(limits: Limits, paths: Collection[str], version: str) -> dict[str, Any]:
    """paths: the routes that are served."""
    found: dict[str, Any] = {}
    for operation in OPERATIONS:
        if operation.path in paths:
            found[operation.path] = {operation.method: _described(operation, limits)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dacheng",
            "version": version,
            "description": "null says the same as a field that is absent. A field that is not implemented is refused.",
        },
        "paths": found,
        "components": {
            "schemas": _components(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{"bearer": []}, {"header": []}, {}],
    }


def _described(operation: Operation, limits: Limits) -> dict[str, Any]:
    error = "AnthropicError" if operation.path.startswith("/v1/messages") else "Error"
    plain = "/" in operation.answer
    kind = operation.answer if plain else "application/json"
    content: dict[str, Any] = {kind: {"schema": text() if plain else ref(operation.answer)}}
    if operation.events:
        content[_EVENTS] = {"schema": _event(operation, error)}
    answers: dict[str, Any] = {"200": {"description": operation.summary, "content": content}}
    known = _REFUSALS | _FAILURES if operation.request else {s: _REFUSALS[s] for s in (401, 403, 404)} | _FAILURES
    for status, why in known.items():
        answers[str(status)] = {"description": why, "content": {"application/json": {"schema": ref(error)}}}
    if operation.path == "/health":
        answers["503"]["content"]["application/json"]["schema"] = ref("Health")
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_")
    said: dict[str, Any] = {"operationId": f"{operation.method}_{name}", "summary": operation.summary,
                            "responses": answers}  # fmt: skip
    if operation.request is not None:
        body = {"application/json": {"schema": operation.request(limits)}}
        said["requestBody"] = {"required": True, "content": body}
    if "{name}" in operation.path:
        said["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": text(None, 1)}]
    return said


def _event(operation: Operation, error: str) -> Schema:
    """Of a stream: its name, and its data as text."""
    data = text() | {"contentMediaType": "application/json", "contentSchema": either(ref(operation.chunk), ref(error))}
    ends = "; at the end [DONE]" if operation.path.endswith("completions") else ""
    described = {"description": f"with stream=true: {operation.events}{ends}"}
    return said({"data": data}, maybe={"event": text()}) | described


def _components() -> dict[str, Schema]:
    error = said({
        "message": text(), "type": text(), "param": or_null(text()), "code": or_null(text()),
    })  # fmt: skip
    card = said({
        "id": text(), "object": const("model"), "created": integer(), "owned_by": text(), "root": text(),
        "parent": or_null(text()), "max_model_len": integer(1),
    })  # fmt: skip
    return {
        "Error": said({"error": error}),
        **chat.answers(), **texts.answers(), **responses.answers(), **anthropic.answers(),
        "Model": card, "ModelList": said({"object": const("list"), "data": items(ref("Model"))}),
        "TokenizerInfo": ANY_OBJECT,
        "Health": said({"status": only("ok", "degraded", "failed")}, maybe={"workers": items(text())}),
        "Version": said({"version": text()}), "Document": ANY_OBJECT,
        "Event": {"type": "object", "properties": {"type": text()}, "required": ["type"]},
    }  # fmt: skip
