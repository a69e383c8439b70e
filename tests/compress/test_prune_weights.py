"""Pruning a whole model: which maps, on whose inputs, stopped and gone on with."""

from __future__ import annotations

import copy
import errno

import pytest
import torch
from test_shrink import LLAMA, batches, drawn, logits

from dacheng.compress.calibrate import calibrate
from dacheng.compress.prune.sparsity import Sparsity
from dacheng.compress.prune.wanda import wanda
from dacheng.compress.prune.weights import masks_of, prune_weights, put_masks
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.lora_config import LoRAConfig


def model(seed=0):
    return drawn(LLAMA, seed).float()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", ["0.5", "2:4"])
def test_every_map_of_the_blocks_is_pruned(method, sparsity):
    pruned, before = model(), weights(model())
    report = prune_weights(pruned, batches(LLAMA, 4), method, sparsity)
    assert len(report.zeros) == 5 * 7 and all(abs(z - 0.5) < 0.02 for z in report.zeros.values())
    assert abs(report.sparsity - 0.5) < 0.01 and report.asked == str(Sparsity.parse(sparsity))
    for name in ("embed.weight", "norm.weight", "blocks.0.mlp_norm.weight"):
        assert torch.equal(weights(pruned)[name], before[name])
    kept = pruned.blocks[1].mlp.up.weight
    same = torch.equal(kept, before["blocks.1.mlp.up.weight"] * (kept != 0))
    assert same == (method != "sparsegpt")  # only SparseGPT moves what stays


def test_wanda_sees_the_pruned_blocks_before():
    pruned, text = model(), batches(LLAMA, 4)
    prune_weights(pruned, text, "wanda", 0.5)
    again = model()
    first = calibrate(again, text, {"sqnorm"})
    name = "blocks.0.attention.q"
    expected = wanda(again.get_submodule(name).weight, first[name].sqnorm, Sparsity(0.5))
    assert torch.equal(pruned.get_submodule(name).weight != 0, expected)
    for i in range(4):  # the dense model's inputs are others from the second block on
        block = pruned.blocks[i].state_dict()
        again.blocks[i].load_state_dict(block)
    name = "blocks.4.mlp.gate"
    expected = wanda(again.get_submodule(name).weight, calibrate(again, text, {"sqnorm"})[name].sqnorm, Sparsity(0.5))
    dense = wanda(again.get_submodule(name).weight, first[name].sqnorm, Sparsity(0.5))
    found = pruned.get_submodule(name).weight != 0
    # the block's attention was pruned in the same pass: mlp.gate was judged on what the unpruned attention gave
    assert (found == expected).float().mean() > 0.97 and not torch.equal(found, dense)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_stopped_call_goes_on(tmp_path, method):
    whole, text = model(), batches(LLAMA, 3)
    prune_weights(whole, text, method, 0.5)

    def stop(done, _blocks):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_weights(model(), text, method, 0.5, folder=tmp_path / "state", progress=stop)
    seen = []
    resumed = model()
    prune_weights(resumed, text, method, 0.5, folder=tmp_path / "state", progress=lambda done, _: seen.append(done))
    assert seen[0] >= 3 and all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    # another sparsity is other work: begun anew
    other, fresh = model(), model()
    prune_weights(other, text, method, 0.25, folder=tmp_path / "state")
    prune_weights(fresh, text, method, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), fresh.parameters()))


def test_a_stopped_call_tells_what_the_whole_one_would(tmp_path):
    whole, text = model(), batches(LLAMA, 1)
    told = prune_weights(whole, text, "sparsegpt", 0.5)

    def stop(done, _blocks):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_weights(model(), text, "sparsegpt", 0.5, folder=tmp_path / "state", progress=stop)
    resumed = prune_weights(model(), text, "sparsegpt", 0.5, folder=tmp_path / "state")
    assert resumed == told and any("blocks.0" in note for note in told.notes)
    everything = prune_weights(model(), text, "wanda", 0.5, folder=tmp_path / "other")
    assert prune_weights(model(), text, "wanda", 0.5, folder=tmp_path / "other").tokens == everything.tokens > 0


