"""A model whose answers come from documents: the last question of a chat is looked up, answered and cited.

Clients of every chat API reach it as any other model. It decodes in its own way, so what would steer that is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol

from dacheng.errors import DachengError
from dacheng.serve.api_error import bad_request, from_dacheng

if TYPE_CHECKING:
    from dacheng.serve.chat import ChatRequest, Event
    from dacheng.serve.metrics import Meter
    from dacheng.text import Tokenizer

LONGEST_QUESTION = 2000  # characters
_FREE = ("temperature", "top_p", "seed")  # that clients send whatever they talk to: the answer is the likeliest one


class Grounding(Protocol):
    """Answers one question. Called outside of the loop; raises DachengError."""

    def __call__(self, question: str) -> dict[str, Any]:
        """text, abstained, citations [{number, source, heading, first_line}], nearest [{source, heading}],
        prompt_tokens, completion_tokens."""
        ...


def question_of(request: ChatRequest) -> str:
    """The last message, which is the user's. Raises APIError 400 naming what a grounded model does not do."""
    refused = {
        "n": request.n != 1, "tools": bool(request.tools.names), "response_format": request.structure is not None,
        "continue_final_message": request.continue_final,
        **{name: value is not None and name not in _FREE for name, value in request.params.items()},
    }  # fmt: skip
    for name, is_refused in refused.items():
        if is_refused:
            raise bad_request(name, "answers from documents are not steered by it; leave it out")
    last = request.messages[-1]
    question = last.get("content") if last["role"] == "user" else None
    if not isinstance(question, str) or not question.strip():
        raise bad_request("messages", "the last message must be the user's question")
    if len(question) > LONGEST_QUESTION:
        raise bad_request("messages", f"a question of {len(question)} characters is longer than {LONGEST_QUESTION}")
    return question.strip()


async def grounded_events(
    ask: Grounding, tokenizer: Tokenizer, request: ChatRequest, meter: Meter, most_tokens: int
) -> AsyncGenerator[Event, None]:
    """As chat.chat_events. The answer comes in one piece; the sources that it cites stand below it."""
    from dacheng.engine.output import StepOutput
    from dacheng.serve.chat import Finished, Started, TextDelta

    question = question_of(request)
    try:
        answer = await asyncio.to_thread(ask, question)
    except DachengError as error:
        raise from_dacheng(error, "messages") from error
    text, reason = shown(answer), "stop"
    ids = tokenizer.encode(text)
    most = min(most_tokens, request.max_tokens or most_tokens)
    if len(ids) > most:
        text, ids, reason = tokenizer.decode(ids[:most]), ids[:most], "length"
    prompt_tokens = int(answer.get("prompt_tokens") or 0)
    meter.begin(prompt_tokens)
    meter.step(0, StepOutput(0, list(ids), finish_reason=reason))
    yield Started(prompt_tokens, 0)
    yield TextDelta(0, text)
    yield Finished(0, reason, len(ids))


def shown(answer: dict[str, Any]) -> str:
    """The answer and its sources, or that there is none and what is nearest, as text."""
    if answer["abstained"]:
        near = [f"- {one['source']}: {one['heading']}" for one in answer["nearest"]]
        return "\n".join(["Not in the documents.", *(["", "Nearest:", *near] if near else [])])
    sources = [f"[{c['number']}] {c['source']}, line {c['first_line']}: {c['heading']}" for c in answer["citations"]]
    return "\n".join([answer["text"], *(["", *sources] if sources else [])])
