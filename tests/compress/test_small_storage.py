"""What is smaller on disk: zeros left out, and factors in place of matrices; loaded again, and damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shrink import LLAMA, batches, drawn, logits

from dacheng.compress.low_rank import factorise, low_rank_for
from dacheng.compress.prune.storage import sparse_weights
from dacheng.compress.prune.weights import prune_weights
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.nn.factored import Factored
from dacheng.ops.sparse import SparseTensor

IDS = torch.arange(24).view(2, 12) * 5 % 64
TRAITS = replace(LLAMA, width=60, mlp_width=96)


def size(path):
    return (path / "model.safetensors").stat().st_size


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 33),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_matrix_comes_back(rows, width, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < 0.4)
    weight = weight.to(dtype)
    stored = SparseTensor.from_dense(weight)
    assert torch.equal(stored.dequantize(), weight) and stored.dtype == dtype
    assert stored.nbytes == int((weight != 0).sum()) * dtype.itemsize + rows * (-(-width // 8))


def test_bits_are_those_of_compressed_tensors():
    """packbits(axis=-1, bitorder="little") of the mask, values row by row: its sparse-bitmask."""
    numpy = pytest.importorskip("numpy")
    weight = torch.tensor([[0.0, 1, 2, 0, 0, 0, 0, 0, 3], [4, 0, 0, 0, 0, 0, 0, 5, 0]])
    stored = SparseTensor.from_dense(weight)
    assert stored.values.tolist() == [1, 2, 3, 4, 5]
    expected = numpy.packbits((weight != 0).numpy(), axis=-1, bitorder="little")
    assert (stored.bitmask.numpy() == expected).all()


@pytest.mark.parametrize(("dtype", "share"), [(None, 0.54), ("bfloat16", 0.58)])
def test_a_pruned_model_is_smaller_on_disk(tmp_path, dtype, share):
    model = drawn(replace(TRAITS, vocab_size=8)).float()
    prune_weights(model, batches(replace(TRAITS, vocab_size=8)), "wanda", 0.5)
    if dtype:
        model = model.to(getattr(torch, dtype))
    save_model(tmp_path / "dense", model)
    save_model(tmp_path / "sparse", model, packed=sparse_weights(model), quantization={"method": "wanda"})
    assert size(tmp_path / "sparse") < (share + 0.06) * size(tmp_path / "dense")  # headers and names are large here
    expected = load_model(tmp_path / "dense").model.state_dict()
    for packed in (False, True):
        loaded = load_model(tmp_path / "sparse", packed=packed)
        found = loaded.model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert any("on disk only" in note for note in loaded.notes) == packed


def test_a_matrix_without_zeros_is_stored_as_it_is():
    model = drawn(TRAITS).float()
    assert sparse_weights(model) == {}
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[:, ::2] = 0
        model.blocks[0].mlp.down.weight[0, 0] = 0  # not worth a bitmask
    assert list(sparse_weights(model)) == ["blocks.0.mlp.up.weight"]


def test_damaged_sparse_weights(tmp_path):
    model = drawn(TRAITS).float()
    prune_weights(model, (), "magnitude", 0.5)
    save_model(tmp_path / "m", model, packed=sparse_weights(model))
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    name = next(iter(config["quantization_config"]["tensors"]))
    config["quantization_config"]["tensors"][name]["shape"] = [60, 2**40]
    path.write_text(json.dumps(config))
    with pytest.raises(DamagedFile, match="is not what it says"):
        load_model(tmp_path / "m")
    weight = SparseTensor.from_dense(torch.eye(8))
    with pytest.raises(DachengError, match="8 places are marked for 7 values"):
        replace(weight, values=weight.values[1:]).dequantize()


def test_bits_and_values_that_disagree_name_the_matrix(tmp_path):
    model = drawn(TRAITS).float()
    prune_weights(model, (), "magnitude", 0.5)
    save_model(tmp_path / "m", model, packed=sparse_weights(model))
    name = changed(tmp_path / "m", ".values", lambda values: values[:-1])
    with pytest.raises(DamagedFile, match=f"{name}.*places are marked"):
        load_model(tmp_path / "m", check_hash=False)


def changed(directory, ending, change):
    """The name of the first matrix with a part of this ending, which `change` has made another."""
    from dacheng.formats.safetensors_io import read_tensors, write_tensors

    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    part = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[part] = change(tensors[part])
    write_tensors(path, tensors)
    return part.removesuffix(ending)


def test_parts_of_another_matrix_are_refused():
    """Of each kind: what has the right names and would be read as other numbers, or as more than there is memory."""
    from dacheng.formats.packed import _parts, _read_ours
    from dacheng.ops.integers import IntTensor, QSpec
    from dacheng.ops.low_rank import LowRankTensor
    from dacheng.ops.nf4 import NF4Tensor

    w = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))

    def read(value, **changes):
        kind, parts = _parts(value)
        kind |= {key: changes.pop(key) for key in ("shape",) if key in changes}
        stored = {f"m.{name}": tensor for name, tensor in (parts | changes).items()}
        return _read_ours(stored, {"version": 1, "tensors": {"m": kind}}, "there")[0]["m"]

    rounded, nf4 = IntTensor.from_float(w, QSpec(4, 32, symmetric=False)), NF4Tensor.from_float(w)
    assert torch.equal(read(rounded).dequantize(), rounded.dequantize())
    assert torch.equal(read(nf4).dequantize(), nf4.dequantize())
    thin = LowRankTensor(torch.ones(1, 2**20), torch.ones(2**20, 1))
    for value, changes in (
        (rounded, {"zero": torch.zeros(1, 4, dtype=torch.uint8)}), (rounded, {"more": torch.zeros(2)}),
        (nf4, {"offset": torch.zeros(8)}), (nf4, {"shape": [8, 64], "more": torch.zeros(1)}),
        (nf4, {"shape": [16, 32]}), (thin, {}),
    ):  # fmt: skip
        with pytest.raises(DamagedFile, match="m is not what it says"):
            read(value, **changes)


# --- low rank ---------------------------------------------------------------------------------------------------------
def test_the_loss_is_what_the_truncated_values_say():
    """Theorem 3.2 of SVD-LLM: ‖(W - BA) x‖² = Σ of the squares of the singular values that go."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(20, 12, generator=generator), torch.randn(300, 12, generator=generator)
    x = x @ torch.randn(12, 12, generator=generator)
    hessian = x.T @ x
    a, b, note = low_rank_for(weight, hessian, 5, "whitened")
    lower = torch.linalg.cholesky(hessian.double())
    expected = torch.linalg.svdvals(weight.double() @ lower)[5:].square().sum()
    loss = ((weight - b @ a) @ x.T).square().sum()
    assert note == "" and torch.allclose(loss.double(), expected, rtol=1e-3)
    plain_a, plain_b, _ = low_rank_for(weight, hessian, 5, "svd")
    assert loss < 0.9 * ((weight - plain_b @ plain_a) @ x.T).square().sum()


