"""One chat, as the stream of events that every chat API is a translation of."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.protocols import SamplingParams
from dacheng.serve.api_error import APIError, bad_request, from_dacheng
from dacheng.serve.generation import Job, run_job
from dacheng.serve.grounded import grounded_events
from dacheng.serve.metrics import Meter
from dacheng.serve.reasoning import CLOSE, OPEN, ReasoningSplitter
from dacheng.serve.served_model import ServedModel
from dacheng.serve.structure import Structure
from dacheng.serve.token_text import LogprobAligner, MarkedText, TokenLogprob, stop_that_ended
from dacheng.serve.tool_calls import Call, tool_parser
from dacheng.serve.tool_grammar import answer_grammar
from dacheng.serve.tools import ToolRule, Tools

if TYPE_CHECKING:
    from dacheng.engine.engine import StepOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """messages: as ChatRenderer takes them. rule: what calls there may be (None: none are looked for). structure: what
    the answer must be. variables: for the template. max_tokens: None for whatever the context leaves. params: all else
    of the sampling."""

    messages: list[dict[str, Any]]
    params: dict[str, Any]
    tools: Tools = field(default_factory=Tools)
    rule: ToolRule | None = None
    structure: Structure | None = None
    n: int = 1
    max_tokens: int | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    continue_final: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    index: int
    text: str
    thought: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """position: which call of this answer it is. arguments: JSON text, complete."""

    index: int
    position: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Finished:
    """reason: "stop" | "length" | "tool_calls". stop: the stop string that ended the text. thought_tokens: those of
    completion_tokens with which the model thought."""

    index: int
    reason: str
    completion_tokens: int
    stop: str | None = None
    thought_tokens: int = 0


Event = Started | TextDelta | ToolCall | Finished


async def render(model: ServedModel, request: ChatRequest) -> tuple[list[int], str]:
    """(ids, text) of the prompt. Raises APIError 400 when the template refuses it."""
    renderer = model.renderer
    if renderer is None:
        raise APIError(400, f"this model takes no chats: {model.no_chat}; use /v1/completions", param="messages")
    how = {"continue_final_message": True} if request.continue_final else {"add_generation_prompt": True}
    try:
        rendered = await asyncio.to_thread(
            renderer.render, request.messages, request.tools.for_template(), **how, **request.variables
        )
    except DachengError as error:
        if error.field and error.field.startswith(("messages[", "tools[")):
            raise bad_request(error.field, f"{error.problem}; {error.remedy}") from error
        raise from_dacheng(error, "messages") from error
    return rendered.token_ids, rendered.text


def room_for_answer(model: ServedModel, prompt_tokens: int, asked: int | None, most: int) -> int:
    """max_tokens of the answer. Raises APIError 400 when the prompt fills the context, or both together exceed it."""
    left = model.max_context - prompt_tokens
    if left < 1 or (asked or 0) > left:
        wanted = "one token" if asked is None else f"{asked} tokens"
        raise APIError(
            400,
            f"{prompt_tokens} tokens of prompt and {wanted} to generate do not fit the context of {model.max_context}",
            param="messages" if left < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    return min(left, most) if asked is None else asked


async def chat_events(
    model: ServedModel,
    request: ChatRequest,
    meter: Meter,
    *,
    most_tokens: int,
    deadline_s: float | None,
    salt: str,
) -> AsyncGenerator[Event, None]:
    """Started, then deltas and calls, and Finished for each index. Closing it cancels what still runs."""
    if model.grounding is not None:
        async for event in grounded_events(model.grounding, model.tokenizer, request, meter, most_tokens):
            yield event
        return
    prompt, text = await render(model, request)
    max_tokens = room_for_answer(model, len(prompt), request.max_tokens, most_tokens)
    opened = text.rstrip()
    inside = model.reasons and opened.rfind(OPEN) > opened.rfind(CLOSE) and opened.endswith(OPEN)
    structure = answer_grammar(model, request.tools, request.rule, request.structure, inside)
    params = model.sampling_params(
        **request.params, max_tokens=max_tokens, grammar=None if structure is None else structure.grammar
    )
    param = "response_format" if structure is None else structure.param
    job = Job([prompt], params, request.n, "messages", deadline_s, salt, meter, param)
    voices = [Voice(model, request, params, prompt, index, inside) for index in range(request.n)]
    started = False
    async with aclosing(run_job(model, job)) as steps:
        async for index, output in steps:
            if not started:
                started = True
                yield Started(len(prompt), int(getattr(output, "cached_tokens", 0) or 0))
            for event in voices[index].push(output):
                yield event


class Voice:
    """One sample: its tokens in, its events out."""

    def __init__(
        self,
        model: ServedModel,
        request: ChatRequest,
        params: SamplingParams,
        prompt: Sequence[int],
        index: int,
        inside: bool,
    ) -> None:
        self._model, self._prompt, self._index, self._stops = model, prompt, index, params.stop
        self._text = MarkedText(model.tokenizer, model.marker_ids, prompt, params.stop)
        self._aligner = LogprobAligner(model.tokenizer, prompt) if params.logprobs else None
        self._splitter = ReasoningSplitter(inside) if model.reasons else None
        self._parser = None
        if request.rule is not None and model.tool_format:
            self._parser = tool_parser(model.tool_format, request.tools.names)
        self._tokens: list[int] = []
        self._shown = self._calls = self._new = self._thought_tokens = 0
        self._logprobs: list[TokenLogprob] = []

    def push(self, output: StepOutput) -> list[Event]:
        self._tokens += output.token_ids
        self._new = len(output.token_ids)
        text = self._text.push(output)
        self._shown += len(text)
        if self._aligner is not None:
            self._logprobs += self._aligner.push(output, text)
        done = output.finish_reason is not None
        events: list[Event] = []
        for thought, piece in self._split(text, done):
            if thought or self._parser is None:
                events.append(self._delta(piece, thought))
            else:
                self._parse(self._parser.push(piece), events)
        if done:
            if self._parser is not None:
                self._parse(self._parser.finish(), events)
            if self._logprobs:
                events.append(self._delta(""))
            events.append(self._finished(output.finish_reason or "stop"))
        return events

    def _split(self, text: str, done: bool) -> list[tuple[bool, str]]:
        if self._splitter is None:
            return [(False, text)] if text else []
        before = self._splitter.thinking
        pieces = self._splitter.push(text) + (self._splitter.finish() if done else [])
        if before or self._splitter.thinking:
            self._thought_tokens += self._new
        return pieces

    def _parse(self, pieces: list[str | Call], events: list[Event]) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                events.append(self._delta(piece))
            else:
                call_id = f"call_{secrets.token_hex(12)}"
                events.append(ToolCall(self._index, self._calls, call_id, piece.name, piece.arguments))
                self._calls += 1

    def _delta(self, text: str, thought: bool = False) -> TextDelta:
        logprobs, self._logprobs = tuple(self._logprobs), []
        return TextDelta(self._index, text, thought, logprobs)

    def _finished(self, reason: str) -> Finished:
        stop = None
        if reason == "stop" and self._stops:
            stop = stop_that_ended(self._model.tokenizer, self._prompt, self._tokens, self._shown, self._stops)
        if self._calls and reason == "stop":
            reason = "tool_calls"
        return Finished(self._index, reason, len(self._tokens), stop, self._thought_tokens)
