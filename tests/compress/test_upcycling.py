"""A dense model as experts: equal at step 0, trainable, saved; and which experts are used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_shrink import LLAMA, VARIANTS, batches, drawn, logits

from dacheng.compress.experts import expert_usage
from dacheng.compress.prune.healing import HealConfig, heal
from dacheng.compress.upcycle import upcycle
from dacheng.errors import UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.nn.moe import MoE

IDS = torch.arange(24).view(2, 12) * 5 % 64


@pytest.mark.parametrize("variant", ["llama", "mha", "gemma", "sinks", "parallel"])
@pytest.mark.parametrize(("experts", "per_token", "pattern"), [(4, 1, "M"), (8, 2, "M"), (3, 3, "DM")])
def test_equal_at_step_0(variant, experts, per_token, pattern):
    dense = drawn(VARIANTS[variant]).float()
    made = upcycle(dense, experts, per_token, pattern=pattern)
    assert [isinstance(b.mlp, MoE) for b in made.blocks] == [pattern[i % len(pattern)] == "M" for i in range(5)]
    expected = logits(dense, IDS)
    assert (logits(made, IDS) - expected).abs().max() < 2e-6 * expected.abs().max()
    assert made.params()["total"] > 1.2 * dense.params()["total"]
    if pattern == "M":  # a token goes through per_token networks
        dense_active = dense.active_params()
        mlp = sum(p.numel() for b in dense.blocks for p in b.mlp.parameters() if p.ndim == 2)
        router = 5 * experts * 48
        assert made.active_params() == dense_active + (per_token - 1) * mlp + router


def test_noise_sets_them_apart():
    dense = drawn(LLAMA).float()
    made = upcycle(dense, 4, 2, noise=0.1, seed=3)
    up = made.blocks[0].mlp.experts.up
    spread = (up - dense.blocks[0].mlp.up.weight).std() / dense.blocks[0].mlp.up.weight.std()
    assert 0.08 < spread < 0.12 and (logits(made, IDS) - logits(dense, IDS)).abs().max() > 1e-4
    assert torch.equal(upcycle(dense, 4, 2, noise=0.1, seed=3).blocks[0].mlp.experts.up, up)


def test_it_is_saved_and_trained(tmp_path):
    traits = replace(LLAMA, width=60, heads=6)
    made = upcycle(drawn(traits).float(), 4, 2)
    save_model(tmp_path / "m", made)
    assert torch.equal(logits(load_model(tmp_path / "m").model, IDS), logits(made, IDS))
    circle = [[i * 3 % 64 for i in range(300)]]
    config = HealConfig(how="full", steps=20, lr=3e-3, context_length=24, batch_rows=4)
    report = heal(made, circle, tmp_path / "train", config)
    assert report.loss_after < 0.7 * report.loss_before
    up = made.blocks[0].mlp.experts.up
    assert (up[0] - up[1]).abs().max() > 1e-4  # they grow apart by what is sent to them


def test_usage_of_each_layer():
    model = upcycle(drawn(LLAMA).float(), 4, 2)
    with torch.no_grad():  # layer 0 sends everything to 1 and 3
        model.blocks[0].mlp.router.weight.zero_()
    model.blocks[0].mlp.router.bias = torch.nn.Parameter(torch.tensor([0.0, 2.0, 0.0, 1.0]))
    usage = expert_usage(model, batches(LLAMA))
    first = usage.layers[0]
    assert usage.tokens == 2 * 36 and [u.layer for u in usage.layers] == list(range(5))
    assert (
        first.load == [0, 0.5, 0, 0.5] and first.idle == 2 and first.peak == 2.0 and first.entropy == pytest.approx(0.5)
    )
    assert first.pairs == [(1, 3, 1.0)]
    weight = float(torch.tensor([2.0, 1.0]).softmax(0)[0])
    assert first.weight[1] == pytest.approx(weight, rel=1e-4)
    assert all(abs(sum(u.load) - 1) < 1e-9 for u in usage.layers) and "1 and 3 (100%)" in usage.table()


def test_bad_input():
    dense = drawn(LLAMA).float()
    with pytest.raises(UsageError, match="no experts"):
        expert_usage(dense, batches(LLAMA))
    with pytest.raises(UsageError, match="already"):
        upcycle(upcycle(dense, 2, 1), 2, 1)
    with pytest.raises(UsageError, match="one or more"):
        upcycle(dense, 2, 3)
    with pytest.raises(UsageError, match="no text"):
        expert_usage(upcycle(dense, 2, 1), [])
