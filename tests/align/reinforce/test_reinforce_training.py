"""Learning from rewards on the one Trainer: it learns, by every method, and resumes bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from reinforce_toys import CountingMix, model, prompts, settings, tokenizer, vowels

from dacheng.align.reinforce.experience import teaching_first
from dacheng.align.reinforce.training import train_policy
from dacheng.align.reinforce.watch import REASONS
from dacheng.align.rewards.base import FunctionReward, RewardError, RewardMix
from dacheng.data.rollouts import Rollout
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives import shared_prompts
from dacheng.train.callbacks import Callback

METHODS = ("ppo", "grpo", "dr_grpo", "dapo", "rloo", "gspo", "reinforce")


class Stop(Exception):
    pass


class CrashAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Stop


def run(out, *callbacks, policy=None, **changes):
    out.mkdir(exist_ok=True)
    policy = model() if policy is None else policy
    config = settings(**changes)
    return train_policy(policy, tokenizer(), prompts(), CountingMix(out / "calls"), out, config, callbacks)


def sets(out):
    return [json.loads(line) for line in (out / "sets.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_what_is_rewarded(tmp_path, method):
    clips = {"clip_low": 0.2, "clip_high": 0.2} if method == "gspo" else {}
    run(tmp_path, method=method, steps=24, updates_per_rollout=2, group=8, save_every=100, lr=1e-2, **clips)
    rewards = [line["reward"] for line in sets(tmp_path)]
    assert len(rewards) == 12
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "ppo", "updates_per_rollout": 4, "epochs": 2, "kl_coef": 0.1, "kl_target": 0.5, "steps": 8},
        {"lag": True, "updates_per_rollout": 2},
        {"adapter": 4, "kl_coef": 0.05},
        {"adapter": 4, "method": "ppo", "updates_per_rollout": 2},
    ],
    ids=["grpo", "ppo", "lag", "lora", "ppo-lora"],
)
@pytest.mark.parametrize("crash", [3, 5])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, changes, crash):
    whole = run(tmp_path / "whole", save_every=3, **changes)
    with pytest.raises(Stop):
        run(tmp_path / "cut", CrashAfter(crash), save_every=3, **changes)
    resumed = run(tmp_path / "cut", save_every=3, **changes)
    assert resumed.resumed_from == (3 if crash == 5 else None)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    without_times = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in sets(tmp_path / part)]
        for part in ("whole", "cut")
    ]
    assert without_times[0] == without_times[1]
    # No reward was asked twice: what was journalled before the crash is taken from there.
    asked = [(tmp_path / part / "calls").read_text() for part in ("whole", "cut")]
    assert asked[0] == asked[1]


def test_prompts_that_are_computed_once_teach_the_same(tmp_path, monkeypatch):
    """Two updates of a set, their old log-probabilities and the reference's: weights move to the same place."""
    found = []
    for shared in (True, False):
        monkeypatch.setattr(shared_prompts, "worth_planting", lambda *_, shared=shared: shared)
        done = run(tmp_path / str(shared), updates_per_rollout=2, steps=2, kl_coef=0.1)
        found.append(torch.cat([weight.flatten() for weight in done.model.state_dict().values()]))
    start = torch.cat([weight.flatten() for weight in model().state_dict().values()])
    assert (found[0] - found[1]).norm() < 2e-3 * (found[1] - start).norm() and not torch.equal(*found)
    gaps = [line["sampling/sampling_logp_difference/max"] for line in sets(tmp_path / "True")]
    assert max(gaps) < 2e-5


def test_sampler_and_trainer_agree_on_log_probabilities(tmp_path):
    run(tmp_path, temperature=0.7, updates_per_rollout=2)
    gaps = [line["sampling/sampling_logp_difference/max"] for line in sets(tmp_path)]
    assert max(gaps) < 2e-5


def test_a_lag_is_one_set_of_weights(tmp_path):
    run(tmp_path, lag=True, updates_per_rollout=2, steps=8)
    assert [line["weights_lag"] for line in sets(tmp_path)] == [0.0, 2.0, 2.0, 2.0]
    journal = (tmp_path / "rollouts" / "rollouts.jsonl").read_text()
    assert '"set": 4' not in journal  # nothing is written for sets that nobody will read


def test_equal_rewards_are_counted_and_named(tmp_path):
    mix = RewardMix([(FunctionReward("one", lambda sample: 1.0), 1.0)])
    config = settings(patience=3)
    done = train_policy(model(), tokenizer(), prompts(), mix, tmp_path, config)
    assert all(line["frac_reward_zero_std"] == 1.0 for line in sets(tmp_path))
    assert done.sampler in ("eager", "fused-floats") and done.to_dict()["sampler"] == done.sampler
    assert sum("worth the same" in warning for warning in done.warnings) == 1
    # An untrained model of 258 tokens hardly ever ends within six.
    assert sets(tmp_path)[0]["completions/clipped_ratio"] > 0.5


def test_an_adaptive_penalty_moves_towards_its_target(tmp_path):
    changes = {"method": "ppo", "kl_coef": 0.1, "kl_target": 1e-4, "updates_per_rollout": 2, "steps": 12, "lr": 1e-2}
    run(tmp_path, **changes)
    coefficients = [line["kl_coef"] for line in sets(tmp_path)]
    assert coefficients[0] == 0.1
    assert coefficients[1] == pytest.approx(0.1 * 0.98)  # no distance yet: at most 2% a set
    assert coefficients[-1] > coefficients[1]


