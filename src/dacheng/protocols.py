"""The interfaces that rooms share: whatever answers like a language model, and what verifies, runs or is called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from dacheng.errors import UsageError

GrammarKind = Literal["json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must be. source: a JSON schema, a regular expression (Rust's syntax), a Lark grammar (llguidance's
    dialect), or a JSON list of strings. Make one with the functions below."""

    kind: GrammarKind
    source: str

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | bool | str) -> Grammar:
        """schema: the object, or its JSON text."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Grammar:
        """One of these texts. Raises UsageError for none, or one that is no text or empty."""
        if isinstance(choices, str) or not choices or not all(isinstance(c, str) and c for c in choices):
            raise UsageError("choices are texts that are not empty", field="choice", value=choices, remedy='["a", "b"]')
        return cls("choice", json.dumps(list(choices), ensure_ascii=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is continued. Field names are those of vLLM and the OpenAI API.

    temperature: 0 means greedy. top_k: 0 means off. top_p, min_p in [0, 1] (1 and 0 mean off).
    repetition_penalty: > 0, 1 means off (Keskar et al. 2019, CTRL, section 4.1). seed: None draws one.
    stop: strings that end the text (not included in it). stop_token_ids: ids that end it, beside the model's EOS.
    presence_penalty, frequency_penalty: taken off the logits of generated tokens, once, and times their count (OpenAI).
    logit_bias: (token id, what is added to its logit). min_tokens: nothing ends the text before so many.
    logprobs: of the chosen tokens; top_logprobs: of so many best ones beside each. prompt_logprobs: of the tokens of
    the prompt, with so many best ones beside each (None: not computed). processed_logprobs: those of `logprobs` are of
    the tempered distribution that was drawn from, not of the model's own (vLLM's logprobs_mode). grammar: what the text
    must be; it ends where nothing can follow.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    processed_logprobs: bool = False


TopLogprobs = list[tuple[int, float]]  # (token id, log-probability in nats), best first


@dataclass(slots=True)
class Completion:
    """What came back for one prompt. finish_reason: "stop" | "length" | "cancelled" | "deadline" | "error". logprobs:
    of the chosen tokens; top_logprobs: of the best ones beside each. prompt_logprobs: for each token of the prompt the
    best ones in its place, itself at the end where it is not among them; None for the first, which nothing predicts."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    top_logprobs: list[TopLogprobs] | None = None
    prompt_logprobs: list[TopLogprobs | None] | None = None


@runtime_checkable
class LanguageModel(Protocol):
    """The local engine, an HTTP client of any OpenAI-compatible server, and the scripted fake for tests."""

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """One completion per prompt, in order. A prompt is text or token ids."""
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): sum of log-probabilities in nats, and whether greedy would produce it."""
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text."""
        ...


@runtime_checkable
class Tool(Protocol):
    """Something a model may call. `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]

    def __call__(self, **arguments: Any) -> str: ...


@runtime_checkable
class Verifier(Protocol):
    """Judges one response: a score in [0, 1] and the reason."""

    def __call__(self, prompt: str, response: str, reference: Any = None) -> tuple[float, str]: ...


@runtime_checkable
class Sandbox(Protocol):
    """Runs code that nobody trusts, in a process of its own, within limits."""

    def run(self, code: str, *, timeout_s: float, memory_bytes: int) -> Any: ...


class ScriptedModel:
    """A LanguageModel that returns prepared answers: for tests of everything that talks to a model."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers: Iterator[str] = iter(answers)
        self.prompts: list[str | Sequence[int]] = []

    def generate(self, prompts, params):
        self.prompts.extend(prompts)
        return [Completion(prompt_token_ids=[], text=next(self._answers), finish_reason="stop") for _ in prompts]

    def loglikelihood(self, pairs):
        return [(-float(len(continuation)), False) for _, continuation in pairs]

    def embed(self, texts):
        return [[float(len(text))] for text in texts]
