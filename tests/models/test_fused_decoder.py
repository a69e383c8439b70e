"""The fused step against the model itself, over the same cache, with the same packed products."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from dacheng.adapt.attach import add_lora
from dacheng.models.decoder import Decoder
from dacheng.models.fused import _NEEDED, FusedDecoder, why_not_fused
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.lora_config import LoRAConfig
from dacheng.nn.packed import pack_weights, use_exact
from dacheng.ops import native
from dacheng.ops.decoder_step import CacheView
from dacheng.ops.qtensor import QTensor


@pytest.fixture(autouse=True)
def kernels():
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")


BASE = {"vocab_size": 70, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 32, "mlp_width": 96}


def packed_model(format="Q8_0", **traits):
    traits = DecoderTraits(**BASE | {"max_positions": 512} | traits)
    dense = Decoder(traits)
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim == 2 else 0.3) + (tensor.ndim == 1)
        for name, tensor in dense.state_dict().items()
    }
    state = {name: QTensor.from_float(tensor, format) if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    model = Decoder(traits)
    model.load_state_dict(pack_weights(model, state))
    return model.eval()


class Pages:
    """Keys and values in shuffled blocks of `block` tokens, enough for each of `texts` texts of `tokens` tokens."""

    def __init__(self, traits, texts, tokens, block, dtype=torch.float32):
        per_text = -(-tokens // block)
        shape = (texts * per_text, traits.n_kv_heads, block, traits.head_size)
        self.keys = [torch.full(shape, 7.0, dtype=dtype) for _ in range(traits.layers)]
        self.values = [torch.full(shape, -7.0, dtype=dtype) for _ in range(traits.layers)]
        order = torch.randperm(texts * per_text, generator=torch.Generator().manual_seed(0))
        self.tables = order.view(texts, per_text)
        self.block, self.shape = block, shape

    def view(self):
        _, K, block, E = self.shape
        return CacheView(self.keys, self.values, self.tables, block, K * block * E, block * E, E)


@torch.inference_mode()
def expected(model, ids):
    hidden = model(ids[None], torch.arange(len(ids))[None], DenseCausal())[0]
    return model.head(hidden), hidden


CASES = {
    "llama": {},
    "one head a key": {"kv_heads": 4},
    "biases, untied": {"attention_bias": True, "mlp_bias": True, "tied_head": False},
    "qk norms, interleaved, half rotated": {
        "qk_norm": True, "qk_norm_weight": True, "rope_interleaved": True, "rope_fraction": 0.5
    },
    "scales, offset norms": {"norm_offset": True, "embedding_scale": 3.0, "attention_scale": 0.3},
    "narrow values": {"heads": 2, "kv_heads": 1, "head_width": 128, "width": 32},
    "gemma 3": {
        "activation": "geglu_tanh", "norm_placement": "both", "norm_offset": True, "qk_norm": True,
        "qk_norm_weight": True, "window": 40, "window_pattern": "SL", "rope_window_theta": 500.0,
        "embedding_scale": 8.0,
    },
    "windows everywhere": {"window": 33, "window_pattern": "S"},
}  # fmt: skip


@pytest.mark.parametrize(("case", "threads"), [*((case, 1) for case in CASES), ("llama", 2)])
def test_prompts_and_single_tokens_come_out_as_the_model_has_them(case, threads):
    model = packed_model(**CASES[case])
    fused = FusedDecoder(model)
    texts = [torch.randint(0, 70, (n,), generator=torch.Generator().manual_seed(n)) for n in (150, 31, 1)]
    truth = [expected(model, ids) for ids in texts]
    pages = Pages(model.traits, 3, 160, 16)
    done, differences = [0, 0, 0], []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for counts in ((140, 20, 0), (1, 1, 1), (3, 1, 0), (1, 1, 0)):  # chunks of several texts in one call
            rows = [(text, done[text] + i) for text, count in enumerate(counts) for i in range(count)]
            positions = torch.tensor([position for _, position in rows])
            tokens = torch.stack([texts[text][position] for text, position in rows])
            wanted = torch.arange(0, len(rows), 2)
            owners = torch.tensor([text for text, _ in rows])
            logits, hidden = fused.run(tokens, positions, owners, pages.view(), wanted)
            for found, which, rows_of in ((hidden, 1, range(len(rows))), (logits, 0, wanted.tolist())):
                truths = torch.stack([truth[rows[row][0]][which][rows[row][1]] for row in rows_of])
                differences.append((found - truths).norm(dim=1) / truths.norm(dim=1))
            done = [a + b for a, b in zip(done, counts)]
    finally:
        torch.set_num_threads(before)
    # A sum in another order is equal to about 1e-6; now and then it makes an activation round to the next eight-bit
    # number, which is what half a percent is.
    differences = torch.cat(differences)
    assert differences.max() < 0.08 and differences.quantile(0.1) < 2e-6, differences


@pytest.mark.parametrize("case", ["llama", "gemma 3"])
def test_a_row_comes_out_the_same_in_every_batch(case):
    model = packed_model("Q4_1", **CASES[case])
    fused, ids = FusedDecoder(model), torch.randint(0, 70, (3, 300), generator=torch.Generator().manual_seed(1))
    pages, single = Pages(model.traits, 3, 304, 16), Pages(model.traits, 3, 304, 16)
    where, text = torch.arange(300), torch.arange(3)
    together, _ = fused.run(
        ids.flatten(), where.repeat(3), text.repeat_interleave(300), pages.view(), torch.tensor([299, 599, 899])
    )
    for i in range(3):
        fused.run(ids[i, :299], where[:299], text[i].expand(299).contiguous(), single.view(), where[:0])
        alone, _ = fused.run(ids[i, 299:], where[299:], text[i : i + 1], single.view(), where[:1])
        assert torch.equal(alone[0], together[i])


def test_keys_and_values_may_be_bfloat16():
    model = packed_model()
    fused, ids = FusedDecoder(model), torch.randint(0, 70, (40,), generator=torch.Generator().manual_seed(1))
    positions, found = torch.arange(40), {}
    for dtype in (torch.float32, torch.bfloat16):
        pages = Pages(model.traits, 1, 48, 16, dtype)
        found[dtype], _ = fused.run(ids, positions, torch.zeros_like(positions), pages.view(), positions)
        block, place = pages.tables[0, 2], 39 - 32
        found[dtype, "v"] = pages.values[0][block, :, place]
    truth = found[torch.float32]
    assert torch.equal(found[torch.bfloat16, "v"], found[torch.float32, "v"].bfloat16())
    difference = (found[torch.bfloat16] - truth).norm() / truth.norm()
    assert 0 < difference < 0.03
    mixed = Pages(model.traits, 1, 48, 16)
    mixed.keys[1] = mixed.keys[1].bfloat16()
    with pytest.raises(ValueError, match="all float32 or all bfloat16"):
        fused.run(ids, positions, torch.zeros_like(positions), mixed.view(), positions)


def test_a_nan_reaches_its_own_logits_and_no_others():
    model = packed_model()
    model.embed.packed[5, 1] = 0x7E  # the upper byte of a float16: NaN
    fused, pages = FusedDecoder(model), Pages(model.traits, 2, 16, 16)
    both = torch.arange(2)
    logits, _ = fused.run(torch.tensor([5, 6]), torch.zeros_like(both), both, pages.view(), both)
    assert logits[0].isnan().all() and logits[1, :5].isfinite().all()


@pytest.mark.parametrize(
    "traits",
    [
        {"activation": "geglu"},
        {"norm": "layer"},
        {"logit_soft_cap": 5.0},
        {"norm_placement": "post"},
        {"head_width": 16},
        {"mlp_width": 80},
    ],
)
def test_other_models_are_refused_by_name(traits):
    format = "F16" if traits.get("mlp_width") == 80 else "Q8_0"
    model = packed_model(format, **traits)
    assert why_not_fused(model)
    with pytest.raises(ValueError):
        FusedDecoder(model)


def dense_model(**traits):
    model = Decoder(DecoderTraits(**BASE | {"max_positions": 512} | traits))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.15 if tensor.ndim == 2 else 0.3))
            tensor += tensor.ndim == 1
    return model.eval()


@pytest.mark.parametrize(("case", "threads"), [*((case, 1) for case in CASES), ("llama", 2)])
def test_over_float_weights_nothing_is_rounded(case, threads):
    """Every number of rows from one to thirteen; with an adapter in training and without."""
    model = dense_model(**CASES[case], mlp_width=160)
    rows = torch.randint(0, 70, (3, 60), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in (0, 1):
            if number:
                add_lora(model, LoRAConfig(rank=3), generator=torch.Generator().manual_seed(2))
                for name, parameter in model.named_parameters():
                    if name.endswith(".b"):
                        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(4))
            fused, pages = FusedDecoder(model, floats=True), Pages(model.traits, 3, 64, 16)
            assert fused.why_not(number) == ""
            truth, done = [expected(model, ids) for ids in rows], 0
            for count in (*range(1, 5), 13):
                where = torch.arange(done, done + count)
                texts, done = torch.arange(3).repeat_interleave(count), done + count
                wanted = torch.arange(0, len(texts), 2)
                tokens, at = rows[:, where].flatten(), where.repeat(3)
                logits, hidden = fused.run(tokens, at, texts, pages.view(), wanted, [number] * len(texts))
                for found, which, kept in ((hidden, 1, slice(None)), (logits, 0, wanted)):
                    true = torch.cat([own[which][where] for own in truth])[kept]
                    assert (found - true).norm() < 1e-5 * true.norm()
    finally:
        torch.set_num_threads(before)


def test_float_weights_are_read_where_they_lie():
    model, where = dense_model(), torch.arange(40)
    ids = torch.randint(0, 70, (40,), generator=torch.Generator().manual_seed(1))
    fused, zeros = FusedDecoder(model, floats=True), torch.zeros_like(where)
    before, _ = fused.run(ids, where, zeros, Pages(model.traits, 1, 48, 16).view(), where)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight.mul_(2.0)
    after, _ = fused.run(ids, where, zeros, Pages(model.traits, 1, 48, 16).view(), where)
    assert torch.allclose(after, expected(model, ids)[0], atol=1e-4) and (after - before).abs().max() > 0.1
    pages = Pages(model.traits, 1, 48, 16)  # a row comes out the same in every batch
    fused.run(ids[:33], where[:33], zeros[:33], pages.view(), where[:0])
    alone = [fused.run(ids[i : i + 1], where[i : i + 1], zeros[:1], pages.view(), where[:1])[0] for i in range(33, 40)]
    assert torch.equal(torch.cat(alone), after[33:])


def test_what_is_not_float32_in_rows_is_refused():
    assert why_not_fused(dense_model(), floats=True) == ""
    assert "is torch.bfloat16" in why_not_fused(dense_model().bfloat16(), floats=True)
    assert "is a Packed" in why_not_fused(packed_model(), floats=True)
    turned = dense_model()
    turned.blocks[0].attention.q.weight.data = torch.randn(64, 128).t()
    assert "strides" in why_not_fused(turned, floats=True)


def test_floats_and_exact_products_are_refused():
    assert "not packed" in why_not_fused(Decoder(DecoderTraits(**BASE)))
    model = packed_model()
    assert why_not_fused(model) == ""
    use_exact(model)
    assert "exact" in why_not_fused(model)


def test_every_trait_was_thought_of():
    """A new trait must be named in _NEEDED, or here when the fused step computes it."""
    free = {
        "vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "norm_eps", "norm_weight",
        "norm_offset", "rope_theta", "rope_scaling", "rope_fraction", "rope_interleaved", "rope_window_theta",
        "max_positions", "tied_head", "embedding_scale", "attention_bias", "output_bias", "attention_scale", "mlp_bias",
        "qk_norm", "qk_norm_weight", "window", "window_pattern", "activation", "norm_placement",
        "embedding_norm", "ngram_longest", "initializer_range",
    }  # fmt: skip
    assert {field.name for field in fields(DecoderTraits)} == free | set(_NEEDED)
