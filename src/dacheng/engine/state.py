"""What one request brings to its draws."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from dacheng.engine.grammar import Matcher
from dacheng.errors import UsageError
from dacheng.protocols import SamplingParams


class SamplerState:
    """A request's parameters, its own random stream, and what it has seen and written.

    The stream is read once for each sampled token, so the text does not depend on what else is in the batch.
    forbidden: ids that may not come before min_tokens. matcher: of the grammar that the text must follow.
    """

    __slots__ = ("bias", "counts", "forbidden", "generated", "generator", "matcher", "params", "refusal", "seen")

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        vocab_size: int,
        prompt: Iterable[int],
        forbidden: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.generator = torch.Generator().manual_seed(seed)
        self.generated = 0
        self.seen: Tensor | None = None  # (V,) boolean: of prompt and text
        self.counts: Tensor | None = None  # (V,) float: of the text alone
        self.bias: tuple[Tensor, Tensor] | None = None  # ids, added to their logits
        self.forbidden: Tensor | None = None  # ids
        self.matcher = matcher
        self.refusal: UsageError | None = None  # why the grammar could not be followed any further
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            # Ids of the matrix's padding may stand in a prompt, and are never sampled.
            self.seen[[token for token in prompt if token < vocab_size]] = True
        if params.presence_penalty or params.frequency_penalty:
            self.counts = torch.zeros(vocab_size)
        if params.logit_bias:
            ids, values = zip(*dict(params.logit_bias).items())
            self.bias = torch.tensor(ids), torch.tensor(values, dtype=torch.float32)
        if params.min_tokens and forbidden:
            self.forbidden = torch.tensor(sorted(forbidden))

    @property
    def adjusts(self) -> bool:
        """Whether it changes logits before they are sampled from."""
        return not (self.seen is self.counts is self.bias is self.matcher is None) or self.forbids

    def allowed(self) -> Tensor | None:
        """(V,) boolean: what the grammar lets come next; None without one, or where it gave up (see `refusal`)."""
        if self.matcher is None or self.refusal is not None:
            return None
        try:
            return self.matcher.mask()
        except UsageError as error:
            self.refusal = error
            return None

    @property
    def is_done(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self.matcher is not None and self.matcher.is_done

    @property
    def forbids(self) -> bool:
        return self.forbidden is not None and self.generated < self.params.min_tokens

    def fork(self) -> SamplerState:
        """The same, to try tokens on: what the copy notes and draws stays with it."""
        other = copy.copy(self)
        other.generator = torch.Generator()
        other.generator.set_state(self.generator.get_state())
        other.seen = None if self.seen is None else self.seen.clone()
        other.counts = None if self.counts is None else self.counts.clone()
        other.matcher = None if self.matcher is None else self.matcher.fork()
        return other

    def note(self, token_id: int) -> None:
        self.generated += 1
        if self.matcher is not None:
            self.matcher.accept(token_id)
        if self.seen is not None:
            self.seen[token_id] = True
        if self.counts is not None:
            self.counts[token_id] += 1

    def uniform(self) -> float:
        return torch.rand((), generator=self.generator, dtype=torch.float64).item()
