"""Best-of-n, rejection sampling and iterative DPO on the toys; pass@k and win rates by their definitions."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from reinforce_toys import model, prompts, tokenizer, vowels

from dacheng.align import selection
from dacheng.align.reinforce.held_out import Measured, measure, pass_at_k, win_rate
from dacheng.align.rewards.base import FunctionReward, RewardMix
from dacheng.align.rollouts import Sampling
from dacheng.errors import DachengError
from dacheng.models.decoder import Decoder
from dacheng.nn.moe import MoETraits
from dacheng.train import OptimizerConfig, ScheduleConfig, TrainConfig

SAMPLING = Sampling(max_tokens=6, max_batch=64)
MIX = RewardMix([(FunctionReward("letters", vowels), 1.0)])


def groups(policy, n=8, seed=0):
    return selection.sample_groups(policy, tokenizer(), prompts(), MIX, SAMPLING, n, seed=seed)


def config(steps, lr=1e-2):
    return TrainConfig(steps=steps, precision="fp32", seed=0, save_every=100, optimizer=OptimizerConfig(lr=lr),
                       schedule=ScheduleConfig(kind="constant", warmup=0))  # fmt: skip


def mean(found):
    rewards = [r.reward for group in found for r in group.rollouts]
    return sum(rewards) / len(rewards)


def test_the_best_of_more_is_better_and_its_distance_is_known():
    found = groups(model())
    best = selection.best_of_n(found)
    assert len(best) == len(prompts()) and sum(r.reward for r in best) / len(best) > mean(found) + 0.1
    assert [selection.best_of_n_kl(n) for n in (1, 2)] == [0.0, pytest.approx(math.log(2) - 0.5)]
    with pytest.raises(DachengError):
        selection.best_of_n_kl(0)


def test_learning_the_best_answers_raises_the_reward(tmp_path):
    policy = model()
    before = groups(policy)
    selection.learn_best(policy, before, tmp_path, config(40), batch_rows=6)
    assert mean(groups(policy, seed=1)) > mean(before) + 0.1
    with pytest.raises(DachengError, match="good enough"):
        selection.learn_best(policy, before, tmp_path / "none", config(2), threshold=2.0)


def test_iterative_dpo_raises_the_reward_round_by_round(tmp_path):
    policy = model()
    figures = selection.iterative_dpo(
        policy, tokenizer(), prompts(), MIX, SAMPLING, tmp_path, config(16, 1e-2), rounds=3, n=8, batch_pairs=6
    )
    assert [f["pairs"] >= 6 for f in figures] == [True] * 3
    assert mean(groups(policy, seed=1)) > figures[0]["reward"] + 0.1
    equal = RewardMix([(FunctionReward("one", lambda s: 1.0), 1.0)])
    with pytest.raises(DachengError, match="0 pairs"):
        selection.iterative_dpo(policy, tokenizer(), prompts(), equal, SAMPLING, tmp_path / "x", config(1), rounds=1)


def test_pairs_and_lessons_of_a_model_with_experts(tmp_path):
    moe = MoETraits(experts=4, experts_per_token=2, expert_width=8, balance_loss=0.1, router_z_loss=0.01)
    policy = Decoder(dataclasses.replace(model().traits, moe=moe)).init_weights(torch.Generator().manual_seed(0))
    found = groups(policy)
    selection.learn_best(policy, found, tmp_path / "best", config(1), batch_rows=2)
    done = selection.learn_pairs(policy, selection.pairs_of(found), tmp_path / "pairs", config(1), batch_pairs=2)
    assert done.steps == 1


def test_pass_at_k_is_the_share_of_all_choices_of_k():
    for n, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if right <= n and k <= n:
            answers = [True] * right + [False] * (n - right)
            choices = list(itertools.combinations(answers, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    with pytest.raises(DachengError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_two_policies_are_compared_on_the_same_draws(tmp_path):
    before = measure(model(), tokenizer(), prompts(), MIX, SAMPLING, answers=2, seed=5)
    again = measure(model(), tokenizer(), prompts(), MIX, SAMPLING, answers=2, seed=5)
    assert before.texts == again.texts and win_rate(before, again).estimate == 0.5
    better = Measured(before.prompts, [[2.0, math.nan]] * 12, before.texts, before.lengths)
    assert win_rate(better, before).estimate == 1.0
    better.save(tmp_path / "m.json")
    loaded = Measured.load(tmp_path / "m.json")
    assert loaded is not None and loaded.mean_reward().estimate == 2.0 and loaded.texts == before.texts
    unjudged = Measured(before.prompts, [[1.0], *([[math.nan]] * 11)], before.texts, before.lengths)
    assert unjudged.mean_reward().estimate == win_rate(unjudged, Measured([""], [[0.0]], [], [])).estimate == 1.0
    assert math.isnan(unjudged.mean_reward().low) and unjudged.mean_reward().n == 1
    assert better.pass_at(1).estimate == 0.5  # what nobody could judge is not right
