"""Blocks of GGUF: to the last bit as the gguf package has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError
from dacheng.ops.block_formats import BY_ID, FORMATS, block_format
from dacheng.ops.dequantize import dequantize
from dacheng.ops.qtensor import QTensor
from dacheng.ops.quantize import largest, quantize

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


@pytest.fixture(scope="module")
def golden(goldens):
    with np.load(goldens / "gguf_blocks.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def bits(x):
    return x.contiguous().view(torch.int32)


@pytest.mark.oracle
@pytest.mark.parametrize("name", FORMATS)
def test_dequantised_values_equal_the_reference_to_the_bit(golden, name):
    values = dequantize(golden[f"{name}.raw"], name)
    expected = golden[f"{name}.values"]
    assert values.shape == expected.shape and values.dtype == torch.float32
    assert torch.equal(bits(values), bits(expected))


@pytest.mark.oracle
@pytest.mark.parametrize("name", WRITTEN)
def test_quantised_bytes_equal_the_reference(golden, name):
    packed = quantize(golden["floats"], name)
    assert torch.equal(packed, golden[f"{name}.packed"])


@pytest.mark.parametrize("name", FORMATS)
def test_any_split_of_the_work_gives_the_same_values(golden, name, monkeypatch):
    raw = golden[f"{name}.raw"]
    whole = dequantize(raw, name)
    monkeypatch.setattr("dacheng.ops.dequantize._CHUNK", FORMATS[name].values)
    assert torch.equal(dequantize(raw, name), whole)
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), raw.reshape(-1)])[1:].reshape(raw.shape)  # an odd address
    assert torch.equal(dequantize(odd, name), whole)
    assert torch.equal(dequantize(raw, name, torch.bfloat16), whole.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_the_error_is_at_most_a_step(name, seed, scale):
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * scale
    error = (dequantize(quantize(x, name), name) - x).abs().reshape(-1, 32)
    blocks = x.reshape(-1, 32)
    spread = {"Q8_0": blocks.abs().amax(1) / 127, "Q4_0": blocks.abs().amax(1) / 8,
              "Q4_1": (blocks.amax(1) - blocks.amin(1)) / 15}[name]  # fmt: skip
    # half a step by rounding (a whole one at Q4_0's short end), and the half-float scale's own error
    step = 1.0 if name == "Q4_0" else 0.5
    assert (error.amax(1) <= spread * step + blocks.abs().amax(1) * 2e-3).all()


def test_nan_survives_in_bfloat16():
    x = torch.tensor([0x7F800001, 0xFFC12345 - 2**32, 0x3F808000], dtype=torch.int32).view(torch.float32)
    assert quantize(x, "BF16").view(torch.int16).tolist() == [0x7FC0, 0xFFC1 - 2**16, 0x3F80]


def test_largest_is_what_still_comes_back_finite():
    for name in ("F16", "Q8_0", "Q4_0", "Q4_1"):
        x = torch.full((1, 32), largest(name))
        x[0, 0] = 0.0
        assert dequantize(quantize(x, name), name).isfinite().all()
        assert name == "Q4_1" or not dequantize(quantize(x * 1.1, name), name).isfinite().all()


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(DachengError, match=r"Q4_K stores 256 values together, and a row has 32"):
        quantize(torch.zeros(2, 32), "Q4_K")
    with pytest.raises(DachengError, match="Q4_K is read and not written"):
        quantize(torch.zeros(2, 256), "Q4_K")
    with pytest.raises(DachengError, match="no such number format"):
        block_format("Q9_9")
    with pytest.raises(DachengError, match="bytes in blocks of 34"):
        dequantize(torch.zeros(35, dtype=torch.uint8), "Q8_0")
    with pytest.raises(DachengError, match="takes"):
        QTensor(FORMATS["Q8_0"], torch.Size((2, 32)), torch.zeros(1, 34, dtype=torch.uint8))


def test_the_table_is_consistent():
    assert len(BY_ID) == len(FORMATS) == 16
    assert FORMATS["Q4_K"].bits == 4.5 and FORMATS["Q8_0"].bits == 8.5 and block_format("q4_1").bits == 5.0


def test_rows_of_a_packed_matrix():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    q = QTensor.from_float(x, "q4_1")
    whole = q.dequantize()
    assert (q.shape, q.dtype, q.nbytes, q.ndim, q.numel()) == ((6, 64), torch.float32, 6 * 40, 2, 384)
    assert torch.equal(q.rows(torch.tensor([[5, 0], [3, 3]])), whole[torch.tensor([[5, 0], [3, 3]])])
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    assert torch.equal(q.select_rows(order).dequantize(), whole.flip(0))
    assert q.dequantize(torch.float16).dtype == torch.float16
    for wrong in (6, -1):
        with pytest.raises(IndexError):
            q.rows(torch.tensor([wrong]))


def test_one_of_a_stack_shares_its_bytes():
    q = QTensor.from_float(torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0)), "q8_0")
    one = q[1]
    assert one.shape == (4, 32) and one.data.data_ptr() == q.data[4:].data_ptr()
    assert torch.equal(one.dequantize(), q.dequantize()[1])
    assert torch.equal(q[-1].dequantize(), q.dequantize()[2])
    with pytest.raises(IndexError):
        q[3]
    with pytest.raises(DachengError, match="stack"):
        one[0]


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(3))
def test_the_package_itself_agrees_on_other_blocks(goldens, seed, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(str(goldens))
    from make_gguf_blocks import READ, hard_floats, raw_rows

    rng = np.random.default_rng(seed)
    for name in READ:
        raw = raw_rows(name, rng, rows=37, blocks=5)
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        assert torch.equal(bits(dequantize(torch.from_numpy(raw), name)), bits(torch.from_numpy(np.array(expected))))
    for name in WRITTEN:
        x = hard_floats(rng, rows=64)
        expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)
        assert torch.equal(quantize(torch.from_numpy(x), name), torch.from_numpy(expected))
