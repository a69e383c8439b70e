from types import SimpleNamespace

import pytest
import torch
from train_toys import Recorder, make

from dacheng.errors import UsageError
from dacheng.train import precision
from dacheng.train.precision import LossScaler, choose

SLOW = SimpleNamespace(fast_dtype="float32")
FAST = SimpleNamespace(fast_dtype="bfloat16")


def test_auto_takes_what_the_machine_is_fast_at():
    assert choose("auto", "cpu", SLOW).dtype == torch.float32
    assert choose("auto", "cpu", FAST).dtype == torch.bfloat16


def test_parameters_stay_in_float32_and_products_are_not():
    bf16 = choose("bf16")
    layer = torch.nn.Linear(4, 4)
    with bf16.autocast():
        out = layer(torch.ones(2, 4))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    with choose("fp32").autocast():
        assert layer(torch.ones(2, 4)).dtype == torch.float32


def test_an_unsupported_format_is_refused_before_the_model_runs(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(torch, "autocast", fail)
    with pytest.raises(UsageError, match="cannot compute in fp16") as caught:
        choose("fp16")
    assert caught.value.field == "train.precision" and "fp32" in caught.value.remedy


def test_autocast_that_computes_in_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(precision.Precision, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    with pytest.raises(UsageError, match=r"computes in torch.float32 instead"):
        choose("bf16")


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="unknown precision"):
        choose("fp8")


def test_the_scale_moves_as_torchs_does():
    """The same sequence of good and bad steps through torch.amp.GradScaler."""
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    ours = LossScaler(scale=1024.0, interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs.scale(torch.ones(1))  # makes its state
    for finite in [True, True, False, True, True, True, True, False, False, True, True, True]:
        weight.grad = torch.tensor([1.0 if finite else float("inf")])
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert ours.scale == theirs.get_scale()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_training_in_half_the_bits_follows_fp32(tmp_path, name):
    """16-bit products change the fourth digit, not the course."""
    exact, rough = Recorder(), Recorder()
    make(tmp_path / "a", [exact], steps=8, clip_norm=None).fit()
    trainer = make(tmp_path / "b", [rough], steps=8, clip_norm=None, precision=name)
    result = trainer.fit()
    assert rough.losses == pytest.approx(exact.losses, rel=0.02)
    assert rough.losses != exact.losses
    assert result.skipped_steps <= (1 if name == "fp16" else 0)  # float16 may have to find its scale first
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_an_overflow_lowers_the_scale_and_is_counted(tmp_path):
    seen = Recorder()
    trainer = make(tmp_path, [seen], steps=6, precision="fp16")
    trainer.precision.scaler.scale = 2.0**40  # far too large for float16 gradients
    result = trainer.fit()
    assert 0 < result.skipped_steps <= 6
    assert "loss scale now" in seen.reports[0].skipped
    assert trainer.precision.scaler.scale < 2.0**40
    assert trainer.state.weights_version == 6 - result.skipped_steps
