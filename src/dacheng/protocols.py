"""The interfaces that rooms share: whatever answers like a language model, and what verifies, runs or is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is continued. Field names are those of vLLM and the OpenAI API.

    temperature: 0 means greedy. top_k: 0 means off. top_p, min_p in [0, 1] (1 and 0 mean off).
    repetition_penalty: > 0, 1 means off (Keskar et al. 2019, CTRL, section 4.1). seed: None draws one.
    stop: strings that end the text (not included in it). stop_token_ids: ids that end it, beside the model's EOS.
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


@dataclass(slots=True)
class Completion:
    """What came back for one prompt. finish_reason: "stop" | "length" | "cancelled". logprobs: of the chosen tokens."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


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
