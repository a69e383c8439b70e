"""Makes tests/goldens/alignment_losses.json: losses, gradients and advantages by the peers' own code.

    python tests/goldens/make_alignment_losses.py [OUT]     # made with trl 1.16.0, verl 0.9.1, openrlhf 0.11.2

TRL's losses are methods of its trainers: they are called unbound, on a stub that has what they read, with a "model"
that returns log-probabilities which were drawn. verl and OpenRLHF import what needs a cluster, so that just the one
file of formulas is loaded, with stubs for the rest (`pip install --no-deps` suffices for both). A case holds the inputs
under our names, the loss, and its gradient with respect to the policy's numbers. Numbers are float64, where the peer
does not cast.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
PAIRS, LENGTH = 5, 7


# --- the peers --------------------------------------------------------------------------------------------------------
def of_package(package: str, path: str, stubs: dict[str, Any]) -> ModuleType:
    """One file of a package, executed without the package's own imports."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    file = Path(spec.submodule_search_locations[0]) / path
    name = f"{package}_{file.stem}"
    own = importlib.util.spec_from_file_location(name, file)
    assert own is not None and own.loader is not None
    module = importlib.util.module_from_spec(own)
    before = {key: sys.modules.get(key) for key in stubs}
    sys.modules |= stubs
    sys.modules[name] = module
    try:
        own.loader.exec_module(module)
    finally:
        for key, value in before.items():
            if value is None:
                sys.modules.pop(key)
            else:
                sys.modules[key] = value
    return module


def verl() -> Any:
    masked = of_package("verl", "utils/torch_functional.py",
                        {"tensordict": MagicMock(), "verl.utils.device": MagicMock(), "verl": MagicMock(),
                         "verl.utils": MagicMock(), "flash_attn": None})  # fmt: skip

    class ActorConfig(SimpleNamespace):
        def get(self, key: str, default: Any) -> Any:
            return getattr(self, key, default)

    def same(*_: Any, **__: Any) -> Any:
        return lambda function: function

    class AlgoConfig(SimpleNamespace):
        pass

    stubs: dict[str, Any] = {name: ModuleType(name) for name in (
        "verl", "verl.utils", "verl.utils.torch_functional", "verl.trainer", "verl.trainer.config",
        "verl.utils.import_utils", "verl.workers", "verl.workers.config", "omegaconf")}  # fmt: skip
    stubs["omegaconf"].DictConfig = dict
    stubs["verl.utils.torch_functional"] = masked
    stubs["verl.utils"].torch_functional = masked
    stubs["verl.utils"].as_torch_index = stubs["verl.utils"].group_mean_std = None
    stubs["verl.trainer.config"].AlgoConfig = AlgoConfig
    stubs["verl.utils.import_utils"].deprecated = same
    stubs["verl.workers.config"].ActorConfig = ActorConfig
    core = of_package("verl", "trainer/ppo/core_algos.py", stubs)
    core.masked, core.Config = masked, ActorConfig
    return core


def openrlhf() -> Any:
    def masked_mean(tensor: torch.Tensor, mask: torch.Tensor | None, dim: int | None = None) -> torch.Tensor:
        return tensor.mean(dim=dim) if mask is None else (tensor * mask).sum(dim=dim) / mask.sum(dim=dim)

    utils = ModuleType("openrlhf_peer.utils")
    utils.masked_mean = masked_mean  # type: ignore[attr-defined]
    spec = importlib.util.find_spec("openrlhf")
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "models/loss.py"
    own = importlib.util.spec_from_file_location("openrlhf_peer.loss", file)
    assert own is not None and own.loader is not None
    module = importlib.util.module_from_spec(own)
    sys.modules["openrlhf_peer"], sys.modules["openrlhf_peer.utils"] = ModuleType("openrlhf_peer"), utils
    own.loader.exec_module(module)
    return module


class Accelerator:
    """One process."""

    device = torch.device("cpu")
    num_processes = 1

    def gather(self, x: Any) -> Any:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Any, reduction: str = "sum") -> Any:
        return x

    def unwrap_model(self, x: Any) -> Any:
        return x


