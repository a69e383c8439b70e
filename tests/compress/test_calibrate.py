"""One pass, layer by layer, equals hooks on the whole model; it is bounded, and goes on where it was stopped."""

from __future__ import annotations

import shutil

import pytest
import torch
from compress_toys import toy_batches, toy_decoder, toy_encoder_batches

from dacheng.compress.calibrate import CalibrationBatch, calibrate, calibration_batches
from dacheng.compress.walk import LayerWalk
from dacheng.errors import DachengError, UsageError
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.linear import Dense

ODD = {"residual_scalars": True, "value_embeddings": True, "ngram_rows": 64, "tied_head": False, "layers": 3}


def by_hooks(model, batches) -> dict[str, torch.Tensor]:
    """All inputs of every Dense, from plain forwards."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].reshape(-1, given[0].shape[-1]))
        )
        for name, module in model.named_modules()
        if isinstance(module, Dense)
    ]
    with torch.no_grad():
        for tokens in batches:
            positions = torch.arange(tokens.shape[1]).expand_as(tokens)
            hidden = model(tokens, positions, DenseCausal())
            seen.setdefault("embed", []).append(hidden.reshape(-1, hidden.shape[-1]))
            if model.lm_head is not None:
                model.head(hidden)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("traits", [{}, ODD], ids=["llama", "odd"])
def test_equals_hooks_on_the_whole_model(traits):
    model, batches = toy_decoder(**traits), toy_batches()
    stats, seen = calibrate(model, batches), by_hooks(model, batches)
    if traits:
        del seen["embed"]
    assert stats.keys() == seen.keys()
    for name, x in seen.items():
        one = stats[name]
        assert one.tokens == len(x)
        for found, expected in (
            (one.hessian, x.t() @ x / len(x)), (one.absmax, x.abs().amax(0)), (one.absmean, x.abs().mean(0)),
            (one.sqnorm, x.square().sum(0)), (one.mean, x.mean(0)),
        ):  # fmt: skip
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert stats["blocks.0.attention.q"] is stats["blocks.0.attention.v"] is not stats["blocks.0.attention.o"]


def test_only_what_is_wanted_and_only_what_is_counted():
    model, (tokens, *_) = toy_decoder(), toy_batches()
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, :5] = True
    stats = calibrate(model, [CalibrationBatch(tokens, None, counted)], ["sqnorm"])
    short = calibrate(model, [tokens[:, :5]], ["sqnorm"])
    for name, one in stats.items():
        assert one.hessian is None and one.tokens == 5 * len(tokens)
        torch.testing.assert_close(one.sqnorm, short[name].sqnorm, rtol=1e-4, atol=1e-4)


def test_an_encoder_and_its_padding():
    traits = EncoderTraits(vocab_size=99, width=32, layers=2, heads=4, mlp_width=64, max_positions=16)
    model = Encoder(traits).init_weights(torch.Generator().manual_seed(0)).eval()
    padded, alone = toy_encoder_batches()
    one, other = calibrate(model, [padded], ["hessian"]), calibrate(model, alone, ["hessian"])
    assert "blocks.1.mlp.down" in one and "embed" not in one
    for name in one:
        assert one[name].tokens == other[name].tokens
        torch.testing.assert_close(one[name].hessian, other[name].hessian, rtol=1e-4, atol=1e-6)


def test_a_changed_block_is_what_the_next_one_reads():
    model, batches = toy_decoder(), toy_batches()
    for layer in LayerWalk(model, batches):
        if layer.index == 0:
            layer.module.mlp.down.weight.data.mul_(0.5)
        if layer.index == 1:
            found = layer.collect(["mean"])["blocks.1.attention.q"].mean
    torch.testing.assert_close(found, calibrate(model, batches, ["mean"])["blocks.1.attention.q"].mean)


def test_it_goes_on_where_it_was_stopped(tmp_path):
    model, batches = toy_decoder(layers=3), toy_batches()
    whole = calibrate(model, batches, folder=tmp_path / "a")

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, batches, folder=tmp_path / "b", progress=stop)
    left = sorted(path.name for path in (tmp_path / "b").glob("hidden-*"))
    assert left == ["hidden-0001"]  # the states of one layer, not of all
    steps = []
    again = calibrate(model, batches, folder=tmp_path / "b", progress=lambda done, of: steps.append(done))
    assert steps == [2, 3, 4]
    for name, one in whole.items():
        assert torch.equal(one.hessian, again[name].hessian)
    assert again["blocks.0.attention.q"] is again["blocks.0.attention.k"]
    steps.clear()
    calibrate(model, batches[:2], folder=tmp_path / "b", progress=lambda done, of: steps.append(done))
    assert steps == [1, 2, 3, 4]  # another text: nothing of it is taken


def test_a_full_disk_loses_nothing_that_is_done(tmp_path, monkeypatch):
    model, batches = toy_decoder(layers=3), toy_batches()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=0) if "hidden-0002" in str(path) else usage
    )
    with pytest.raises(DachengError, match="the disk has 0") as refusal:
        calibrate(model, batches, folder=tmp_path)
    assert refusal.value.field == "disk"
    monkeypatch.undo()
    steps: list[int] = []
    (tmp_path / "block-0000.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(DachengError, match="what was made of a block is gone"):
        calibrate(model, batches, folder=tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "block-0000.safetensors")
    calibrate(model, batches, folder=tmp_path, progress=lambda done, of: steps.append(done))
    assert steps[0] == 2


def test_nan_activations_name_the_map_and_the_batch():
    model, batches = toy_decoder(), toy_batches(vocab_size=200)
    batches[2][0, 3] = 250
    with torch.no_grad():
        model.embed.weight[250] = float("nan")
    with pytest.raises(DachengError, match="batch 3") as refusal:
        calibrate(model, batches)
    assert refusal.value.field == "blocks.0.attention.q"


def test_what_cannot_be_calibrated():
    model = toy_decoder()
    with pytest.raises(UsageError, match="no such statistic"):
        calibrate(model, toy_batches(), ["hesian"])
    with pytest.raises(UsageError, match="no text"):
        calibrate(model, [])
    with pytest.raises(UsageError, match="no blocks"):
        calibrate(torch.nn.Linear(2, 2), toy_batches())
    with pytest.raises(UsageError, match="too short") as refusal:
        calibration_batches(range(100), rows=4, length=32)
    assert "3 rows of 32" in refusal.value.remedy
    rows = torch.cat(calibration_batches(range(128), rows=4, length=32, batch=3))
    assert sorted(rows.flatten().tolist()) == list(range(128))
