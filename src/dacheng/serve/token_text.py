"""The text of one answer as it may be shown, and the tokens that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dacheng.engine.stops import StopMatcher

if TYPE_CHECKING:
    from dacheng.engine.engine import StepOutput
    from dacheng.text import Tokenizer

LOWEST = -9999.0  # in place of minus infinity, which JSON cannot say (as vLLM does)
_BEFORE = 16  # tokens of the prompt that the decoder reads: more than a character can have


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token, its log-probability (nats), and the likeliest in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST  # not max: a NaN, too, is no JSON


class MarkedText:
    """The engine's text with some special tokens shown by name: `[TOOL_CALLS]` is no text for an engine.

    Without marker ids the engine's own text is taken. stops: those of the engine, which ends the request there.
    """

    def __init__(
        self, tokenizer: Tokenizer, marker_ids: frozenset[int], prompt: Sequence[int], stops: Sequence[str]
    ) -> None:
        self._markers, self._special = marker_ids, tokenizer.special_ids
        self._matcher = StopMatcher(stops)
        self._decoder = tokenizer.stream_decoder(skip_special_tokens=False) if marker_ids else None
        if self._decoder is not None:
            for token_id in prompt[-_BEFORE:]:
                self._decoder.push(token_id)

    def push(self, output: StepOutput) -> str:
        if self._decoder is None:
            return output.text
        text = "".join(
            self._matcher.push(self._decoder.push(token_id))
            for token_id in output.token_ids
            if token_id not in self._special or token_id in self._markers
        )
        if output.finish_reason is not None:
            text += self._matcher.push(self._decoder.finish()) + self._matcher.release()
        return text


class LogprobAligner:
    """Hands out the log-probabilities of tokens when text of theirs is shown: what was cut off (a stop string, the
    token that ends the turn) has none.

    A token belongs to the text from where the tokens before it end, counted in characters as they are decoded.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._decoder = tokenizer.stream_decoder()
        for token_id in prompt[-_BEFORE:]:
            self._decoder.push(token_id)
        self._waiting: list[tuple[int, TokenLogprob]] = []  # characters before the token
        self._decoded = self._shown = 0

    def push(self, output: StepOutput, shown: str) -> list[TokenLogprob]:
        """shown: the text that the step released."""
        for entry in entries(output):
            self._waiting.append((self._decoded, entry))
            self._decoded += len(self._decoder.push(entry.token_id))
        self._shown += len(shown)
        ready = [entry for before, entry in self._waiting if before < self._shown]
        self._waiting = self._waiting[len(ready) :]
        return ready


def entries(output: StepOutput) -> list[TokenLogprob]:
    """The log-probabilities that a step brought."""
    logprobs = output.logprobs or []
    tops: Sequence[Sequence[tuple[int, float]]] = getattr(output, "top_logprobs", None) or [()] * len(logprobs)
    return [
        TokenLogprob(token_id, finite(logprob), tuple((i, finite(value)) for i, value in top))
        for token_id, logprob, top in zip(output.token_ids, logprobs, tops)
    ]


def stop_that_ended(
    tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int], shown: int, stops: Sequence[str]
) -> str | None:
    """The stop string that stands behind the first `shown` characters of what the tokens say, if one does."""
    decoder = tokenizer.stream_decoder()
    for token_id in prompt[-_BEFORE:]:
        decoder.push(token_id)
    rest = ("".join(map(decoder.push, token_ids)) + decoder.finish())[shown:]
    found = [stop for stop in stops if rest.startswith(stop)]
    return max(found, key=len) if found else None
