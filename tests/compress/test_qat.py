"""Training through the rounding."""

from __future__ import annotations

import pytest
import torch
from compress_toys import some_text, toy_decoder, toy_tokenizer
from torch.nn.functional import linear

from dacheng.adapt.training import mean_loss
from dacheng.compress.prune.healing import HealConfig, text_source
from dacheng.compress.quantize.config import QuantizeConfig
from dacheng.compress.quantize.qat import straight_through, train_quantized
from dacheng.errors import UsageError
from dacheng.ops.integers import IntTensor, QSpec
from dacheng.train.rng import derive_seed

TWO_BITS = QuantizeConfig("rtn", QSpec(2, 32))


def test_the_forward_is_rounded_and_the_gradient_is_not():
    weight = torch.randn(6, 32, requires_grad=True)
    x = torch.randn(5, 32)
    y = linear(x, straight_through(weight, QSpec(3)))
    torch.testing.assert_close(y, linear(x, IntTensor.from_float(weight.detach(), QSpec(3)).dequantize()))
    y.square().sum().backward()
    torch.testing.assert_close(weight.grad, (2 * y.detach()).t() @ x)


def test_what_rounding_costs_is_learnt_around():
    """One map with inputs that go together: training through the rounding finds codes that rounding alone misses.
    (Small steps: at ten times this rate, or with two bits, the straight-through gradient is too coarse to help.)"""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=generator)
    x = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator) / 5
    expected, spec = linear(x, weight), QSpec(3)
    trained = weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (linear(x, straight_through(trained, spec)) - expected).square().mean().backward()
        optimizer.step()
        schedule.step()
    error = [
        float((linear(x, IntTensor.from_float(w.detach(), spec).dequantize()) - expected).square().mean())
        for w in (weight, trained)
    ]
    assert error[1] < 0.75 * error[0]


def test_what_was_trained_is_what_is_kept(tmp_path):
    """By the one Trainer: the loss falls, and rounding for good at the end changes nothing any more."""
    tokenizer = toy_tokenizer()
    model = toy_decoder(vocab_size=tokenizer.vocab_size).init_weights(torch.Generator().manual_seed(0))
    training = HealConfig(steps=40, how="full", lr=1e-2, context_length=48, batch_rows=4)
    documents = [tokenizer.encode(some_text())]
    quantized, report = train_quantized(model, TWO_BITS, documents, tmp_path, training)
    assert len(quantized.weights) == 14 and report.loss_after < report.loss_before - 1
    assert torch.equal(model.blocks[0].mlp.up.weight, quantized.weights["blocks.0.mlp.up.weight"].dequantize())
    source = text_source(documents, 48, 4, seed=derive_seed(training.seed, "data"))
    assert mean_loss(model, [source.read([row]) for row in range(4)]) == pytest.approx(report.loss_after, abs=1e-4)


def test_only_rounding_of_all_weights(tmp_path):
    for config, training in (
        (QuantizeConfig("nf4"), HealConfig(how="full")), (TWO_BITS, HealConfig(how="lora")),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            train_quantized(toy_decoder(), config, [[1] * 99], tmp_path, training)
