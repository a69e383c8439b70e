"""LoRA, rsLoRA and DoRA around dense and packed maps: equal to their formulas, to the base where they are off."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from adapter_fakes import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.adapt import LoRAConfig, add_lora, attach, detach, disabled, merge, rows_of, trainable
from dacheng.adapt.merge import merge_into
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.linear import Dense
from dacheng.nn.lora import AdapterRows, LoRA, LoRAWeights
from dacheng.nn.packed import Packed, pack_weights, use_exact
from dacheng.ops.qtensor import QTensor

IDS = torch.arange(24).view(2, 12) * 7 % 90


def make(seed=0, **traits) -> Decoder:
    model = Decoder(
        DecoderTraits(**{"vocab_size": 90, "width": 32, "layers": 2, "heads": 4, "max_positions": 64} | traits)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.25, generator=generator)
    return model.eval()


def packed(**traits) -> Decoder:
    model = make(**traits)
    state = {
        name: QTensor.from_float(tensor, "Q8_0") if tensor.ndim == 2 and "blocks" in name else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(pack_weights(model, state))
    use_exact(model)  # the kernel rounds x
    return model.eval()


@torch.no_grad()
def logits(model, ids=IDS):
    return model.head(model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal()))


def linear(seed=0, inputs=12, outputs=10, bias=True):
    generator = torch.Generator().manual_seed(seed)
    dense = Dense(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_(0, 1, generator=generator)
    return dense, generator


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_formula(dora, bias):
    """W + s·BA, with DoRA scaled to m over the norm of its rows (eq. 5), and B = 0 is the base."""
    dense, generator = linear(bias=bias)
    rows = AdapterRows()
    lora = LoRA(dense, rows)
    part = LoRAWeights.fresh(dense, 3, 0.5, dora=dora, generator=generator)
    assert part.a.abs().max() <= 12**-0.5 and part.b.abs().max() == 0
    lora.adapters["1"], rows.default = part, 1
    x = torch.randn(4, 5, 12, generator=generator)
    torch.testing.assert_close(lora(x), dense(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        part.b.normal_(0, 1, generator=generator)
        if dora:
            part.magnitude.mul_(1.5)
    weight = dense.weight + 0.5 * part.b @ part.a
    if dora:
        weight = (part.magnitude / weight.norm(dim=1)).unsqueeze(1) * weight
    expected = torch.nn.functional.linear(x, weight, dense.bias)
    torch.testing.assert_close(lora(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lora.weight, weight, rtol=1e-4, atol=1e-5)


def test_doras_norm_is_a_constant_of_the_gradient():
    dense, generator = linear()
    part = LoRAWeights.fresh(dense, 3, 0.5, dora=True, generator=generator)
    with torch.no_grad():
        part.b.normal_(0, 1, generator=generator)
    x = torch.randn(7, 12, generator=generator)
    (dense(x) + part.delta(x, dense(x), dense)).square().sum().backward()
    weight = dense.weight.detach() + 0.5 * part.b @ part.a
    gain = part.magnitude / weight.detach().norm(dim=1)
    y = torch.nn.functional.linear(x, gain.unsqueeze(1) * weight, dense.bias.detach())
    expected = torch.autograd.grad(y.square().sum(), [part.a, part.b, part.magnitude])
    for p, grad in zip((part.a, part.b, part.magnitude), expected):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_each_row_goes_through_its_own(ids, seed):
    """Any mixture equals each adapter alone; rows of the base are the base's to the bit."""
    dense, generator = linear(seed)
    rows = AdapterRows()
    lora = LoRA(dense, rows)
    rows.known |= {1, 2, 3}  # 3 leaves this map alone
    for number, rank in ((1, 2), (2, 5)):
        part = LoRAWeights.fresh(dense, rank, 1.0, generator=generator)
        torch.nn.init.normal_(part.b, generator=generator)
        lora.adapters[str(number)] = part
    x = torch.randn(len(ids), 12, generator=generator)
    with torch.no_grad():
        found, base = lora(x, torch.tensor(ids)), dense(x)
        for row, number in enumerate(ids):
            if number in (0, 3):
                assert torch.equal(found[row], base[row])
            else:
                part = lora.part(number)
                expected = base[row] + x[row] @ part.a.T @ part.b.T
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
        with rows.use(torch.tensor(ids)):
            assert torch.equal(lora(x), found)
            with pytest.raises(UsageError, match="rows"):
                lora(torch.cat((x, x)))
    with pytest.raises(UsageError, match="no adapter of this number"):
        lora(x, torch.tensor([9] * len(ids)))


def test_a_thread_chooses_for_itself():
    model = make()
    base = logits(model)
    number = attach(model, drawn(model))
    seen = []
    with rows_of(model).use(number):
        other = threading.Thread(target=lambda: seen.append(logits(model)))
        other.start(), other.join()
        assert not torch.equal(logits(model), base)
    assert torch.equal(seen[0], base)


