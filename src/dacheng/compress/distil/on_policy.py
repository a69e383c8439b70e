"""Generalised knowledge distillation (Agarwal et al. 2024, algorithm 1): the student writes, the teacher says what it
would have written at each place, and the student learns from that, on its own mistakes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.inline import InlineWorker
from dacheng.data.batches import IGNORED, TokenBatch, check_fingerprint
from dacheng.data.order import permutation
from dacheng.errors import UsageError
from dacheng.train.rng import derive_seed


class Exchange(NamedTuple):
    """A prompt, and the answer that the data has to it: ids, the answer's with the end of text."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


class OnPolicySource:
    """Batches of prompts with answers: a step's are the student's own with probability `share`, else the data's.

    The prompts come in a seeded order, each once an epoch. What is drawn follows from the seed, the step and the
    weights. Answers are sampled by the engine from the weights that are being trained; targets are the answer's tokens.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        tokenizer: Any,
        sampling: Sampling,
        *,
        batch_rows: int,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Raises UsageError for no prompts, an empty one, a share that is none, and a step that may take the data's
        answers where there are none."""
        if not exchanges or not all(exchange.prompt for exchange in exchanges):
            raise UsageError("a prompt has at least one token", field="data", value=len(exchanges), remedy="add some")
        if not 0 <= share <= 1:
            raise UsageError("must lie in [0, 1]", field="share", value=share, remedy="0.5")
        if share < 1 and not all(exchange.answer for exchange in exchanges):
            raise UsageError("a prompt has no answer in the data", field="share", value=share,
                             remedy="share: 1, where the student writes all answers")  # fmt: skip
        self.exchanges, self.tokenizer, self.sampling = list(exchanges), tokenizer, sampling
        self.batch_rows, self.share, self.seed = batch_rows, share, seed
        parts = repr([self.exchanges, sampling, batch_rows, share, seed])
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()
        self.written = 0  # tokens, since the process began
        self._worker: InlineWorker | None = None
        self._next_step = 0

    @property
    def tokens_per_step(self) -> int:
        mean = sum(len(e.prompt) + (len(e.answer) or self.sampling.max_tokens) for e in self.exchanges)
        return round(self.batch_rows * mean / len(self.exchanges))

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[TokenBatch]:
        self._next_step = step + 1
        chosen = [self.exchanges[i] for i in self._places(step)]
        if random.Random(derive_seed(self.seed, "share", step)).random() < self.share:
            answers = self._written(step, chosen, model, weights_version)
        else:
            answers = [exchange.answer for exchange in chosen]
        return [exchange_batch([(e.prompt, tuple(a)) for e, a in zip(chosen, answers)], self.tokenizer.pad_id)]

    def _places(self, step: int) -> list[int]:
        found = []
        for number in range(step * self.batch_rows, (step + 1) * self.batch_rows):
            epoch, place = divmod(number, len(self.exchanges))
            found.append(int(permutation(len(self.exchanges), self.seed, epoch)[place]))
        return found

    def _written(self, step: int, chosen: Sequence[Exchange], model: Any, version: int) -> list[tuple[int, ...]]:
        if self._worker is None or self._worker.model is not model:
            self._worker = InlineWorker(model, self.tokenizer, self.sampling)
        self._worker.update_weights(model, version)
        asks = [
            Ask(f"{step}.{i}", exchange.prompt, f"{step}.{i}", derive_seed(self.seed, "sampling", step, i))
            for i, exchange in enumerate(chosen)
        ]
        found = [tuple(rollout.completion_ids) for rollout in self._worker.generate(asks)]
        self.written += sum(map(len, found))
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_fingerprint(state["fingerprint"], self.fingerprint)
        self._next_step = int(state["next_step"])


def exchange_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> TokenBatch:
    """Of (prompt, answer) ids: targets are the answer's tokens. Causal, so padding at the end needs no mask."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    tokens = torch.full((len(rows), max(longest, 1)), pad_id)
    targets = torch.full_like(tokens, IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        ids = torch.tensor([*prompt, *answer])
        tokens[i, : len(ids) - 1] = ids[:-1]
        targets[i, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return TokenBatch(tokens, targets, torch.arange(tokens.shape[1]).expand_as(tokens))
