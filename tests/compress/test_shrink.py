"""What is cut out equals what is set to zero, for every part of a network; and the smaller one is an ordinary model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dacheng.compress.prune.choose import keep_heads, keep_layers, keep_neurons, keep_width
from dacheng.compress.prune.importance import (
    MEASURES,
    block_influence,
    channel_importance,
    head_importance,
    neuron_importance,
)
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.shrink import mask_out, shrink
from dacheng.data.batches import TokenBatch
from dacheng.errors import UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.moe import MoETraits

LLAMA = DecoderTraits(vocab_size=64, width=48, layers=5, heads=6, kv_heads=3, mlp_width=40)
VARIANTS = {
    "llama": LLAMA,
    "mha": replace(LLAMA, kv_heads=None, tied_head=False, mlp_bias=True, attention_bias=True),
    "gemma": replace(LLAMA, norm_offset=True, norm_placement="both", activation="geglu_tanh", embedding_scale=6.9),
    "sinks": replace(LLAMA, attention_sinks=True, window=8, window_pattern="SSL", activation="relu2"),
    "parallel": replace(LLAMA, parallel_branches=True, positions="learned", max_positions=32),
    "qk_norm": replace(LLAMA, qk_norm=True, qk_norm_weight=True, rope_pattern="RN"),
}


def drawn(traits, seed=0):
    """In float64: a difference is then one of the computation, not of rounding. Every gain and bias is drawn."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(traits).init_weights(generator).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model.head(model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal())).double()


