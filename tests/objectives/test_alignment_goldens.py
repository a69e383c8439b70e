"""Alignment's losses, gradients and advantages beside TRL's, verl's and OpenRLHF's own code (1e-6)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dacheng.objectives.advantages import all_equal, gae, group_advantages, returns_to_go, rloo, spread, whiten
from dacheng.objectives.policy import aggregate, kl, ppo_policy, ppo_value
from dacheng.objectives.preference import PairLogps, cpo, dpo, kto, kto_kl, orpo, simpo
from dacheng.objectives.reward_model import bradley_terry

pytestmark = pytest.mark.oracle
GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDENS / "alignment_losses.json").read_text())
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def named(prefix: str) -> list[str]:
    return sorted(name for name in CASES if name.startswith(prefix))


def same(case: dict[str, Any], loss: Tensor, *wanted: Tensor, **close: float) -> None:
    close = CLOSE | close
    torch.testing.assert_close(loss, tensor(case["loss"]), **close)
    for found, expected in zip(torch.autograd.grad(loss, wanted), case["grads"], strict=True):
        torch.testing.assert_close(found, tensor(expected).view_as(found), **close)


def same_metrics(case: dict[str, Any], found: dict[str, Tensor], mask: Tensor | None = None) -> None:
    for name, value in case["metrics"].items():
        mean = found[name].mean() if mask is None else (found[name] * mask).sum() / mask.sum()
        assert mean.item() == pytest.approx(value, rel=1e-6, abs=1e-9), name


def pairs(case: dict[str, Any]) -> tuple[Tensor, PairLogps, PairLogps]:
    """Token log-probabilities that the gradient is for, and the sums of policy and reference."""
    leaf = tensor(case["policy"]).requires_grad_()
    mask = tensor(case["mask"])
    tokens = mask.sum(1).chunk(2)
    policy, reference = ((x * mask).sum(1).chunk(2) for x in (leaf, tensor(case["reference"])))
    return leaf, PairLogps(*policy, *tokens), PairLogps(*reference, *tokens)


# --- preferences ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", named("dpo/"))
def test_dpo(name):
    case = CASES[name]
    leaf, policy, reference = pairs(case)
    kind, _, sums = name.removeprefix("dpo/").partition("_")
    epsilon = case["label_smoothing"]
    out = dpo(policy, reference, case["beta"], kind, epsilon, "sum" if sums else "token")
    same(case, out.per_example.mean(), leaf)
    same_metrics({"metrics": case.get("metrics", {})}, out.metrics)


@pytest.mark.parametrize("name", named("kto/"))
def test_kto(name):
    case = CASES[name]
    leaf, mask = tensor(case["policy"]).requires_grad_(), tensor(case["mask"])
    point = kto_kl(tensor(case["others"]).sum(1), tensor(case["other_reference"]).sum(1))
    label = torch.tensor(case["desirable"])
    reference = tensor(case["reference"]).sum(1)
    out = kto((leaf * mask).sum(1), reference, label, point, case["beta"], *case["weights"])
    same(case, out.per_example.mean(), leaf)
    margins = out.metrics["rewards/chosen"].mean() - out.metrics["rewards/rejected"].mean()
    same_metrics(case, out.metrics | {"rewards/margins": margins})


def test_orpo():
    case = CASES["orpo"]
    leaf, policy, _ = pairs(case)
    out = orpo(policy, case["beta"])
    same(case, out.per_example.mean(), leaf, rtol=2e-5)  # TRL casts to float32 here
    assert out.metrics["log_odds_ratio"].mean().item() == pytest.approx(case["metrics"]["log_odds_ratio"], rel=1e-5)
    assert out.metrics["log_odds_chosen"].mean().item() == pytest.approx(case["metrics"]["log_odds_chosen"], rel=1e-5)


@pytest.mark.parametrize("name", named("cpo/"))
def test_cpo_and_simpo(name):
    case = CASES[name]
    leaf, policy, _ = pairs(case)
    kind, beta, epsilon = name.removeprefix("cpo/"), case["beta"], case["label_smoothing"]
    out = simpo(policy, beta, case["gamma"] / beta, epsilon) if kind == "simpo" else cpo(policy, beta, kind, epsilon)
    same(case, out.per_example.mean(), leaf)


@pytest.mark.parametrize("name", named("reward/"))
def test_bradley_terry(name):
    case = CASES[name]
    leaf = tensor(case["scores"]).requires_grad_()
    out = bradley_terry(*leaf.chunk(2), None if case["margin"] is None else tensor(case["margin"]), case["centre"])
    same(case, out.per_example.mean(), leaf)
    same_metrics(case, out.metrics)


# --- policies ---------------------------------------------------------------------------------------------------------
def rollouts(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The leaf, old log-probabilities, advantages over tokens, mask."""
    mask = tensor(case["mask"])
    return tensor(case["logps"]).requires_grad_(), tensor(case["old"]), spread(tensor(case["advantages"]), mask), mask


TRL_WAYS = {"grpo": "seq_mean", "bnpo": "token", "dapo": "token", "dr_grpo": "const", "gspo": "seq_mean",
            "delta": "seq_mean"}  # fmt: skip
VERL_WAYS = {"token-mean": "token", "seq-mean-token-mean": "seq_mean", "seq-mean-token-sum": "seq_sum"}


