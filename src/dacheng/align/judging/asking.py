"""Putting a question to a language model that judges, and reading its word."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import UsageError
from dacheng.protocols import Completion, LanguageModel, SamplingParams

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

Messages = list[dict[str, Any]]
_FIELD = re.compile(r"\{(\w+)\}")
_TOP = 20  # most likely tokens among which an option is looked for


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model and how it is asked: greedily, so that the same question gets the same answer.

    renderer: makes ids of the questions by the model's chat template. Words of what is judged then can't end the
    question or begin a turn, whatever marks they imitate. Without one the question is sent as text, for a model that
    is no chat model, and for one behind a URL, which has its own template.

    A question that is longer than the model reads is not put, and nothing was said of it: of thousands of pairs one
    must not cost the verdicts on the others.
    """

    model: LanguageModel
    renderer: ChatRenderer | None = None
    max_tokens: int = 256

    @classmethod
    def open(cls, path: Path | str, *, max_tokens: int = 256, max_batch: int = 16) -> Asker:
        """A model directory of this machine, in float32, on the engine. Raises what load_model raises, UsageError for a
        URL (pass its LanguageModel instead) or a model without a tokenizer."""
        from dacheng.engine import Engine
        from dacheng.formats.loading import load_model
        from dacheng.text import ChatRenderer

        if str(path).startswith(("http://", "https://")):
            raise UsageError(
                "a judge behind a URL is asked only where the caller opens it", field="judge", value=str(path),
                remedy="pass its LanguageModel, or name a directory",
            )  # fmt: skip
        loaded = load_model(path, dtype="float32")
        if loaded.tokenizer is None:
            raise UsageError("the judge has no tokenizer", field="judge", value=str(path))
        renderer = ChatRenderer(loaded.tokenizer) if loaded.tokenizer.config.get("chat_template") else None
        return cls(
            model=Engine(loaded.model, loaded.tokenizer, max_batch=max_batch), renderer=renderer, max_tokens=max_tokens
        )

    def ask(self, questions: Sequence[Messages]) -> list[str]:
        """The answer to each conversation, "" where it is too long."""
        params = SamplingParams(max_tokens=self.max_tokens, temperature=0.0)
        return ["" if said is None else said.text.strip() for said in self._generate(questions, params)]

    def choose(self, questions: Sequence[Messages], options: Sequence[str]) -> list[list[float] | None]:
        """For each question the probability of each option, among the options, by its first token.

        A model that gives no log-probabilities answers by its text: 1 for the option that is its first word. None where
        no option is among the 20 most likely tokens, or begins the text, or the question is too long. Raises UsageError
        for options that begin alike.
        """
        firsts = self._first_tokens(options)
        params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=True, top_logprobs=_TOP)
        said = self._generate(questions, params)
        return [None if one is None else _shares(one, options, firsts) for one in said]

    def _generate(self, questions: Sequence[Messages], params: SamplingParams) -> list[Completion | None]:
        if self.renderer is None:
            prompts: list[Any] = [as_text(question) for question in questions]
        else:
            prompts = [self.renderer.render(q, add_generation_prompt=True).token_ids for q in questions]
        fits = [self._fits(prompt) for prompt in prompts]
        if not any(fits):
            return [None] * len(prompts)
        said = iter(self.model.generate([prompt for prompt, fit in zip(prompts, fits) if fit], params))
        return [next(said) if fit else None for fit in fits]

    def _fits(self, prompt: str | list[int]) -> bool:
        """As far as the model says how much it reads: the engine does, what is behind a URL does not."""
        most = getattr(self.model, "max_context", None)
        if isinstance(prompt, str):
            tokenizer = self._tokenizer
            prompt = [] if most is None or tokenizer is None else tokenizer.encode(prompt)
        return most is None or len(prompt) < most

    @property
    def _tokenizer(self) -> Any:
        return self.renderer.tokenizer if self.renderer is not None else getattr(self.model, "tokenizer", None)

    def _first_tokens(self, options: Sequence[str]) -> list[set[int]]:
        """Of each option, with and without a space before it; empty sets where there is no tokenizer to say."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return [set() for _ in options]
        firsts = [{ids[0] for text in (word, " " + word) if (ids := tokenizer.encode(text))} for word in options]
        space = tokenizer.encode(" ")
        firsts = [ids - set(space[:1]) or ids for ids in firsts]
        if any(a & b for i, a in enumerate(firsts) for b in firsts[i + 1 :]):
            raise UsageError("two options begin with the same token", field="options", value=list(options))
        return firsts


def fill(template: str, values: Mapping[str, str]) -> str:
    """{name} -> its value, in one pass: braces in a value stay what they are. UsageError for a name without a value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise UsageError(
                "the template asks for what is not there", field="template", value=match[0],
                remedy="known: " + ", ".join(f"{{{name}}}" for name in values),
            )  # fmt: skip
        return values[match[1]]

    return _FIELD.sub(value, template)


def as_text(messages: Messages) -> str:
    """A conversation as plain text; one message of the user as itself."""
    said = [str(m.get("content") or m.get("tool_calls") or "") for m in messages]
    if len(said) == 1:
        return said[0]
    return "\n\n".join(f"{str(m['role']).capitalize()}: {text}" for m, text in zip(messages, said))


def _shares(completion: Completion, options: Sequence[str], firsts: Sequence[set[int]]) -> list[float] | None:
    if completion.top_logprobs and any(firsts):
        best = dict(completion.top_logprobs[0])
        chances = [sum(math.exp(best[token]) for token in ids if token in best) for ids in firsts]
    else:
        said = completion.text.strip()  # "As an AI" is no "A", "Not sure" no "No"
        chances = [float(re.match(rf"{re.escape(option)}\b", said, re.IGNORECASE) is not None) for option in options]
    total = sum(chances)
    return [chance / total for chance in chances] if total > 0 else None
