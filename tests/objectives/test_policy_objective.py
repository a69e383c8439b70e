"""PolicyGradient and ValueRegression as objectives: in parts as in one piece, and that they learn."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from dacheng.data.rollouts import RolloutBatch
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits
from dacheng.objectives.advantages import gae, group_advantages, reinforce, rloo, spread, token_rewards, whiten
from dacheng.objectives.base import StepContext
from dacheng.objectives.logps import model_logps
from dacheng.objectives.policy import PolicyGradient, PolicyGradientConfig, ValueRegression, critic_values

VOCAB, ROWS, LENGTH = 13, 6, 7
CTX = StepContext()
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"dual_clip": 3.0},
    "grpo": {"aggregate": "seq_mean", "kl_coef": 0.04},
    "dr_grpo": {"aggregate": "const", "max_completion": 5},
    "dapo": {"aggregate": "token", "clip_high": 0.28},
    "gspo": {"aggregate": "seq_mean", "level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "rloo": {"aggregate": "seq_sum", "on_policy": True},
    "with everything": {
        "entropy_coef": 0.01,
        "importance_cap": 2.0,
        "kl_coef": 0.1,
        "kl_kind": "k2",
        "temperature": 0.8,
    },
}


def made(seed: int = 0, **changes: object) -> Decoder:
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, initializer_range=0.2, **changes)  # type: ignore[arg-type]
    return Decoder(traits).init_weights(torch.Generator().manual_seed(seed))


def batch(seed: int = 0) -> RolloutBatch:
    """Answers of several lengths, one with a tool's word inside, old policy and reference drawn nearby."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=g)
    tokens, targets = ids[:, :-1], ids[:, 1:].clone()
    lengths = torch.tensor([3, 7, 5, 4, 7, 6]).unsqueeze(1)
    steps = torch.arange(LENGTH)
    targets[(steps < 2) | (steps >= lengths)] = -100
    targets[1, 4] = -100
    mask = (targets != -100).float()
    with torch.no_grad():
        logps = model_logps(made(), tokens, targets)
    old, reference, sampler = (logps + 0.3 * torch.randn(ROWS, LENGTH, generator=g) * mask for _ in range(3))
    advantages = spread(group_advantages(torch.randn(ROWS, generator=g), [0, 0, 0, 1, 1, 1]), mask)
    returns, values = torch.randn(2, ROWS, LENGTH, generator=g)
    return RolloutBatch(tokens, targets, mask, old, advantages, reference, sampler, returns, values)


def part(whole: RolloutBatch, rows: list[int]) -> RolloutBatch:
    return RolloutBatch(**{f.name: getattr(whole, f.name)[rows] for f in fields(whole)})