def test_unjudged_answers_are_left_out_and_counted(tmp_path):
    mix = RewardMix([(FunctionReward("some", lambda s: None if s.meta["answer"] < "g" else vowels(s)), 1.0)])
    train_policy(model(), tokenizer(), prompts(), mix, tmp_path, settings(steps=3))
    assert sum(line["unjudged"] for line in sets(tmp_path)) == 6 * 4


@pytest.mark.parametrize("method", ["grpo", "ppo", "reinforce", "rloo"])
def test_a_set_of_which_nothing_can_be_said_teaches_nothing(tmp_path, method):
    calls = []

    class Absent:
        """A judge that is there for the first set and gone after it."""

        name = "judge"

        def __call__(self, samples):
            calls.append(len(samples))
            return [vowels(sample) if len(calls) == 1 else None for sample in samples]

    mix = RewardMix([(Absent(), 1.0)])
    given = settings(method=method, steps=4, updates_per_rollout=1, patience=3, kl_coef=0.1)
    done = train_policy(model(), tokenizer(), prompts(), mix, tmp_path / "a", given)
    assert [line["frac_unjudged"] for line in sets(tmp_path / "a")] == [0.0, 1.0, 1.0, 1.0]
    assert all(bool(weight.isfinite().all()) for weight in done.model.state_dict().values())
    assert sum("no reward could say anything" in warning for warning in done.warnings) == 1
    assert all(line["objective/kl"] != 0 for line in sets(tmp_path / "a")[1:])  # measured all the same
    with pytest.raises(DachengError, match="could say anything about any of"):  # from the first set on: a wrong setting
        train_policy(model(), tokenizer(), prompts(), mix, tmp_path / "b", given)


def test_answers_that_never_end_are_named(tmp_path):
    done = train_policy(
        model(), tokenizer(), prompts(), RewardMix([(FunctionReward("letters", vowels), 1.0)]), tmp_path,
        settings(max_tokens=1, patience=2, steps=3),
    )  # fmt: skip
    if all(line["completions/clipped_ratio"] == 1.0 for line in sets(tmp_path)):
        assert any("no answer ended by itself" in warning for warning in done.warnings)
    figures = {"completions/clipped_ratio": 0.0, "completions/empty": 1.0}
    assert [name for name, (holds, _) in REASONS.items() if holds(figures)] == ["empty"]


@pytest.mark.parametrize(
    ("function", "problem"),
    [(lambda s: float("nan"), "finite"), (lambda s: 1 / 0, "ZeroDivisionError"), (lambda s: "good", "no number")],
)
def test_a_reward_that_breaks_stops_the_run_with_its_name(tmp_path, function, problem):
    mix = RewardMix([(FunctionReward("broken", function), 1.0)])
    with pytest.raises(RewardError, match="broken") as caught:
        train_policy(model(), tokenizer(), prompts(), mix, tmp_path, settings())
    assert problem in str(caught.value)
    # The answers are kept; judged anew by a reward that was mended, the run goes on from them.
    written = (tmp_path / "rollouts" / "rollouts.jsonl").read_bytes()
    run(tmp_path, steps=1)
    assert (tmp_path / "rollouts" / "rollouts.jsonl").read_bytes() == written


def test_no_judgement_at_all_is_refused(tmp_path):
    mix = RewardMix([(FunctionReward("silent", lambda s: None), 1.0)])
    with pytest.raises(DachengError, match="about any of 16 answers"):
        train_policy(model(), tokenizer(), prompts(), mix, tmp_path, settings())


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    other = Decoder(DecoderTraits(vocab_size=300, width=32, layers=1, heads=2, max_positions=64))
    mix = RewardMix([(FunctionReward("letters", vowels), 1.0)])
    with pytest.raises(UsageError, match="300"):
        train_policy(model(), tokenizer(), prompts(), mix, tmp_path, settings(), reference=other)


def test_another_seed_does_not_go_on_from_a_run(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(DachengError, match="changed"):
        run(tmp_path, steps=4, seed=4)
    with pytest.raises(UsageError, match="go together"):
        run(tmp_path / "text", ptx_coef=1.0)


def test_prompts_that_teach_nothing_are_replaced(tmp_path):
    mix = RewardMix([(FunctionReward("half", lambda s: vowels(s) if s.meta["answer"] < "g" else 1.0), 1.0)])
    train_policy(model(), tokenizer(), prompts(), mix, tmp_path, settings(oversample=2, steps=3))
    assert all(line["frac_reward_zero_std"] > 0.3 for line in sets(tmp_path))
    assert (tmp_path / "rollouts" / "rewards.jsonl").read_text().count('"id"') == 3 * 32

    def group(name, *rewards):
        return [Rollout(f"{name}{i}", [1], [2], [1], [-1.0], "", reward=r, group=name) for i, r in enumerate(rewards)]

    asked = [*group("a", 1, 1), *group("b", 0, 1), *group("c", None, 0), *group("d", 0.1, 0.2), *group("e", 0, 0)]
    assert [r.id for r in teaching_first(asked, 2)] == ["b0", "b1", "d0", "d1"]
    assert [r.id for r in teaching_first(asked, 3)] == ["a0", "a1", "b0", "b1", "d0", "d1"]
