"""/v1/completions: texts or token ids, many at once; echo with log-probabilities, as lm-evaluation-harness asks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dacheng.serve.api_error import bad_request
from dacheng.serve.chat import room_for_answer
from dacheng.serve.exchange import Exchange
from dacheng.serve.fields import Fields
from dacheng.serve.generation import Job, encode_text, run_job
from dacheng.serve.openai_chat import read_stream_options
from dacheng.serve.sampling import read_sampling
from dacheng.serve.served_model import ServedModel
from dacheng.serve.streams import sse
from dacheng.serve.structure import read_structure
from dacheng.serve.token_text import entries, finite

if TYPE_CHECKING:
    from dacheng.engine.engine import StepOutput

DEFAULT_TOKENS = 16  # OpenAI's


@dataclass(slots=True)
class CompletionRequest:
    """prompts: (ids, text) of each; n samples of each. keep_tokens: whether what is generated is shown (max_tokens=0
    scores a prompt; the engine still takes one step)."""

    prompts: list[tuple[list[int], str]]
    job: Job
    echo: bool
    logprobs: int | None
    keep_tokens: bool
    include_usage: bool
    base: dict[str, Any] = field(default_factory=dict)


async def completions(exchange: Exchange) -> Any:
    model = exchange.find_model()
    if model.grounding is not None:
        raise bad_request("model", "this one answers questions in chats; use /v1/chat/completions")
    stream = exchange.body.flag("stream")
    request = await read_completion_request(exchange, model, stream)
    exchange.body.done()
    steps = exchange.owned(run_job(model, request.job))
    if stream:
        return await exchange.stream(sse(_chunks(steps, model, request), done=True))
    return await exchange.answer(_whole(steps, model, request))


async def read_completion_request(exchange: Exchange, model: ServedModel, stream: bool) -> CompletionRequest:
    body, limits = exchange.body, exchange.limits
    include_usage = read_stream_options(body, stream)
    n = body.integer("n", 1, low=1, high=limits.n)
    body.only("best_of", n)
    body.only("suffix", "")
    body.text("user", longest=512)
    prompts = await read_prompts(body, "prompt", model, limits.prompts)
    if len(prompts) * n > limits.prompts:
        raise bad_request("n", f"more than {limits.prompts} completions in all")
    echo = body.flag("echo")
    logprobs = body.integer("logprobs", low=0, high=limits.top_logprobs)
    max_tokens = body.integer("max_tokens", DEFAULT_TOKENS, low=0, high=limits.max_tokens)
    if max_tokens == 0 and not echo:
        raise bad_request("max_tokens", "0 only with echo=true")
    sampling = read_sampling(body, limits, model.vocab_size)
    if logprobs is not None:
        sampling |= {"logprobs": True, "top_logprobs": logprobs or None}
        if echo:
            sampling["prompt_logprobs"] = logprobs
    for ids, _ in prompts:
        room_for_answer(model, len(ids), max(max_tokens, 1), limits.max_tokens)
    structure = read_structure(body)
    grammar = None if structure is None else structure.grammar
    params = model.sampling_params(**sampling, max_tokens=max(max_tokens, 1), grammar=grammar)
    salt = exchange.salt(body.text("cache_salt", "", longest=256))
    param = "response_format" if structure is None else structure.param
    job = Job([ids for ids, _ in prompts], params, n, "prompt", limits.deadline_s, salt, exchange.meter, param)
    base = {
        "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
        "model": exchange.model_name,
    }  # fmt: skip
    return CompletionRequest(prompts, job, echo, logprobs, max_tokens > 0, include_usage, base)


async def read_prompts(body: Fields, key: str, model: ServedModel, most: int) -> list[tuple[list[int], str]]:
    """(ids, text) of a text, a list of texts, a list of token ids or a list of those."""
    found = body.demand(key, body.raw(key))
    where = body.path(key)
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not found:
        raise bad_request(where, "expected a text, texts, token ids, or lists of those")
    if all(type(item) is int for item in found):
        found = [found]
    if len(found) > most:
        raise bad_request(where, f"more than {most} entries")
    prompts = []
    for i, item in enumerate(found):
        if isinstance(item, str):
            prompts.append((await encode_text(model, item), item))
        elif isinstance(item, list) and item and all(type(token) is int for token in item):
            if not all(0 <= token < model.vocab_size for token in item):
                raise bad_request(f"{where}[{i}]", f"token ids are 0 to {model.vocab_size - 1}")
            prompts.append((item, model.tokenizer.decode(item)))
        else:
            raise bad_request(f"{where}[{i}]", "expected a text, or token ids")
    return prompts


class _Choice:
    """One sample: the pieces of its text, and its log-probabilities in the old format."""

    def __init__(self, model: ServedModel, request: CompletionRequest, index: int) -> None:
        self._model, self._request, self.index = model, request, index
        self._prompt, self._prompt_text = request.prompts[index // request.job.n]
        self._offset, self._begun = 0, False
        self.tokens = 0

    def push(self, output: StepOutput) -> tuple[str, dict[str, Any] | None, str | None]:
        """(text, logprobs, finish_reason) of one step."""
        request, text = self._request, ""
        found: list[tuple[int, float | None, tuple[tuple[int, float], ...]]] = []
        if not self._begun:
            self._begun = True
            if request.echo:
                text = self._prompt_text
                found = self._of_prompt(output)
            else:
                self._offset = len(self._prompt_text)
        self.tokens += len(output.token_ids)
        if request.keep_tokens:
            text += output.text
            found += [(entry.token_id, entry.logprob, entry.top) for entry in entries(output)]
        logprobs = None if request.logprobs is None else self._format(found)
        return text, logprobs, output.finish_reason

    def _of_prompt(self, output: StepOutput) -> list[tuple[int, float | None, tuple[tuple[int, float], ...]]]:
        if self._request.logprobs is None:
            return []
        rows = getattr(output, "prompt_logprobs", None) or []
        found: list[tuple[int, float | None, tuple[tuple[int, float], ...]]] = []
        for token_id, row in zip(self._prompt, rows):
            pairs = tuple((i, finite(value)) for i, value in row or ())
            found.append((token_id, dict(pairs).get(token_id), pairs))
        return found

    def _format(self, found: list[tuple[int, float | None, tuple[tuple[int, float], ...]]]) -> dict[str, Any]:
        tokens, values, tops, offsets = [], [], [], []
        for token_id, logprob, pairs in found:
            name = self._name(token_id)
            tokens.append(name)
            values.append(logprob)
            offsets.append(self._offset)
            self._offset += len(name)
            top: dict[str, float] = {}
            for i, value in pairs[: self._request.logprobs or 0]:
                top.setdefault(self._name(i), value)  # of two tokens that look alike, the likelier
            if logprob is not None:
                top.setdefault(name, logprob)
            tops.append(top if logprob is not None else None)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _name(self, token_id: int) -> str:
        return self._model.tokenizer.decode_bytes([token_id], skip_special_tokens=False).decode("utf-8", "replace")


async def _chunks(
    steps: AsyncIterator[tuple[int, StepOutput]], model: ServedModel, request: CompletionRequest
) -> AsyncGenerator[dict[str, Any], None]:
    choices = [_Choice(model, request, i) for i in range(len(request.prompts) * request.job.n)]
    base = request.base | ({"usage": None} if request.include_usage else {})
    async for index, output in steps:
        text, logprobs, reason = choices[index].push(output)
        if text or reason or (logprobs and logprobs["tokens"]):
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            yield base | {"choices": [choice]}
    if request.include_usage:
        yield base | {"choices": [], "usage": _usage(request, choices)}


async def _whole(
    steps: AsyncIterator[tuple[int, StepOutput]], model: ServedModel, request: CompletionRequest
) -> dict[str, Any]:
    count = len(request.prompts) * request.job.n
    choices = [_Choice(model, request, i) for i in range(count)]
    answers: list[dict[str, Any]] = [
        {"index": i, "text": "", "logprobs": None, "finish_reason": None} for i in range(count)
    ]
    async for index, output in steps:
        text, logprobs, reason = choices[index].push(output)
        answer = answers[index]
        answer["text"] += text
        answer["finish_reason"] = reason
        if logprobs is not None:
            if answer["logprobs"] is None:
                answer["logprobs"] = logprobs
            else:
                for key, values in logprobs.items():
                    answer["logprobs"][key] += values
    return request.base | {"choices": answers, "usage": _usage(request, choices)}


def _usage(request: CompletionRequest, choices: list[_Choice]) -> dict[str, Any]:
    prompt = sum(len(ids) for ids, _ in request.prompts)
    made = sum(choice.tokens for choice in choices) if request.keep_tokens else 0
    cached = 0 if request.job.meter is None else request.job.meter.cached_tokens
    return {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
