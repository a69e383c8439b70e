"""Packed linear maps and embeddings: the same numbers as the dequantised ones, in the same places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dacheng.errors import DachengError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.embedding import Embedding
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed, PackedEmbedding, pack_module, pack_weights, use_exact
from dacheng.ops.qtensor import QTensor


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_linear_map_is_the_dequantised_one(format, bias):
    weight, b = QTensor.from_float(random(48, 64), format), random(48, seed=1) if bias else None
    x = random(2, 5, 64, seed=2).requires_grad_()
    packed = Packed(weight, b)
    expected = nn.functional.linear(x, weight.dequantize(), b)
    assert torch.equal(packed(x, None), expected)
    (gradient,) = torch.autograd.grad(packed(x).square().sum(), x)
    (other,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.equal(gradient, other)
    assert list(packed.parameters()) == [] and sum(t.numel() for t in packed.buffers()) == weight.nbytes + 48 * bias


def test_many_outputs_are_computed_in_parts(monkeypatch):
    weight, bias, x = QTensor.from_float(random(50, 32), "Q8_0"), random(50), random(3, 32)
    monkeypatch.setattr("dacheng.nn.packed._Holder.exact", True)
    whole = Packed(weight, bias)(x)
    monkeypatch.setattr("dacheng.nn.packed._HEAD_ROWS", 16)
    assert torch.allclose(Packed(weight, bias)(x), whole, rtol=0, atol=1e-6)
    assert torch.allclose(PackedEmbedding(weight).as_head(x), whole - bias, rtol=0, atol=1e-5)


def test_a_cast_leaves_the_bytes_alone():
    weight = QTensor.from_float(random(8, 32), "Q4_1")
    packed, table = Packed(weight, random(8)).to(torch.bfloat16), PackedEmbedding(weight).to(torch.bfloat16)
    assert torch.equal(packed.packed, weight.data) and packed.bias.dtype == torch.bfloat16
    assert packed(random(1, 32).bfloat16()).dtype == torch.bfloat16
    assert table(torch.tensor([3])).dtype == torch.bfloat16
    assert torch.equal(table(torch.tensor([[3, 0]])), weight.dequantize(torch.bfloat16)[[3, 0]][None])
    with torch.autocast("cpu", torch.bfloat16):
        assert Packed(weight)(random(1, 32)).dtype == torch.bfloat16
    with pytest.raises(IndexError):
        table(torch.tensor([8]))


def test_the_state_holds_the_bytes():
    weight = QTensor.from_float(random(8, 32), "Q8_0")
    source, target = Packed(weight), Packed(QTensor.from_float(random(8, 32, seed=5), "Q8_0"))
    assert set(source.state_dict()) == {"packed"} and set(PackedEmbedding(weight).state_dict()) == {"packed"}
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.qtensor.dequantize(), weight.dequantize())


def test_a_module_is_replaced_where_it_stands():
    model = nn.ModuleDict({"a": nn.ModuleList([Dense(32, 8)]), "e": Embedding(10, 32)}).eval()
    bias = model["a"][0].bias.detach().clone()
    new = pack_module(model, "a.0", QTensor.from_float(random(8, 32), "Q8_0"))
    assert model["a"][0] is new and torch.equal(new.bias, bias) and not new.training
    assert isinstance(pack_module(model, "e", QTensor.from_float(random(10, 32), "Q8_0")), PackedEmbedding)
    with pytest.raises(DachengError, match="only a linear map or an embedding"):
        pack_module(model, "a", QTensor.from_float(random(8, 32), "Q8_0"))
    with pytest.raises(DachengError, match="has shape"):
        pack_module(nn.ModuleDict({"x": Dense(32, 8)}), "x", QTensor.from_float(random(9, 32), "Q8_0"))
    with pytest.raises(DachengError, match="is a matrix"):
        Packed(QTensor.from_float(random(2, 3, 32), "Q8_0"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("meta", [False, True])
def test_a_packed_decoder_computes_what_the_dequantised_one_does(tied, meta):
    traits = DecoderTraits(
        vocab_size=64, width=32, layers=2, heads=2, mlp_width=64, max_positions=32, tied_head=tied, attention_bias=True
    )
    dense = Decoder(traits).init_weights(torch.Generator().manual_seed(0)).eval()
    state = {
        name: QTensor.from_float(tensor, "Q4_1") if tensor.ndim == 2 else tensor
        for name, tensor in dense.state_dict().items()
    }
    dense.load_state_dict({n: t.dequantize() if isinstance(t, QTensor) else t for n, t in state.items()})
    with torch.device("meta" if meta else "cpu"):
        packed = Decoder(traits)
    packed.load_state_dict(pack_weights(packed, state), strict=True, assign=True)
    for module in packed.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.rebuild(torch.device("cpu"))
    assert not any(t.is_meta for t in [*packed.parameters(), *packed.buffers()])
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9).expand_as(ids)
    use_exact(packed)
    with torch.no_grad():
        a = packed.eval().head(packed(ids, positions, DenseCausal()))
        b = dense.head(dense(ids, positions, DenseCausal()))
    assert torch.equal(a, b)