@pytest.mark.parametrize("settings_", [{}, {"use_rslora": True}, {"use_dora": True}, {"targets": ("q_proj", "mlp.up")}])
@pytest.mark.parametrize("of", [make, packed])
def test_added_disabled_merged_and_undone(of, settings_):
    """Around packed maps as well (QLoRA). Fresh: the base's numbers; disabled: its bits; merged: the same numbers."""
    torch.manual_seed(0)
    model = of()
    base = logits(model)
    adapter = add_lora(model, LoRAConfig(rank=4, **settings_), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-4)
    for part in adapter.parts.values():
        torch.nn.init.normal_(part.b, std=0.2)
    adapted = logits(model)
    assert (adapted - base).abs().max() > 0.5
    with disabled(model):
        assert torch.equal(logits(model), base)
    merged = merge(model, probe=IDS)
    assert merged.error == (logits(model) - adapted).abs().max() < 2e-5 * merged.scale
    assert not any(isinstance(module, LoRA) for module in model.modules())
    assert bool(merged.notes) is (of is packed)
    merged.undo()
    assert torch.equal(logits(model), adapted)
    detach(model, 1)
    assert torch.equal(logits(model), base)


def test_merged_for_good_is_a_plain_model():
    model = make()
    add_lora(model, LoRAConfig(rank=2))
    names = set(make().state_dict())
    assert merge_into(model).error < 1e-5
    assert set(model.state_dict()) == names and rows_of(model).known == set()
    with pytest.raises(UsageError, match="no adapter"):
        merge(model)


def test_only_the_adapter_is_trained_and_counted():
    model = make()
    whole = sum(p.numel() for p in model.parameters())
    adapter = add_lora(model, LoRAConfig(rank=4, targets=("q_proj", "v"), rank_pattern={"blocks.1.attention.v": 2}))
    assert sorted(adapter.parts) == [f"blocks.{i}.attention.{part}" for i in (0, 1) for part in "qv"]
    assert adapter.parts["blocks.1.attention.v"].rank == 2 and adapter.parts["blocks.1.attention.q"].rank == 4
    found = trainable(model)
    assert found.trained == adapter.parameters == 3 * 4 * 64 + 2 * 64 and found.total == whole + found.trained
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.adapters.1.{part}" for name in adapter.parts for part in "ab"}


def test_all_linear_leaves_head_embedding_and_router_alone():
    model = make(tied_head=False)
    adapter = add_lora(model)
    assert len(adapter.parts) == 2 * 7 and all(name.startswith("blocks.") for name in adapter.parts)
    assert isinstance(model.lm_head, Dense)
    with pytest.raises(UsageError) as caught:
        add_lora(make(), LoRAConfig(targets=("q_proj", "qproj")))
    assert caught.value.value == "qproj" and "q_proj" in caught.value.remedy


def test_a_copied_model_chooses_for_itself():
    model = make()
    add_lora(model, LoRAConfig(rank=2))
    other = copy.deepcopy(model)
    rows_of(other).default = 0
    assert rows_of(model).default == 1 and rows_of(other) is not rows_of(model)
    assert len({id(m.rows) for m in other.modules() if isinstance(m, LoRA)}) == 1


def test_dropout_only_while_training():
    model = make()
    adapter = add_lora(model, LoRAConfig(rank=4, dropout=0.5))
    for part in adapter.parts.values():
        torch.nn.init.normal_(part.b, std=0.2)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"rank": 2000}, {"rank": True}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()},
              {"rank_pattern": {"q": -1}}, {"alpha_pattern": {"q": float("nan")}}],
)  # fmt: skip
def test_settings_that_make_no_adapter(wrong):
    with pytest.raises(UsageError) as caught:
        LoRAConfig(**wrong)
    assert next(iter(wrong)) in caught.value.field


def test_packed_bases_stay_packed():
    model = packed()
    before = {name: m.packed.clone() for name, m in model.named_modules() if isinstance(m, Packed)}
    add_lora(model, LoRAConfig(rank=4))
    model.train()
    hidden = model(IDS, torch.arange(12).expand_as(IDS), DenseCausal())
    hidden.square().sum().backward()
    parts = [m for m in model.modules() if isinstance(m, LoRAWeights)]
    assert all(part.b.grad is not None and part.b.grad.abs().max() > 0 for part in parts)
    assert all(torch.equal(model.get_submodule(f"{name}.base").packed, data) for name, data in before.items())


def test_the_way_back_keeps_no_floats_of_packed_maps():
    """Gradients as with the base's own product, and none of its float weights among what is saved for them."""
    found = []
    for trained in (True, False):
        model = packed(mlp_width=64)
        adapter = add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for i, part in enumerate(adapter.parts.values()):
                part.b.fill_(0.01 * (i + 1))
        saved: list[tuple[int, ...]] = []
        with torch.autograd.graph.saved_tensors_hooks(_noting(saved), lambda t: t):
            if not trained:  # the product of the map itself, as PyTorch differentiates it
                for module in model.modules():
                    if isinstance(module, LoRA):
                        module.base.forward = lambda x, base=module.base: base._exact_linear(x, base.bias)
                        module.forward = lambda x, m=module: _plainly(m, x)
            hidden = model(IDS, torch.arange(12).expand_as(IDS), DenseCausal())
            hidden.square().mean().backward()
        found.append(([p.grad for part in adapter.parts.values() for p in part.parameters()], saved))
    (grads, saved), (expected, kept) = found
    assert (64, 32) not in saved and (64, 32) in [shape[::-1] if shape[0] == 32 else shape for shape in kept]
    for one, other in zip(grads, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def _noting(shapes):
    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    return pack


def _plainly(module, x):
    y = module.base.forward(x)
    return y + module.part(1).delta(x, y, module.base)