def test_a_factorised_model_is_smaller_and_computes_the_same(tmp_path):
    model = drawn(TRAITS).float()
    before = logits(model, IDS)
    found = factorise(model, batches(TRAITS, 4), 0.6)
    assert 0.5 < found.kept < 0.65 and len(found.weights) == 35 and all(0 <= e < 1 for e in found.errors.values())
    expected = logits(model, IDS)
    assert (expected - before).abs().max() > 1e-3
    save_model(tmp_path / "m", model, packed=found.weights)
    save_model(tmp_path / "dense", model)
    assert size(tmp_path / "m") < 0.72 * size(tmp_path / "dense")
    dense, factored = load_model(tmp_path / "m").model, load_model(tmp_path / "m", packed=True).model
    assert torch.allclose(logits(dense, IDS), expected, atol=1e-5)
    assert isinstance(factored.blocks[2].mlp.up, Factored) and torch.allclose(
        logits(factored, IDS), expected, atol=1e-4
    )
    cast = load_model(tmp_path / "m", packed=True, dtype="bfloat16").model
    assert cast.blocks[0].attention.q.a.dtype == torch.bfloat16


def test_whitening_loses_less_of_a_model():
    whitened, plain = drawn(TRAITS).float(), drawn(TRAITS).float()
    text = batches(TRAITS, 6)
    with torch.no_grad():
        for model in (whitened, plain):
            for block in model.blocks:
                block.mlp_norm.weight.mul_(torch.linspace(-2, 2, 60).exp())
    one, other = factorise(whitened, text, 0.5), factorise(plain, text, 0.5, "svd")
    up = "blocks.0.mlp.up"
    assert one.errors[up] < 0.7 * other.errors[up]


def test_inputs_that_are_all_zero_fall_back():
    weight = torch.randn(8, 6)
    a, b, note = low_rank_for(weight, torch.zeros(6, 6), 3, "whitened")
    assert "plain SVD" in note and torch.allclose(
        (weight - b @ a).norm(), torch.linalg.svdvals(weight)[3:].norm(), rtol=1e-3
    )
    with pytest.raises(UsageError, match="lies in"):
        factorise(drawn(TRAITS).float(), batches(TRAITS), 1.5)
