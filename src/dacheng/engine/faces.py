"""The faces of dacheng.protocols.LanguageModel, over whatever adds requests and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from dacheng.engine.boundary import Encodes, encode_pair, encode_prompt
from dacheng.engine.output import StepOutput
from dacheng.engine.readings import Embedding, Scoring
from dacheng.engine.request import Request
from dacheng.engine.stops import StreamDecoder
from dacheng.errors import UsageError
from dacheng.protocols import Completion, SamplingParams

Prompt = str | Sequence[int]


class Tokenizer(Encodes, Protocol):
    """What the engine asks of dacheng.text.Tokenizer."""

    vocab_size: int

    def stream_decoder(self) -> StreamDecoder: ...


class Faces:
    """`generate`, `stream`, `loglikelihood` and `embed` (see Engine)."""

    tokenizer: Tokenizer | None
    metrics: Counter[str]

    def add(self, request: Request) -> int:
        raise NotImplementedError

    def check(self, request: Request) -> None:
        raise NotImplementedError

    def step(self) -> list[StepOutput]:
        raise NotImplementedError

    def cancel(self, request_id: int) -> bool:
        raise NotImplementedError

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt. A text begins as texts of the family do; ids are taken as they are."""
        return encode_prompt(self._tokenizer_for("text"), prompt) if isinstance(prompt, str) else list(prompt)

    def _tokenizer_for(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(f"{what} needs a tokenizer", field="tokenizer", value=None, remedy="give the engine one")
        return self.tokenizer

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order. A prompt is text or token ids; params: one for all, or one each.

        Raises as `add` does, and DachengError when the model breaks (NaN); then nothing of this call stays behind.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if isinstance(prompts, str) or len(params) != len(prompts):
            raise UsageError(
                "prompts and params must be sequences of one length",
                field="params",
                value=len(params),
                remedy=f"give one SamplingParams, or {len(prompts)}",
            )
        requests = [Request(self.encode(prompt), own) for prompt, own in zip(prompts, params)]
        self._run(requests)
        return [request.completion() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[str, None, Completion]:
        """Pieces of text as they may be shown; together they are the text that `generate` returns. The generator's
        return value is the Completion. Closing it cancels the request; other requests go on in its steps."""
        request = Request(self.encode(prompt), params or SamplingParams())
        self.check(request)  # now, not when the first piece is asked for
        self._tokenizer_for("streaming text")
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[str, None, Completion]:
        shown = 0
        self.add(request)
        try:
            while True:
                assert request.text is not None
                while shown < len(request.text.pieces):  # others may step the engine while this one is suspended
                    shown += 1
                    yield request.text.pieces[shown - 1]
                if request.error is not None:
                    raise request.error
                if request.finished:
                    return request.completion()
                self.step()
        finally:
            self.cancel(request.id)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of the continuation's log-probabilities in nats, and whether greedy
        decoding would produce it. Where one ends and the other begins: boundary.encode_pair; how often tokens crossed
        is counted in metrics (boundary_exact, boundary_moved, boundary_split).

        Raises DachengError when a pair does not fit the context: nothing is truncated.
        """
        tokenizer = self._tokenizer_for("loglikelihood")
        encoded = [encode_pair(tokenizer, context, continuation) for context, continuation in pairs]
        self.metrics.update(f"boundary_{pair.how}" for pair in encoded)
        requests = [Scoring(pair.token_ids, score_from=pair.score_from) for pair in encoded]
        self._run(requests)
        return [(request.nats, request.greedy) for request in requests]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector (D,) per text, of length 1: the mean of its last hidden states.

        Raises DachengError when a text does not fit the context: nothing is truncated.
        """
        requests = [Embedding(self.encode(text)) for text in texts]
        self._run(requests)
        return [request.vector() for request in requests]

    def _run(self, requests: Iterable[Request]) -> None:
        """Adds the requests and steps until all are finished. An error or an interrupt takes them out again."""
        requests = list(requests)
        try:
            for request in requests:
                self.add(request)
            for request in requests:
                while not request.finished:
                    self.step()
                if request.error is not None:
                    raise request.error
        finally:
            for request in requests:
                self.cancel(request.id)
