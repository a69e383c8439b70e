"""What a policy wrote and what it was worth: a Rollout each, and a RolloutBatch of them for a policy's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from dacheng.data.batches import IGNORED
from dacheng.errors import DachengError


@dataclass(slots=True)
class Rollout:
    """One answer to one prompt, as token ids.

    prompt_ids, completion_ids: the completion holds the end-of-text token where the model wrote it. mask: one number a
    token of the completion, 1 where the model wrote it itself, 0 where a tool or a user did. logps: of the sampler, as
    long as the completion, at the temperature of the sampling; 0 where mask is 0. text: the completion, decoded.
    reward: None until judged, and where no reward could say. parts: its summands, by name. group: answers to the same
    prompt share one. finish_reason: as in protocols.Completion. weights_version: of the weights that wrote it.
    """

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logps: list[float]
    text: str
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    group: str = ""
    finish_reason: str | None = None
    weights_version: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises DachengError for parts of different lengths, or no prompt."""
        lengths = {"completion_ids": len(self.completion_ids), "mask": len(self.mask), "logps": len(self.logps)}
        if len(set(lengths.values())) > 1:
            raise DachengError("a rollout has one mask and one log-probability a token", field=self.id, value=lengths)
        if not self.prompt_ids:
            raise DachengError("a rollout needs a prompt of at least one token", field=self.id, value=self.prompt_ids)

    @property
    def own_tokens(self) -> int:
        """Tokens that the model wrote itself."""
        return sum(self.mask)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; floats come back exactly."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rollout:
        """The inverse. Raises DachengError for what is none."""
        try:
            return cls(**values)
        except TypeError as error:
            raise DachengError("this is no rollout", field="rollout", value=sorted(values)) from error


@dataclass(slots=True)
class RolloutBatch:
    """Rollouts of a step, right-padded; all tensors (B, T), aligned with `targets`.

    tokens (int64): prompt and completion but for the last token. targets (int64): the token that follows, -100 where it
    is not the model's own (prompt, tools, padding). mask (float32): 1 where targets count. old_logps: of the targets
    under the policy as it was when the update began (what a ratio divides by). sampler_logps: as the sampler gave
    them, where they are kept apart. reference_logps: under the reference policy. advantages; returns and values (of
    the critic, when the rollouts were made): where there is a critic.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor
    old_logps: Tensor
    advantages: Tensor
    reference_logps: Tensor | None = None
    sampler_logps: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None

    def to(self, device: torch.device | str) -> RolloutBatch:
        return self._each(lambda tensor: tensor.to(device))

    @property
    def tokens_in_loss(self) -> int:
        """Positions that have a target."""
        return int((self.targets != IGNORED).sum())

    def rows(self, index: Sequence[int]) -> RolloutBatch:
        """Some of the rows, without the columns that are padding in all of them."""
        chosen = torch.as_tensor(list(index), dtype=torch.int64)
        counted = (self.targets[chosen] != IGNORED).any(0).nonzero()
        width = int(counted.max()) + 1 if counted.numel() else 1
        return self._each(lambda tensor: tensor[chosen, :width])

    def _each(self, change: Callable[[Tensor], Tensor]) -> RolloutBatch:
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if t is None else change(t) for name, t in found.items()}
        return RolloutBatch(**changed)


def collate(rollouts: Sequence[Rollout], pad_id: int) -> RolloutBatch:
    """A batch with old_logps = sampler_logps = those of the rollouts, and advantages of 0.

    pad_id: what fills a row up at its end (causal attention never looks there). Raises DachengError for no rollout.
    """
    if not rollouts:
        raise DachengError("a batch needs a rollout", field="rollouts", value=0, remedy="raise prompts_per_step")
    width = max(1, *(len(r.prompt_ids) + len(r.completion_ids) - 1 for r in rollouts))
    tokens = torch.full((len(rollouts), width), pad_id, dtype=torch.int64)
    targets = torch.full((len(rollouts), width), IGNORED, dtype=torch.int64)
    for row, r in enumerate(rollouts):
        ids = [*r.prompt_ids, *r.completion_ids]
        tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.int64)
        wanted = [token if own else IGNORED for token, own in zip(r.completion_ids, r.mask)]
        first = len(r.prompt_ids) - 1
        targets[row, first : first + len(wanted)] = torch.tensor(wanted, dtype=torch.int64)
    mask = (targets != IGNORED).float()
    logps = aligned(rollouts, [r.logps for r in rollouts], width) * mask
    return RolloutBatch(tokens, targets, mask, logps, torch.zeros_like(mask), sampler_logps=logps)


def aligned(rollouts: Sequence[Rollout], values: Sequence[Sequence[float]], width: int) -> Tensor:
    """(B, width) float32 in the places of a batch's targets, from one number a token of each completion; else 0."""
    out = torch.zeros(len(rollouts), width)
    for row, (r, own) in enumerate(zip(rollouts, values)):
        first = len(r.prompt_ids) - 1
        out[row, first : first + len(own)] = torch.tensor(list(own), dtype=torch.float32)
    return out
