"""What a set measures of itself before it is learnt from."""

from __future__ import annotations

import dataclasses

import pytest
from reinforce_toys import model

from dacheng.align.reinforce.experience import make_experience
from dacheng.align.reinforce.scoring import Reference
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.data.rollouts import Rollout


def test_an_answer_that_is_masked_out_has_no_distance_from_the_reference():
    """Counted as 0, it would halve the KL that a run reports, and that kl_target steers by."""
    config = ReinforceConfig(method="ppo", group=2, prompts_per_step=1, steps=1, updates_per_rollout=2, kl_coef=0.1,
                             kl_target=1.0, max_tokens=3, mask_truncated=True)  # fmt: skip
    policy = model(seed=0)
    reference = Reference(policy, model(seed=1))
    ended = Rollout("0.0", [97, 98], [99, 100, 101], [1, 1, 1], [-5.0] * 3, "cde", reward=1.0, group="0",
                    finish_reason="stop")  # fmt: skip
    cut = dataclasses.replace(ended, id="0.1", finish_reason="length", reward=0.0)

    def measured(rollouts):
        batch, figures = make_experience(
            rollouts, policy, dataclasses.replace(config, method="rloo"), pad_id=0, reference=reference, kl_coef=0.1
        )
        assert batch.mask.sum() == 3
        return figures["objective/kl"]

    assert measured([ended, cut]) == pytest.approx(measured([ended])) != 0.0
