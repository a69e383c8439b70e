"""Codes, their storage and their blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.compress.quantize.gptq import gptq
from dacheng.errors import DachengError, UsageError
from dacheng.ops.bits import pack_bits, row_bytes, unpack_bits
from dacheng.ops.fp8 import FP8Tensor
from dacheng.ops.integers import IntTensor, QSpec
from dacheng.ops.nf4 import NF4Tensor, dynamic_map


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9))
def test_codes_come_back(bits, rows, width, seed):
    codes = torch.randint(0, 2**bits, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, row_bytes(width, bits)) and torch.equal(unpack_bits(packed, bits, width), codes)
    with pytest.raises(DachengError):
        unpack_bits(packed[:, 1:], bits, width)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8), st.sampled_from(["channel", "tensor", 8, 32]), st.booleans(), st.floats(0.05, 1e3),
    st.integers(0, 99),
)  # fmt: skip
def test_a_number_is_off_by_half_a_step(bits, group, symmetric, size, seed):
    """At the end of a symmetric range by one: the top code is one short of the range. (float16 scales: 2^-11 more.)"""
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed)) * size
    found = IntTensor.from_float(w, QSpec(bits, group, symmetric))
    columns = found.scale.numel()
    step = found.scale.float().reshape(-1, 1).expand(columns, w.numel() // columns).reshape(w.shape)
    slack = 2**-11 * 2**bits
    assert bool(((found.dequantize() - w).abs() <= step * (0.5 + 0.5 * symmetric + slack)).all())
    assert found.nbytes < w.numel() * 4


def test_bits_cost_what_they_say():
    w = torch.randn(64, 640)
    sizes = {
        text: IntTensor.from_float(w, QSpec.parse(text)).nbytes * 8 / w.numel()
        for text in ("2", "3", "4", "8", "4g64", "4g64a")
    }
    assert sizes == pytest.approx(
        {"2": 2.025, "3": 3.025, "4": 4.025, "8": 8.025, "4g64": 4.25, "4g64a": 4.3125}, abs=1e-6
    )


def test_formats_in_a_word():
    assert QSpec.parse("4g64") == QSpec(4, 64) and QSpec.parse("int3-channel") == QSpec(3)
    assert QSpec.parse("8-tensor-asym") == QSpec(8, "tensor", False)
    for spec in (QSpec(), QSpec(3, 64, False), QSpec(8, "tensor")):
        assert QSpec.parse(str(spec)) == spec
    for wrong in ("", "9", "4g0", "four", "4g64x"):
        with pytest.raises(UsageError):
            QSpec.parse(wrong)
    for wrong in ({"bits": 1}, {"bits": True}, {"group": 0}, {"group": "row"}, {"scale": "int8"}):
        with pytest.raises(UsageError):
            QSpec(**wrong)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(UsageError, match="don't divide 40"):
        IntTensor.from_float(torch.randn(4, 40), QSpec(4, 32))
    for bad in (float("nan"), float("inf")):
        for make in (lambda w: IntTensor.from_float(w, QSpec()), NF4Tensor.from_float, FP8Tensor.from_float):
            with pytest.raises(DachengError, match="finite"):
                make(torch.full((2, 64), bad))
    with pytest.raises(DachengError, match="float16"):
        IntTensor.from_float(torch.full((2, 64), 1e7), QSpec(4))
    assert IntTensor.from_float(torch.full((2, 64), 1e7), QSpec(4, scale="float32")).dequantize().isfinite().all()
    assert "no whole blocks" in IntTensor.from_float(torch.randn(2, 48), QSpec(4)).why_no_blocks()
    assert "no kernel" in IntTensor.from_float(torch.randn(2, 64), QSpec(8, 64, False)).why_no_blocks()


def test_zeros_stay_zeros():
    for text in ("4", "3g32a", "8-tensor"):
        assert not IntTensor.from_float(torch.zeros(3, 64), QSpec.parse(text)).dequantize().any()
    assert not NF4Tensor.from_float(torch.zeros(3, 64)).dequantize().any()
    assert not FP8Tensor.from_float(torch.zeros(3, 64)).dequantize().any()


def test_eight_bit_floats_keep_four_digits_of_two():
    w = torch.randn(16, 64) * torch.logspace(-3, 3, 16)[:, None]
    off = (FP8Tensor.from_float(w).dequantize() - w).abs()
    assert bool((off <= w.abs() * 2**-4 + w.abs().amax(1, keepdim=True) * 2**-9 / 448 * 2).all())
    assert len(dynamic_map()) == 256 and bool((dynamic_map().diff() > 0).all())


# --- GPTQ -------------------------------------------------------------------------------------------------------------
def problem(width: int = 64, rows: int = 24):
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(rows, width, generator=generator)
    x = torch.randn(4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator) / 4
    return w, x.t() @ x / len(x)


def error(w, found, h) -> float:
    delta = found.weight.dequantize() - w
    return float(((delta @ h) * delta).sum())


def test_without_correlation_gptq_is_rounding():
    w, _ = problem()
    for spec in (QSpec(4), QSpec(3, 16, False)):
        assert torch.equal(gptq(w, torch.eye(64) * 7, spec).weight.codes, IntTensor.from_float(w, spec).codes)


def test_the_size_of_a_block_changes_nothing():
    w, h = problem()
    for spec in (QSpec(4), QSpec(4, 16, False)):
        found = [gptq(w, h, spec, block=block).weight.dequantize() for block in (16, 48, 128)]
        assert all(torch.equal(one, found[0]) for one in found)


def test_groups_see_the_corrections_before_them():
    """In the authors' code a group inside a block takes its scale from stale columns: ours is at least as good."""
    w, h = problem()
    rtn = float(((IntTensor.from_float(w, QSpec(3, 16)).dequantize() - w) @ torch.linalg.cholesky(h)).square().sum())
    live, static = (error(w, gptq(w, h, QSpec(3, 16), static_groups=flag), h) for flag in (False, True))
    assert live < 0.6 * rtn and static < 0.6 * rtn


def test_a_singular_hessian_is_damped_then_given_up():
    w, _ = problem()
    x = torch.randn(3, 64)
    solved = gptq(w, x.t() @ x, QSpec(4), damp=1e-12)
    assert solved.note and (solved.damp is None or solved.damp > 1e-12)
    negative = torch.eye(64)
    negative[0, 1] = negative[1, 0] = 50.0
    hopeless = gptq(w, negative, QSpec(4))
    assert hopeless.damp is None and "rounded to nearest" in hopeless.note
    assert torch.equal(hopeless.weight.codes, IntTensor.from_float(w, QSpec(4)).codes)
    with pytest.raises(UsageError, match="not that of this matrix"):
        gptq(w, torch.eye(63), QSpec(4))