def stub(**more: Any) -> Any:
    return SimpleNamespace(
        accelerator=Accelerator(), _metrics={"train": defaultdict(list)}, aux_loss_enabled=False,
        _total_train_tokens=0, _tp_size=1, **more,
    )  # fmt: skip


class Drawn:
    """A model whose log-probabilities of the labels (rows, LENGTH) are given; 0 where there is no label, as TRL's."""

    training = True

    def __init__(self, *logps: torch.Tensor) -> None:
        self.answers = list(logps)

    def __call__(self, labels: torch.Tensor, **_: Any) -> Any:
        logps = self.answers.pop(0) * (labels[:, 1:] != -100)
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def lengths_mask(g: torch.Generator, rows: int, least: int = 1) -> torch.Tensor:
    lengths = torch.randint(least, LENGTH + 1, (rows, 1), generator=g)
    return (torch.arange(LENGTH) < lengths).to(torch.float64)


def result(loss: torch.Tensor, *wanted: torch.Tensor) -> dict[str, Any]:
    grads = torch.autograd.grad(loss, wanted)
    return {"loss": loss.item(), "grads": [grad.tolist() for grad in grads]}


# --- preferences ------------------------------------------------------------------------------------------------------
def token_case(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of policy and reference (rows, LENGTH), and the mask."""
    g = draw(seed)
    policy, mask = -normal(g, rows, LENGTH).abs() - 0.01, lengths_mask(g, rows)
    reference = policy + 0.5 * normal(g, rows, LENGTH)
    return (policy * mask).requires_grad_(), (reference * mask), mask


def plain(case: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    return dict(zip(("policy", "reference", "mask"), (t.tolist() for t in case)))


def with_first(mask: torch.Tensor) -> torch.Tensor:
    """TRL's mask covers the first token too, which nothing predicts."""
    return torch.cat([torch.zeros(mask.shape[0], 1), mask], dim=1).long()


def dpo(kind: str, seed: int, beta: float, epsilon: float) -> dict[str, Any]:
    from trl.trainer.dpo_trainer import DPOTrainer

    policy, reference, mask = token_case(seed, 2 * PAIRS)
    completion = with_first(mask)
    self = stub(
        model=SimpleNamespace(training=True), ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=[kind], loss_weights=[1.0], label_smoothing=epsilon, beta=beta, use_weighting=False,
    )  # fmt: skip
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    ones = torch.ones_like(completion)
    inputs = {"input_ids": ones, "attention_mask": ones, "completion_mask": completion,
              "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}  # fmt: skip
    loss = DPOTrainer._compute_loss(self, Drawn(policy), inputs, False)
    metrics = {name: values[-1] for name, values in self._metrics["train"].items()
               if name.startswith(("rewards/", "logps/"))}  # fmt: skip
    case = {"beta": beta, "label_smoothing": epsilon, **plain((policy, reference, mask))}
    return case | result(loss, policy) | {"metrics": metrics}


def openrlhf_dpo(ipo: bool, seed: int, beta: float, epsilon: float) -> dict[str, Any]:
    policy, reference, mask = token_case(seed, 2 * PAIRS)
    sums = (policy * mask).sum(1), reference.sum(1)
    loss = openrlhf().DPOLoss(beta, epsilon, ipo)(*sums[0].chunk(2), *sums[1].chunk(2))[0]
    case = {"beta": beta, "label_smoothing": epsilon, **plain((policy, reference, mask))}
    return case | result(loss, policy)


def kto(seed: int, beta: float, weights: tuple[float, float]) -> dict[str, Any]:
    from trl.trainer.kto_trainer import KTOTrainer

    policy, reference, mask = token_case(seed, PAIRS)
    others, other_reference, other_mask = token_case(seed + 100, PAIRS)
    label = torch.tensor([True, False, True, True, False])
    self = stub(
        model=SimpleNamespace(training=True), calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=beta,
        desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    self._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(self, model, batch)
    completion, other_completion = with_first(mask), with_first(other_mask)
    ones = torch.ones_like(completion)
    inputs = {
        "input_ids": ones, "attention_mask": ones, "completion_mask": completion, "label": label,
        "KL_input_ids": ones, "KL_attention_mask": ones, "KL_completion_mask": other_completion,
        "ref_logps": reference.sum(1), "ref_KL_logps": other_reference.sum(1),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(self, Drawn(others.detach(), policy), inputs, False)
    metrics = {name: values[-1] for name, values in self._metrics["train"].items()
               if name.startswith(("rewards/", "logps/", "kl"))}  # fmt: skip
    case = {"beta": beta, "weights": weights, "desirable": label.tolist(), **plain((policy, reference, mask))}
    case |= {"others": others.tolist(), "other_reference": other_reference.tolist()}
    return case | result(loss, policy) | {"metrics": metrics}


def orpo(seed: int, beta: float) -> dict[str, Any]:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    policy, reference, mask = token_case(seed, 2 * PAIRS)
    chosen, rejected = ((policy * mask).sum(1) / mask.sum(1)).chunk(2)
    losses, *_, ratio, odds = ORPOTrainer.odds_ratio_loss(stub(beta=beta), chosen, rejected)
    case = {"beta": beta, **plain((policy, reference, mask))} | result(-losses.mean(), policy)  # TRL subtracts it
    return case | {"metrics": {"log_odds_ratio": ratio.item(), "log_odds_chosen": odds.item()}}


def cpo(kind: str, seed: int, beta: float, gamma: float, epsilon: float) -> dict[str, Any]:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    policy, reference, mask = token_case(seed, 2 * PAIRS)
    sums = (policy * mask).sum(1)
    sums = sums / mask.sum(1) if kind == "simpo" else sums
    self = stub(alpha=0.0, loss_type=kind, beta=beta, simpo_gamma=gamma, label_smoothing=epsilon)
    losses, _, _ = CPOTrainer.cpo_loss(self, *sums.chunk(2))
    case = {"beta": beta, "gamma": gamma, "label_smoothing": epsilon, **plain((policy, reference, mask))}
    return case | result(losses.mean(), policy)


def reward(seed: int, margin: bool, centre: float | None) -> dict[str, Any]:
    from trl.trainer.reward_trainer import RewardTrainer

    scores = normal(draw(seed), 2 * PAIRS, 1).requires_grad_()
    inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * PAIRS, 2)}
    margins = normal(draw(seed + 50), PAIRS).abs() if margin else None
    if margins is not None:
        inputs["margin"] = margins
    self = stub(model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=centre))
    loss = RewardTrainer.compute_loss(self, lambda **_: SimpleNamespace(logits=scores), inputs)
    metrics = {name: self._metrics["train"][name][-1] for name in ("accuracy", "margin", "mean_reward")}
    case = {"scores": scores.squeeze(1).tolist(), "margin": None if margins is None else margins.tolist()}
    return case | {"centre": centre or 0.0, "metrics": metrics} | result(loss, scores)


# --- policies ---------------------------------------------------------------------------------------------------------
def rollouts(seed: int) -> dict[str, torch.Tensor]:
    g = draw(seed)
    mask = lengths_mask(g, PAIRS)
    mask[1, 1] = 0 if mask[1, 2] else mask[1, 1]  # a tool's word between the model's own
    logps = -normal(g, PAIRS, LENGTH).abs()
    values = {"logps": logps.requires_grad_(), "old": logps.detach() + 0.4 * normal(g, PAIRS, LENGTH),
              "reference": logps.detach() + 0.3 * normal(g, PAIRS, LENGTH), "mask": mask}  # fmt: skip
    return values | {"advantages": normal(g, PAIRS)}


def as_lists(values: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in values.items()}


def grpo(loss_type: str, seed: int, **more: Any) -> dict[str, Any]:
    from trl.trainer.grpo_trainer import GRPOTrainer

    r = rollouts(seed)
    settings: dict[str, Any] = {"beta": 0.0, "level": "token", "low": 0.2, "high": 0.28, "delta": None} | more
    args = SimpleNamespace(delta=settings["delta"], use_bias_correction_kl=False, steps_per_generation=1)
    self = stub(
        model=SimpleNamespace(training=True), top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=settings["level"], beta=settings["beta"], args=args, loss_type=loss_type,
        epsilon_low=settings["low"], epsilon_high=settings["high"], use_vllm=False, max_completion_length=9,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
    )  # fmt: skip
    entropies = torch.zeros_like(r["logps"])
    self._get_per_token_logps_and_entropies = lambda *a, **k: (r["logps"], entropies, None)
    ids = torch.ones(PAIRS, LENGTH, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": r["mask"],
        "advantages": r["advantages"], "old_per_token_logps": r["old"], "ref_per_token_logps": r["reference"],
        "num_items_in_batch": r["mask"].sum(),
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(self, None, inputs)
    metrics = {name: self._metrics["train"][name][-1] for name in self._metrics["train"]
               if name in ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")}  # fmt: skip
    return as_lists(r) | settings | {"max_completion": 9, "metrics": metrics} | result(loss, r["logps"])


def rloo_loss(seed: int) -> dict[str, Any]:
    """TRL's RLOO where the policy has not moved yet: its ratio is of whole answers' sums."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    r = rollouts(seed)
    self = stub(model=SimpleNamespace(training=True), epsilon_low=0.2, epsilon_high=0.2)
    self._get_per_token_logps_and_entropies = lambda *a, **k: (r["logps"], torch.zeros_like(r["logps"]), None)
    ids = torch.ones(PAIRS, LENGTH, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": r["mask"],
              "advantages": r["advantages"], "old_logps": (r["logps"] * r["mask"]).sum(1).detach()}  # fmt: skip
    return as_lists(r) | result(RLOOTrainer._compute_loss(self, None, inputs), r["logps"])


def verl_policy(kind: str, how: str, seed: int) -> dict[str, Any]:
    core, r = verl(), rollouts(seed)
    function = core.compute_policy_loss_gspo if kind == "gspo" else core.compute_policy_loss_vanilla
    config = core.Config(
        clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1.5, global_batch_info={}
    )
    loss, metrics = function(
        r["old"], r["logps"], r["advantages"].unsqueeze(1).expand_as(r["old"]), r["mask"], how, config
    )
    case = as_lists(r) | {"low": 0.2, "high": 0.28, "dual_clip": None if kind == "gspo" else 1.5, "how": how}
    return case | {"metrics": {"ppo_kl": metrics["actor/ppo_kl"]}} | result(loss, r["logps"])


def verl_value(seed: int) -> dict[str, Any]:
    r, g = rollouts(seed), draw(seed + 7)
    values = normal(g, PAIRS, LENGTH).requires_grad_()
    old, returns = values.detach() + 0.4 * normal(g, PAIRS, LENGTH), normal(g, PAIRS, LENGTH)
    loss, fraction = verl().compute_value_loss(values, returns, old, r["mask"], 0.2)
    case = as_lists({"values": values, "old": old, "returns": returns, "mask": r["mask"]})
    return case | {"clip": 0.2, "metrics": {"val/clipfrac_avg": fraction.item()}} | result(loss, values)


def verl_kl(kind: str, seed: int) -> dict[str, Any]:
    r = rollouts(seed)
    found = verl().kl_penalty(r["logps"], r["reference"], kind)
    return as_lists(r) | {"values": found.tolist()} | result(found.sum(), r["logps"])


# --- advantages -------------------------------------------------------------------------------------------------------
def verl_gae(seed: int, gamma: float, lam: float) -> dict[str, Any]:
    core, r, g = verl(), rollouts(seed), draw(seed + 9)
    rewards, values = normal(g, PAIRS, LENGTH) * r["mask"], normal(g, PAIRS, LENGTH)
    whitened, returns = core.compute_gae_advantage_return(rewards, values, r["mask"], gamma, lam)
    case = as_lists({"rewards": rewards, "values": values, "mask": r["mask"], "whitened": whitened, "returns": returns})
    return case | {"gamma": gamma, "lam": lam}


def verl_groups(seed: int) -> dict[str, Any]:
    core, g = verl(), draw(seed)
    rewards = normal(g, 9)
    groups = ["a", "b", "a", "c", "b", "a", "c", "d", "d"]
    rewards[3] = rewards[6]  # group c is all equal
    mask, index = torch.ones(9, 1, dtype=torch.float64), np.array(groups)
    found = {}
    for name, function, more in (
        ("std", core.compute_grpo_outcome_advantage, {"epsilon": 1e-6}),
        ("none", core.compute_grpo_outcome_advantage, {"norm_adv_by_std_in_grpo": False}),
        ("rloo", core.compute_rloo_outcome_advantage, {}),
    ):
        found[name] = function(rewards.unsqueeze(1).clone(), mask, index, **more)[0].squeeze(1).tolist()
    return {"rewards": rewards.tolist(), "groups": groups, "eps": 1e-6, **found}


def verl_returns(seed: int) -> dict[str, Any]:
    core, r = verl(), rollouts(seed)
    rewards = normal(draw(seed + 3), PAIRS, LENGTH) * r["mask"]
    config = SimpleNamespace(gamma=0.9)
    whitened, returns = core.compute_reinforce_plus_plus_outcome_advantage(rewards, r["mask"], config)
    return as_lists({"rewards": rewards, "mask": r["mask"], "whitened": whitened, "returns": returns}) | {"gamma": 0.9}


def made() -> dict[str, dict[str, Any]]:
    cases = {
        "dpo/sigmoid": dpo("sigmoid", 0, 0.1, 0.0), "dpo/hinge": dpo("hinge", 1, 0.5, 0.0),
        "dpo/robust": dpo("robust", 2, 0.2, 0.1), "dpo/ipo": dpo("ipo", 3, 0.1, 0.0),
        "dpo/conservative": openrlhf_dpo(False, 4, 0.1, 0.2), "dpo/ipo_sum": openrlhf_dpo(True, 5, 0.3, 0.0),
        "kto/even": kto(6, 0.1, (1.0, 1.0)), "kto/weighted": kto(7, 0.4, (1.5, 0.5)), "orpo": orpo(8, 0.1),
        "cpo/sigmoid": cpo("sigmoid", 9, 0.1, 0.0, 0.1), "cpo/hinge": cpo("hinge", 10, 0.3, 0.0, 0.0),
        "cpo/simpo": cpo("simpo", 11, 2.5, 1.0, 0.0), "reward/plain": reward(12, False, None),
        "reward/margin_centre": reward(13, True, 0.01), "grpo/grpo": grpo("grpo", 20),
        "grpo/grpo_kl": grpo("grpo", 21, beta=0.04), "grpo/bnpo": grpo("bnpo", 22),
        "grpo/dapo_kl": grpo("dapo", 23, beta=0.1), "grpo/dr_grpo": grpo("dr_grpo", 24),
        "grpo/gspo": grpo("grpo", 25, level="sequence", low=0.02, high=0.03),
        "grpo/delta": grpo("grpo", 26, delta=1.5), "grpo/luspo": grpo("luspo", 27), "rloo_loss": rloo_loss(28),
        "verl/gspo": verl_policy("gspo", "seq-mean-token-mean", 30), "verl/value": verl_value(31),
        "verl/returns": verl_returns(37), "verl/groups": verl_groups(38),
        "verl/gae": verl_gae(39, 0.97, 0.9), "verl/gae_undiscounted": verl_gae(40, 1.0, 0.95),
    }  # fmt: skip
    hows = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
    cases |= {f"verl/dual/{how}": verl_policy("ppo", how, 41 + i) for i, how in enumerate(hows)}
    return cases | {f"verl/kl/{kind}": verl_kl(kind, 50 + i) for i, kind in enumerate(("k1", "k2", "k3"))}


def rounded(value: Any) -> Any:
    """12 digits: what a golden needs, in half the room."""
    if isinstance(value, float):
        return value if not math.isfinite(value) else float(f"{value:.12g}")
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def main(out: Path) -> None:
    cases = {name: rounded(case) for name, case in made().items()}
    out.write_text(
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()) + "\n}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "alignment_losses.json")
