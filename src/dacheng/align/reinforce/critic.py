"""The critic of PPO: a second body (models.scalar_head.Scorer) that says what an answer will be worth."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.models.traits import DecoderTraits


class ActorCritic(nn.Module):
    """What the trainer is given for PPO: `policy` and `critic`, each moved by a phase of its own.

    The critic's body starts as the policy's does (Ouyang et al. 2022 begin with their reward model; a copy of the
    policy is what there is without one). Its output matrix is never used, and not trained.
    """

    def __init__(self, policy: Decoder, critic: Scorer) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        if critic.body.lm_head is not None:
            critic.body.lm_head.requires_grad_(False)

    @property
    def traits(self) -> DecoderTraits:
        return self.policy.traits

    def flops(self, context_length: int, training: bool = True) -> float:
        """Of one body: the trainer multiplies by the number of phases."""
        return self.policy.flops(context_length, training)


def copied(model: Decoder, *, share: bool = False) -> Decoder:
    """A second model with the same weights. share: its modules are its own, its parameters are the first's, so that an
    adapter may be put around it at no cost: only for a model whose parameters are frozen."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()} if share else {}
    twin: Decoder = copy.deepcopy(model, memo)
    return twin


def policy_of(model: Any) -> Decoder:
    """The policy in what is trained."""
    found = model.policy if isinstance(model, ActorCritic) else model
    assert isinstance(found, Decoder)
    return found


def critic_of(model: Any) -> Scorer | None:
    return model.critic if isinstance(model, ActorCritic) else None
