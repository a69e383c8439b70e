"""Errors as the APIs write them: OpenAI's shape, and Anthropic's on its own routes."""

from __future__ import annotations

import json
from typing import Any

from dacheng.errors import DachengError

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class APIError(Exception):
    """A refusal with its HTTP status. param: the field that is meant, as a path ("messages[0].content")."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self, path: str, request_id: str) -> dict[str, Any]:
        """The error as the API that `path` belongs to writes it."""
        if path.startswith("/v1/messages"):
            kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            message = self.message if self.param is None else f"{self.param}: {self.message}"
            return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
        kind = _OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message if self.param is None else f"{self.param}: {self.message}"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(param: str, message: str) -> APIError:
    return APIError(400, message, param=param, code="invalid_value")


def unimplemented(param: str, remedy: str) -> APIError:
    return APIError(400, f"this server does not implement it; {remedy}", param=param, code="unsupported_parameter")


def from_dacheng(error: DachengError, prompt_param: str, grammar_param: str = "response_format") -> APIError:
    """A refusal of the engine, the tokenizer or the chat template. prompt_param: the field the prompt came in;
    grammar_param: the one that asked for a structure of the answer."""
    message = error.problem + (f"; {error.remedy}" if error.remedy else "")
    retry_after = getattr(error, "retry_after_s", None)
    if retry_after is not None:
        seconds = max(1, round(retry_after))
        return APIError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})
    if error.field in ("state", "engine"):  # it is stopping, or has broken down
        return APIError(503, message, code="not_running", headers={"Retry-After": "5"})
    if error.field == "grammar":
        return APIError(400, message, param=grammar_param, code="invalid_value")
    about_prompt = error.field in (None, "max_context", "prompt_token_ids", "messages", "text", "template", "id")
    return APIError(400, message, param=prompt_param if about_prompt else error.field, code="invalid_value")


def to_json(value: Any) -> bytes:
    """Compact JSON. Half a surrogate pair, which a request may hold, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