def batches(traits, count=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(traits.vocab_size, (count, 3, 13), generator=generator)
    positions = torch.arange(12).expand(3, 12)
    return [TokenBatch(x[:, :-1].contiguous(), x[:, 1:].contiguous(), positions) for x in ids]


CUTS = {
    "layers": Keep(layers=(0, 2, 3)),
    "groups": Keep(heads=((0, 1, 4, 5),) * 4 + ((2, 3, 4, 5),)),
    "in_groups": Keep(heads=((0, 2, 5),) * 3 + ((1, 3, 4),) * 2),
    "neurons": Keep(neurons=tuple(tuple(range(i, 40, 2 + i % 2))[:13] for i in range(5))),
    "width": Keep(width=tuple(range(0, 48, 2)) + (47,)),
    "together": Keep(
        layers=(1, 4), heads=((0, 1), (2, 3)), neurons=((1, 2, 30), (0, 5, 39)), width=tuple(range(3, 40))
    ),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_equals_masked(variant, cut):
    traits, keep = VARIANTS[variant], CUTS[cut]
    if keep.heads and traits.kv_heads is None:
        keep = replace(keep, heads=tuple((*part[1:], 5)[-2:] if len(part) == 2 else part for part in keep.heads))
    model, ids = drawn(traits), torch.arange(24).view(2, 12) * 5 % 64
    if keep.width and traits.qk_norm:
        with pytest.raises(UsageError, match="width"):
            shrink(model, keep)
        return
    before = logits(model, ids)
    smaller = shrink(model, keep)
    assert torch.equal(logits(model, ids), before)  # the larger one was left alone
    found, expected = logits(smaller, ids), logits(mask_out(model, keep), ids)
    scale = float(expected.abs().max())
    assert (found - expected).abs().max() < 1e-5 * scale  # logits are made float32 by the head
    assert (expected - before).abs().max() > 1e-2 * scale
    assert smaller.params()["total"] < model.params()["total"]


def test_a_layer_less_is_exact():
    """Nothing is summed in another order: to the bit."""
    model, ids = drawn(LLAMA).float(), torch.arange(24).view(2, 12) * 5 % 64
    smaller = shrink(model, CUTS["layers"])
    assert torch.equal(logits(smaller, ids), logits(mask_out(model, CUTS["layers"]), ids))


def test_vocabulary_cut_is_a_choice_of_logits():
    model = drawn(replace(LLAMA, tied_head=False))
    kept = tuple(range(0, 64, 3))
    ids = torch.randint(len(kept), (2, 9))
    smaller = shrink(model, Keep(vocabulary=kept))
    expected = logits(model, torch.tensor(kept)[ids])[..., list(kept)]
    assert smaller.traits.vocab_size == len(kept) and torch.allclose(
        logits(smaller, ids), expected, rtol=1e-6, atol=1e-6
    )


def test_experts_lose_layers_only():
    moe = MoETraits(experts=4, experts_per_token=2, expert_width=16, pattern="DM")
    model = drawn(replace(LLAMA, moe=moe))
    smaller = shrink(model, Keep(layers=(0, 1, 3)))
    assert [smaller.traits.is_moe(i) for i in range(3)] == [False, True, True]
    with pytest.raises(UsageError, match="experts"):
        shrink(model, Keep(neurons=((0,),) * 5))


@pytest.mark.parametrize("keep", [
    Keep(layers=()), Keep(layers=(2, 1)), Keep(layers=(0, 5)), Keep(heads=((0, 1, 2),) * 5), Keep(heads=((0, 1),) * 4),
    Keep(neurons=((0,), (0,), (0,), (0,), (0, 1))), Keep(width=(-1, 3)), Keep(vocabulary=(0, 0)),
    Keep(heads=((0, 1),) * 4 + ((0, 2),)),
])  # fmt: skip
def test_what_cannot_stay_is_refused(keep):
    with pytest.raises(UsageError):
        shrink(drawn(LLAMA), keep)


def test_the_smaller_model_is_saved_and_loaded(tmp_path):
    model = drawn(replace(LLAMA, width=60)).float()
    smaller = shrink(model, Keep(layers=(0, 3), heads=((0, 1),) * 2, neurons=((3, 4, 5),) * 2))
    save_model(tmp_path / "m", smaller)
    ids = torch.arange(10).view(1, 10)
    loaded = load_model(tmp_path / "m").model
    assert torch.equal(logits(loaded, ids), logits(smaller, ids)) and loaded.traits.layers == 2
    size = {p: (tmp_path / p / "model.safetensors").stat().st_size for p in ("m",)}
    save_model(tmp_path / "whole", model)
    assert size["m"] < 0.4 * (tmp_path / "whole" / "model.safetensors").stat().st_size


# --- what to keep -----------------------------------------------------------------------------------------------------
def test_influence_of_a_layer_that_does_nothing_is_zero():
    model = drawn(LLAMA).float()
    mask = Keep(layers=(0, 1, 3, 4))
    influence = block_influence(mask_out(model, mask), batches(LLAMA))
    assert abs(float(influence[2])) < 1e-6 and (influence[[0, 1, 3, 4]] > 0.01).all()
    assert keep_layers(influence, 1) == mask


@pytest.mark.parametrize("measure", MEASURES)
def test_what_does_nothing_goes_first(measure):
    model = drawn(LLAMA).float()
    heads, neurons = ((2, 3, 4, 5),) * 5, tuple(tuple(range(7, 40)) for _ in range(5))
    model = mask_out(model, Keep(heads=heads, neurons=neurons))
    found_heads = head_importance(model, batches(LLAMA), measure)
    found_neurons = neuron_importance(model, batches(LLAMA), measure)
    assert (found_heads[:, :2] < 1e-6).all() and (found_heads[:, 2:] > 1e-6).all()
    assert keep_heads(found_heads, LLAMA, 4).heads == heads
    assert keep_neurons(found_neurons, 33).neurons == neurons
    assert not any(p.grad is not None for p in model.parameters()) and all(p.requires_grad for p in model.parameters())


def test_gradient_importance_is_the_derivative_of_a_mask():
    """Michel et al. 2019, eq. 2: |∂L/∂ξ_h| at ξ = 1, for one sequence of one token to predict."""
    model = drawn(replace(LLAMA, layers=1), seed=4).float()
    batch = batches(LLAMA, 1)[0]
    batch = TokenBatch(batch.tokens[:1, :1], batch.targets[:1, :1], batch.positions[:1, :1])
    found = head_importance(model, [batch], "gradient")[0]
    o = model.blocks[0].attention.o
    mask = torch.ones(6, requires_grad=True)
    handle = o.register_forward_pre_hook(lambda _, x: (x[0] * mask.repeat_interleave(8),))
    hidden = model(batch.tokens, batch.positions, DenseCausal())
    torch.nn.functional.cross_entropy(model.head(hidden).flatten(0, 1), batch.targets.flatten()).backward()
    handle.remove()
    expected = mask.grad.abs() / mask.grad.norm()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_channels_of_the_stream():
    model = drawn(LLAMA).float()
    keep = Keep(width=tuple(range(8, 48)))
    found = channel_importance(mask_out(model, keep), batches(LLAMA))
    assert (found[:8] == 0).all() and keep_width(found, 40) == keep


def test_head_counts_that_groups_do_not_allow():
    scores = torch.rand(5, 6)
    assert len(keep_heads(scores, LLAMA, 3).heads[0]) == 3  # one of each group
    with pytest.raises(UsageError, match="one of 2, 3, 4"):
        keep_heads(scores, LLAMA, 5)
    with pytest.raises(UsageError, match="no text"):
        block_influence(drawn(LLAMA).float(), [])
