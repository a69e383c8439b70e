"""Log-probabilities and values of rollouts under the policy as it is, its reference and its critic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.adapt.attach import disabled
from dacheng.data.rollouts import RolloutBatch
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.objectives.policy import critic_values
from dacheng.objectives.shared_prompts import answer_logps


class Reference:
    """The policy that the KL is measured from: the base under an adapter, or a frozen model.

    model: None for the policy's own model with its adapter off. Raises UsageError for a vocabulary that differs: its
    log-probabilities would be of other tokens.
    """

    def __init__(self, policy: Decoder, model: Decoder | None) -> None:
        ours, theirs = policy.traits.vocab_size, (model or policy).traits.vocab_size
        if ours != theirs:
            raise UsageError(f"the policy has {ours} tokens and its reference {theirs}", field="reference.vocab_size",
                             value=theirs, remedy="a reference of the same tokenizer")  # fmt: skip
        self.policy, self.model = policy, model
        if model is not None:
            model.requires_grad_(False)
            model.eval()

    def logps(self, batch: RolloutBatch, temperature: float, rows: int) -> Tensor:
        """(B, T)."""
        off: AbstractContextManager[None] = disabled(self.policy) if self.model is None else nullcontext()
        with off:
            return policy_logps(self.model or self.policy, batch, temperature, rows)


def policy_logps(model: Any, batch: RolloutBatch, temperature: float, rows: int) -> Tensor:
    """log π(target) of each target, (B, T), `rows` answers at a time."""
    return _by_rows(
        model, batch, rows, lambda part: answer_logps(model, part.tokens, part.targets, temperature=temperature)
    )


def values(critic: Any, batch: RolloutBatch, rows: int) -> Tensor:
    """The critic's value before each target, (B, T); 0 where there is none."""
    return _by_rows(critic, batch, rows, lambda part: critic_values(critic, part.tokens) * part.mask)


@torch.no_grad()
def _by_rows(model: nn.Module, batch: RolloutBatch, rows: int, function: Callable[[RolloutBatch], Tensor]) -> Tensor:
    out = torch.zeros(batch.tokens.shape)
    device = next(model.parameters()).device
    with evaluating(model):
        for first in range(0, len(out), rows):
            index = range(first, min(first + rows, len(out)))
            found = function(batch.rows(index).to(device)).float().cpu()
            out[first : first + rows, : found.shape[1]] = found
    return out


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode until the end of the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