def test_nearly_the_same_sparsity_is_other_work(tmp_path):
    text, fresh = batches(LLAMA, 3), model()
    prune_weights(model(), text, "wanda", 0.504, folder=tmp_path / "state")
    report, expected = prune_weights(fresh, text, "wanda", 0.45), model()
    assert report.asked == "45%" and str(Sparsity(0.504)) == "50.4%"
    other = model()
    prune_weights(other, text, "wanda", 0.496, folder=tmp_path / "state")
    prune_weights(expected, text, "wanda", 0.496)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters()))


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """The same call goes on when there is space again."""
    from dacheng.compress import walk

    real, written = walk.write_tensors, []

    def full(path, tensors, *rest, **more):
        written.append(path)
        if len(written) == 12:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, tensors, *rest, **more)

    text, resumed, whole = batches(LLAMA, 3), model(), model()
    monkeypatch.setattr(walk, "write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        prune_weights(model(), text, "wanda", 0.5, folder=tmp_path / "state")
    before = len(written)
    prune_weights(resumed, text, "wanda", 0.5, folder=tmp_path / "state")
    again = len(written) - before
    prune_weights(whole, text, "wanda", 0.5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    assert again < 3 + 5 * 4  # not everything anew


def test_calibrated_methods_harm_less():
    """Nats that the pruned model adds to the dense one's own continuations, which any pruning makes less likely."""
    dense, ids = model(2), torch.randint(64, (4, 12))
    wide = torch.linspace(-1.5, 1.5, 48).exp()
    with torch.no_grad():
        dense.blocks[0].attention_norm.weight.mul_(wide)  # channels of different sizes
        for block in dense.blocks:
            block.mlp_norm.weight.mul_(wide.flip(0))
    expected = logits(dense, ids).log_softmax(-1)

    def harm(method):
        pruned = copy.deepcopy(dense)
        prune_weights(pruned, batches(LLAMA, 6), method, 0.3)
        return float((expected.exp() * (expected - logits(pruned, ids).log_softmax(-1))).sum(-1).mean())

    harms = {method: harm(method) for method in ("magnitude", "wanda", "sparsegpt")}
    assert harms["wanda"] < harms["magnitude"] and harms["sparsegpt"] < harms["magnitude"], harms


def test_notes_say_what_did_not_go_as_planned():
    short = [torch.arange(6).view(1, 6)]
    pruned = model()
    report = prune_weights(pruned, short, "sparsegpt", 0.5)
    assert any("6 tokens for 48 inputs" in note for note in report.notes)
    again = prune_weights(pruned, short, "wanda", 0.5)
    assert any("zeros already" in note for note in again.notes)


def test_bad_input():
    from dacheng.adapt import add_lora

    with pytest.raises(UsageError, match="no such method"):
        prune_weights(model(), batches(LLAMA), "magic", 0.5)
    with pytest.raises(UsageError, match="no text"):
        prune_weights(model(), [], "wanda", 0.5)
    with pytest.raises(UsageError, match="groups of 7"):
        prune_weights(model(), batches(LLAMA), "wanda", "3:7")
    broken = model()
    with torch.no_grad():
        broken.blocks[2].attention_norm.weight[0] = torch.nan
    with pytest.raises(DachengError, match="not finite"):
        prune_weights(broken, batches(LLAMA), "sparsegpt", 0.5)
    adapted = model()
    add_lora(adapted, LoRAConfig(rank=2))
    with pytest.raises(UsageError, match="merge the adapter"):
        prune_weights(adapted, batches(LLAMA), "wanda", 0.5)


def test_masks_keep_the_zeros():
    pruned = model()
    prune_weights(pruned, batches(LLAMA), "wanda", 0.5)
    masks = masks_of(pruned)
    before = weights(pruned)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter += 1
    put_masks(pruned, masks)
    assert len(masks) == 35 and masks_of(pruned).keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(pruned.get_submodule(name).weight == 0, ~mask)
        assert torch.equal(before[f"{name}.weight"] == 0, ~mask)
    assert masks_of(Decoder(LLAMA).init_weights()) == {}