@pytest.mark.parametrize("name", [n for n in named("grpo/") if n != "grpo/luspo"])
def test_grpo_family(name):
    case = CASES[name]
    leaf, old, advantages, mask = rollouts(case)
    how = TRL_WAYS[name.removeprefix("grpo/").removesuffix("_kl")]
    out = ppo_policy(leaf, old, advantages, mask, case["low"], case["high"], case["delta"], case["level"])
    penalty = kl(leaf, tensor(case["reference"]), "k3")
    denom = mask.shape[0] * case["max_completion"] if how == "const" else None
    same(case, aggregate(out.per_token + case["beta"] * penalty, mask, how, denom), leaf)
    clipped = {name: value for name, value in case["metrics"].items() if name != "kl"}
    if case["level"] == "token":
        same_metrics({"metrics": clipped}, out.metrics, mask)
    else:  # TRL counts answers there
        same_metrics({"metrics": clipped}, {n: v[:, 0] for n, v in out.metrics.items()})
    if "kl" in case["metrics"]:
        same_metrics({"metrics": {"kl": case["metrics"]["kl"]}}, {"kl": penalty}, mask)


def test_sums_over_answers():
    case = CASES["grpo/luspo"]
    leaf, old, advantages, mask = rollouts(case)
    out = ppo_policy(leaf, old, advantages, mask, case["low"], case["high"])
    same(case, aggregate(out.per_token, mask, "seq_sum"), leaf)


def test_rloo_of_a_policy_that_has_not_moved_has_the_gradient_of_the_answers_sums():
    """TRL's ratio is of a whole answer's sum: at 1 its gradient is that of ours, though its number is not."""
    case = CASES["rloo_loss"]
    leaf, _, advantages, mask = rollouts(case)
    loss = aggregate(ppo_policy(leaf, leaf.detach(), advantages, mask).per_token, mask, "seq_sum")
    found = torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(found, tensor(case["grads"][0]), **CLOSE)


@pytest.mark.parametrize("name", named("verl/dual/"))
def test_dual_clip_and_the_ways_to_aggregate(name):
    case = CASES[name]
    leaf, old, advantages, mask = rollouts(case)
    out = ppo_policy(leaf, old, advantages, mask, case["low"], case["high"], case["dual_clip"])
    if case["how"] == "seq-mean-token-sum-norm":
        loss = aggregate(out.per_token, mask, "const", mask.numel())
    else:
        loss = aggregate(out.per_token, mask, VERL_WAYS[case["how"]])
    same(case, loss, leaf)
    mean = (kl(old, leaf, "k1") * mask).sum() / mask.sum()
    assert mean.item() == pytest.approx(case["metrics"]["ppo_kl"], rel=1e-6)


def test_gspo_of_verl():
    case = CASES["verl/gspo"]
    leaf, old, advantages, mask = rollouts(case)
    out = ppo_policy(leaf, old, advantages, mask, case["low"], case["high"], level="sequence")
    same(case, aggregate(out.per_token, mask, "seq_mean"), leaf)


def test_value_loss():
    case = CASES["verl/value"]
    leaf, mask = tensor(case["values"]).requires_grad_(), tensor(case["mask"])
    out = ppo_value(leaf, tensor(case["old"]), tensor(case["returns"]), mask, case["clip"])
    same(case, aggregate(out.per_token, mask), leaf)
    same_metrics(case, out.metrics, mask)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimators(kind):
    case = CASES[f"verl/kl/{kind}"]
    leaf = tensor(case["logps"]).requires_grad_()
    found = kl(leaf, tensor(case["reference"]), kind)
    torch.testing.assert_close(found, tensor(case["values"]), **CLOSE)
    same(case, found.sum(), leaf)


# --- advantages -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", named("verl/gae"))
def test_gae(name):
    case = CASES[name]
    mask = tensor(case["mask"])
    advantages, returns = gae(tensor(case["rewards"]), tensor(case["values"]), mask, case["gamma"], case["lam"])
    torch.testing.assert_close(returns, tensor(case["returns"]) * mask, **CLOSE)
    torch.testing.assert_close(whiten(advantages, mask), tensor(case["whitened"]) * mask, **CLOSE)


def test_returns_of_reinforce():
    case = CASES["verl/returns"]
    mask = tensor(case["mask"])
    returns = returns_to_go(tensor(case["rewards"]), mask, case["gamma"])
    torch.testing.assert_close(returns, tensor(case["returns"]), **CLOSE)
    torch.testing.assert_close(whiten(returns, mask), tensor(case["whitened"]), **CLOSE)


def test_group_advantages():
    case = CASES["verl/groups"]
    rewards, groups = tensor(case["rewards"]), case["groups"]
    for scale in ("std", "none"):
        found = group_advantages(rewards, groups, scale, case["eps"])
        torch.testing.assert_close(found, tensor(case[scale]), **CLOSE)
    torch.testing.assert_close(rloo(rewards, groups), tensor(case["rloo"]), **CLOSE)
    assert all_equal(rewards, groups).tolist() == [group == "c" for group in groups]


@pytest.mark.peer
def test_the_peers_still_say_so():
    for peer in ("trl", "verl", "openrlhf"):
        if importlib.util.find_spec(peer) is None:
            pytest.skip(f"{peer} is not installed")
    spec = importlib.util.spec_from_file_location("make_alignment_losses", GOLDENS / "make_alignment_losses.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    live = maker.made()
    assert set(live) == set(CASES)
    for name, case in live.items():
        close(maker.rounded(case), CASES[name], name)


def close(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], int | float | list):
        torch.testing.assert_close(tensor(found), tensor(expected), rtol=1e-6, atol=1e-7)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7), where
    else:
        assert found == expected, where