def gradient(objective: Any, model: nn.Module, parts: list[RolloutBatch]) -> tuple[float, torch.Tensor]:
    counts = [objective.counts(p) for p in parts]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    model.zero_grad()
    value = 0.0
    for p in parts:
        terms, _ = objective(model, p, CTX)
        assert set(terms) == set(total)
        loss = sum(term.sum * (term.weight / total[name]) for name, term in terms.items())
        loss.backward()  # type: ignore[union-attr]
        value += float(loss)
    return value, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_the_whole(method):
    model, rollouts = made(), batch()
    objective = PolicyGradient(PolicyGradientConfig(**METHODS[method]))
    one, whole = gradient(objective, model, [rollouts])
    parts = [[0, 1, 2, 3], [4], [5]]
    three, also = gradient(objective, model, [part(rollouts, rows) for rows in parts])
    assert three == pytest.approx(one, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(also, whole, rtol=1e-4, atol=1e-6)


def test_what_it_reports():
    _, metrics = PolicyGradient(PolicyGradientConfig(**METHODS["with everything"], dual_clip=3.0))(made(), batch(), CTX)
    assert set(metrics) == {
        "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "clip_ratio/dual_mean",
        "policy/approxkl_avg", "entropy", "kl", "sampling/sampling_logp_difference/mean",
        "sampling/importance_sampling_ratio/mean",
    }  # fmt: skip
    assert {count for _, count in metrics.values()} == {float(batch().mask.sum())}
    assert not any(isinstance(total, torch.Tensor) and total.requires_grad for total, _ in metrics.values())


def test_on_policy_is_the_ratio_of_a_policy_to_itself():
    model, rollouts = made(), batch()
    _, plain = gradient(PolicyGradient(PolicyGradientConfig(on_policy=True)), model, [rollouts])
    with torch.no_grad():
        rollouts.old_logps = model_logps(model, rollouts.tokens, rollouts.targets)
    _, stored = gradient(PolicyGradient(), model, [rollouts])
    torch.testing.assert_close(plain, stored, rtol=1e-5, atol=1e-7)


def test_equal_rewards_leave_no_gradient_but_the_penalty():
    model, rollouts = made(), batch()
    rollouts.advantages = spread(group_advantages(torch.ones(ROWS), [0] * ROWS), rollouts.mask)
    assert not gradient(PolicyGradient(), model, [rollouts])[1].any()
    assert gradient(PolicyGradient(PolicyGradientConfig(kl_coef=0.1)), model, [rollouts])[1].any()


def test_entropy_is_raised_and_the_reference_is_kept_to():
    model, rollouts = made(), batch()
    rollouts.advantages.zero_()
    for settings, name, sign in (({"entropy_coef": 1.0}, "entropy", 1), ({"kl_coef": 1.0, "kl_kind": "k2"}, "kl", -1)):
        objective, model = PolicyGradient(PolicyGradientConfig(**settings)), made(seed=3)  # type: ignore[arg-type]
        _, before = objective(model, rollouts, CTX)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(20):
            gradient(objective, model, [rollouts])
            optimizer.step()
        _, after = objective(model, rollouts, CTX)
        assert sign * float(after[name][0]) > sign * float(before[name][0])


class ActorCritic(nn.Module):
    """Policy and critic side by side."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.policy = made(seed)
        self.critic = Critic(seed + 1)


class Critic(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = made(seed)
        self.row = nn.Parameter(torch.zeros(16))

    def forward(self, *arguments: object) -> torch.Tensor:
        return self.body(*arguments)  # type: ignore[no-any-return]

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.row


def test_a_critic_beside_the_policy():
    model, rollouts = ActorCritic(), batch()
    alone, _ = gradient(PolicyGradient(), model.policy, [rollouts])
    within, _ = gradient(PolicyGradient(part="policy"), model, [rollouts])
    assert within == alone
    objective = ValueRegression(part="critic", clip=0.2, weight=0.5)
    terms, metrics = objective(model, rollouts, CTX)
    old, returns, mask = rollouts.values, rollouts.returns, rollouts.mask
    clipped = (torch.zeros_like(old) - old).clamp(-0.2, 0.2) + old
    expected = 0.5 * torch.maximum(returns.square(), (clipped - returns).square()) * mask
    assert terms["value"].sum.item() == pytest.approx(expected.sum().item(), rel=1e-5) and terms["value"].weight == 0.5
    assert metrics["loss/value_avg"][1] == mask.sum().item()
    one, whole = gradient(objective, model, [rollouts])
    six, parts = gradient(objective, model, [part(rollouts, [i]) for i in range(ROWS)])
    assert six == pytest.approx(one, rel=1e-5)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


# --- learning: the answer is one token, or two; even ones are wanted -------------------------------------------------
def sampled(model: Decoder, prompts: torch.Tensor, g: torch.Generator, temperature: float = 1.0) -> RolloutBatch:
    """Two tokens after each prompt (R, 2), by the model itself."""
    ids = prompts
    with torch.no_grad():
        for _ in range(2):
            positions = torch.arange(ids.shape[1]).expand_as(ids)
            from dacheng.nn.contexts import DenseCausal

            p = (model.head(model(ids, positions, DenseCausal())[:, -1]) / temperature).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=g)], 1)
        targets = ids[:, 1:].clone()
        targets[:, 0] = -100
        mask = (targets != -100).float()
        old = model_logps(model, ids[:, :-1], targets, temperature=temperature)
    return RolloutBatch(ids[:, :-1], targets, mask, old, torch.zeros_like(mask), sampler_logps=old)


def rewards(rollouts: RolloutBatch) -> torch.Tensor:
    """The share of even tokens."""
    return ((rollouts.targets[:, 1:] % 2) == 0).float().mean(1)


def test_each_method_learns():
    for method, more in (("ppo", {}), *METHODS.items()):
        advantage = {"rloo": rloo, "with everything": lambda r, _: reinforce(r)}.get(method, group_advantages)
        model, g = made(), torch.Generator().manual_seed(1)
        settings = PolicyGradientConfig(**(more | {"kl_coef": 0.0}))
        objective = PolicyGradient(settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        seen = []
        for _ in range(25):
            prompts = torch.randint(VOCAB, (8, 2), generator=g).repeat_interleave(4, 0)
            rollouts = sampled(model, prompts, g, settings.temperature)
            reward = rewards(rollouts)
            seen.append(reward.mean().item())
            rollouts.advantages = spread(advantage(reward, [i // 4 for i in range(32)]), rollouts.mask)
            for _ in range(1 if settings.on_policy else 2):
                gradient(objective, model, [rollouts])
                optimizer.step()
        assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.2, (method, seen)


def test_ppo_with_its_critic_learns_and_the_critic_comes_to_know():
    model, g = ActorCritic(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    policy, value = PolicyGradient(part="policy"), ValueRegression(part="critic", clip=None)
    seen, errors = [], []
    for _ in range(25):
        rollouts = sampled(model.policy, torch.randint(VOCAB, (32, 2), generator=g), g)
        reward = rewards(rollouts)
        with torch.no_grad():
            rollouts.values = critic_values(model.critic, rollouts.tokens)
        advantages, rollouts.returns = gae(
            token_rewards(reward, rollouts.mask), rollouts.values, rollouts.mask, 1.0, 0.95
        )
        rollouts.advantages = whiten(advantages, rollouts.mask)
        seen.append(reward.mean().item())
        errors.append(float(value(model, rollouts, CTX)[0]["value"].sum))
        for _ in range(2):
            for objective in (policy, value):
                gradient(objective, model, [rollouts])
                optimizer.step()
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.2, seen
    assert errors[-1] < 0.7 * errors[0], errors


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "missing"),
    [({"kl_coef": 0.1}, "reference_logps"), ({"importance_cap": 2.0}, "sampler_logps")],
)
def test_what_the_constants_ask_for_must_be_in_the_batch(settings, missing):
    rollouts = batch()
    setattr(rollouts, missing, None)
    with pytest.raises(UsageError, match=missing):
        PolicyGradient(PolicyGradientConfig(**settings))(made(), rollouts, CTX)


@pytest.mark.parametrize("missing", ["returns", "values"])
def test_a_regression_needs_what_it_regresses_on(missing):
    rollouts = batch()
    setattr(rollouts, missing, None)
    with pytest.raises(UsageError, match=missing):
        ValueRegression()(Critic(0), rollouts, CTX)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"aggregate": "const"}, "max_completion"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"dual_clip": 1.0}, "dual_clip"),
    ],
)
def test_constants_are_checked_first(settings, field):
    with pytest.raises(UsageError) as caught:
        PolicyGradientConfig(**settings)
    assert caught.value.field == field


def test_experts():
    moe = MoETraits(experts=4, experts_per_token=2, expert_width=8, balance_loss=0.1, router_z_loss=0.01)
    with pytest.raises(UsageError, match="the model has experts"):
        PolicyGradient()(made(moe=moe), batch(), CTX)
    objective = PolicyGradient(routed=True)
    terms, _ = objective(made(moe=moe), batch(), CTX)
    assert set(terms) == {"policy", "balance", "router_z"} == set(objective.counts(batch()))
