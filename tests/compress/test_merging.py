"""Merged tensors of mergekit's and PEFT's code (goldens/make_merging.py), whole models, and adapters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_shrink import LLAMA, drawn, logits

from dacheng.compress.merge import methods
from dacheng.compress.merge.adapters import low_rank, merge_adapters
from dacheng.compress.merge.models import MergeConfig, merge_models
from dacheng.errors import DachengError, UsageError
from dacheng.nn.lora import LoRAWeights
from dacheng.nn.lora_config import Adapter, LoRAConfig

IDS = torch.arange(20).view(2, 10) * 3 % 64


@pytest.mark.oracle
def test_tensors_are_those_of_mergekit_and_peft(goldens):
    golden = json.loads((goldens / "merging.json").read_text(encoding="utf-8"))
    base, models = torch.tensor(golden["base"]), [torch.tensor(m) for m in golden["models"]]
    seen = set()
    for case in golden["cases"]:
        weights = case.get("weights")
        match case["method"]:
            case "linear":
                found = methods.linear(models, weights)
            case "slerp":
                other = models[0] * case["parallel"] if "parallel" in case else models[1]
                found = methods.slerp(models[0], other, case["t"])
            case "task_arithmetic":
                found = methods.task_arithmetic(base, models, weights, case["scale"])
            case "ties":
                found = methods.ties(base, models, weights, case["density"], case["scale"])
            case "dare_linear":
                torch.manual_seed(case["seed"])
                generator = torch.Generator().manual_seed(case["seed"])
                found = methods.dare(base, models, weights, case["density"], generator=generator)
        seen.add(case["method"])
        assert torch.allclose(found, torch.tensor(case["expected"]), rtol=1e-5, atol=1e-6), case["method"]
    assert seen == {"linear", "slerp", "task_arithmetic", "ties", "dare_linear"}


def test_ties_by_hand():
    """Yadav et al. 2023, figure 1: +3 and +1 outvote -2, and are averaged; what was trimmed does not count."""
    base = torch.zeros(4)
    tuned = [
        torch.tensor([3.0, 0.1, 2.0, 4.0]),
        torch.tensor([1.0, 0.2, -3.0, 4.0]),
        torch.tensor([-2.0, 0.3, 0.5, 4.0]),
    ]
    found = methods.ties(base, tuned, [1.0, 1.0, 1.0], density=0.75)
    assert torch.allclose(found, torch.tensor([2.0, 0.0, -3.0, 4.0]))


def test_dare_keeps_the_expectation():
    base, tuned = torch.zeros(200_000), torch.ones(200_000)
    found = methods.dare(base, [tuned], [1.0], 0.1, generator=torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 10.0} and abs(float(found.mean()) - 1) < 0.03


def test_slerp_keeps_the_length():
    a, b = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    b = b * a.norm() / b.norm()
    for t in (0.0, 0.3, 1.0):
        assert torch.allclose(methods.slerp(a, b, t).norm(), a.norm(), rtol=1e-5)
    assert torch.equal(methods.slerp(a, b, 0.0), a) and torch.equal(
        methods.slerp(torch.zeros(2), torch.zeros(2), 0.5), torch.zeros(2)
    )


# --- models -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def family():
    base = drawn(LLAMA).float()
    tuned = []
    for seed in (1, 2):
        model = drawn(LLAMA).float()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        tuned.append(model)
    return base, tuned


@pytest.mark.parametrize("method", methods.METHODS)
def test_merging_a_model_with_itself_gives_it_back(family, method):
    _, (tuned, _) = family
    config = MergeConfig(method=method, weights=(1.0, 0.0) if method != "slerp" else None, density=1.0)
    merged = merge_models([tuned, tuned], config, family[0] if method in methods.NEEDS_BASE else None)
    assert torch.allclose(logits(merged, IDS), logits(tuned, IDS), atol=1e-4)
    assert merged.traits == tuned.traits


def test_a_task_is_forgotten(family):
    base, (tuned, _) = family
    back = merge_models([tuned], MergeConfig(method="task_arithmetic", weights=(0.0,)), base)
    assert torch.equal(logits(back, IDS), logits(base, IDS))
    away = merge_models([tuned], MergeConfig(method="task_arithmetic", weights=(-1.0,)), base)
    for a, t, b in zip(away.parameters(), tuned.parameters(), base.parameters()):
        assert torch.allclose(a - b, b - t, atol=1e-6)


def test_dare_is_the_same_for_a_seed(family):
    base, tuned = family
    one, two, other = (
        merge_models(tuned, MergeConfig(method="dare_ties", seed=seed), base).blocks[0].mlp.up.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_models_that_do_not_fit(family):
    base, tuned = family
    with pytest.raises(DachengError, match=r"embed.weight is \[64, 48\]"):
        merge_models([base, drawn(replace(LLAMA, vocab_size=65)).float()], MergeConfig())
    with pytest.raises(DachengError, match="compute differently") as error:
        merge_models([base, drawn(replace(LLAMA, rope_theta=5e5)).float()], MergeConfig())
    assert error.value.field == "rope_theta"
    with pytest.raises(UsageError, match="difference from a base"):
        merge_models(tuned, MergeConfig(method="ties"))
    with pytest.raises(UsageError, match="two ends"):
        merge_models([base, *tuned], MergeConfig(method="slerp"))
    with pytest.raises(UsageError, match="as many weights"):
        merge_models(tuned, MergeConfig(weights=(1.0,)))
    with pytest.raises(UsageError, match="sum to 0"):
        merge_models(tuned, MergeConfig(weights=(1.0, -1.0)))
    with pytest.raises(UsageError, match="density"):
        MergeConfig(method="ties", density=0.0)


# --- adapters ---------------------------------------------------------------------------------------------------------
def adapter(seed, rank, names=("blocks.0.attention.q", "blocks.1.mlp.up"), scale=2.0):
    generator, model = torch.Generator().manual_seed(seed), drawn(LLAMA)
    parts = {}
    for name in names:
        out, width = model.get_submodule(name).weight.shape
        a, b = torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
        parts[name] = LoRAWeights(a, b, scale)
    return Adapter(LoRAConfig(rank=rank, alpha=scale * rank, targets=tuple(names)), parts)


def delta(adapter, name):
    part = adapter.parts[name]
    return part.scale * part.b.detach() @ part.a.detach()


def test_adapters_put_together_are_exact():
    one, two = adapter(1, 2), adapter(2, 3, ("blocks.0.attention.q", "blocks.2.mlp.down"))
    merged = merge_adapters([one, two], [0.5, -2.0])
    assert set(merged.parts) == {"blocks.0.attention.q", "blocks.1.mlp.up", "blocks.2.mlp.down"}
    name = "blocks.0.attention.q"
    assert merged.parts[name].rank == merged.config.rank == 5
    assert torch.allclose(delta(merged, name), 0.5 * delta(one, name) - 2 * delta(two, name), atol=1e-4)
    assert torch.allclose(delta(merged, "blocks.1.mlp.up"), 0.5 * delta(one, "blocks.1.mlp.up"), atol=1e-4)
    assert merged.config.rank_of("blocks.1.mlp.up") == 2 and merged.config.scale_of("blocks.1.mlp.up") == 1.0


def test_adapters_within_a_rank():
    one, two = adapter(1, 2), adapter(2, 3)
    name = "blocks.1.mlp.up"
    whole = delta(one, name) + delta(two, name)
    full = merge_adapters([one, two], [1.0, 1.0], "svd", rank=5)
    assert torch.allclose(delta(full, name), whole, atol=1e-3)
    small = merge_adapters([one, two], [1.0, 1.0], "svd", rank=2)
    values = torch.linalg.svdvals(whole)
    assert torch.allclose((delta(small, name) - whole).norm(), values[2:].norm(), rtol=1e-3)  # Eckart & Young
    for method in ("ties_svd", "dare_linear_svd", "dare_ties_svd"):
        assert merge_adapters([one, two], [1.0, 1.0], method).parts[name].rank == 3


def test_merged_adapters_survive_peft(tmp_path):
    from dacheng.adapt import attach
    from dacheng.formats.peft import read_adapter, write_adapter

    model = drawn(LLAMA).float()
    merged = merge_adapters([adapter(1, 2), adapter(2, 3, ("blocks.0.attention.q",))], [1.0, 1.0])
    write_adapter(tmp_path / "a", merged, model)
    read = read_adapter(tmp_path / "a", model)
    for name in merged.parts:
        assert torch.allclose(delta(read, name), delta(merged, name), atol=1e-5)
    assert attach(model, read) == 1


def test_adapters_that_do_not_fit():
    with pytest.raises(UsageError, match="has a weight"):
        merge_adapters([adapter(1, 2)], [1.0, 1.0])
    dora = adapter(1, 2)
    dora.config = replace(dora.config, use_dora=True)
    with pytest.raises(UsageError, match="DoRA"):
        merge_adapters([dora], [1.0])
    with pytest.raises(UsageError, match="no such method"):
        merge_adapters([adapter(1, 2)], [1.0], "soup")


def test_low_rank_is_the_nearest():
    weight = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    a, b = low_rank(weight, 3)
    assert a.shape == (3, 7) and b.shape == (12, 3)
    assert torch.allclose((weight - b @ a).norm(), torch.linalg.svdvals(weight)[3:].norm(), rtol=1e-4)
