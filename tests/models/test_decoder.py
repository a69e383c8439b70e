"""The decoder's traits, costs and invariants."""

import math

import pytest
import torch

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal, PackedDocuments

SMALL = {"vocab_size": 97, "width": 32, "layers": 3, "heads": 4, "max_positions": 64}
CASES = {
    "llama": {},
    "grouped": {"kv_heads": 2, "head_width": 16},
    "untied": {"tied_head": False, "attention_bias": True, "mlp_bias": True},
    "ours": {
        "qk_norm": True,
        "value_embeddings": True,
        "residual_scalars": True,
        "embedding_norm": True,
        "norm_weight": False,
        "logit_soft_cap": 15.0,
        "activation": "relu2",
        "tied_head": False,
        "window": 5,
        "window_pattern": "SL",
        "ngram_rows": 61,
    },
    "capped": {"attention_soft_cap": 10.0, "activation": "geglu_tanh", "qk_norm": True, "qk_norm_weight": True},
}


def build(**traits):
    torch.manual_seed(0)
    model = Decoder(DecoderTraits(**{**SMALL, **traits})).init_weights(torch.Generator().manual_seed(1))
    for parameter in model.parameters():  # leave the silent start: every path must count
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.02)
    return model.eval()


def run(model, tokens, context=None, positions=None):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens) if positions is None else positions
    return model.head(model(tokens, positions, context or DenseCausal()))


@pytest.mark.parametrize("case", CASES)
def test_the_future_never_reaches_the_past(case):
    model = build(**CASES[case])
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 97
    before, after = run(model, tokens), run(model, changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-5, atol=1e-5)
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_separate(case):
    """Two documents in one row, positions reset: the logits are those of each alone."""
    model = build(**CASES[case])
    g = torch.Generator().manual_seed(4)
    first, second = torch.randint(0, 97, (1, 9), generator=g), torch.randint(0, 97, (1, 6), generator=g)
    row = torch.cat((first, second), 1)
    positions = torch.cat((torch.arange(9), torch.arange(6)))[None]
    ids = torch.tensor([[0] * 9 + [1] * 6])
    packed = run(model, row, PackedDocuments(ids), positions)
    torch.testing.assert_close(packed[:, :9], run(model, first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 9:], run(model, second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_checkpointed_activations_give_the_same_gradients(case):
    model = build(**CASES[case])
    tokens = torch.randint(0, 97, (2, 10), generator=torch.Generator().manual_seed(5))
    gradients = []
    for recompute in (False, True):
        model.checkpoint_activations = recompute
        model.zero_grad()
        run(model, tokens).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_every_parameter_has_a_gradient():
    model = build(**CASES["ours"])
    tokens = torch.arange(40).view(2, 20) % 97
    run(model, tokens).logsumexp(-1).mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_our_start_predicts_uniformly():
    model = Decoder(DecoderTraits(**{**SMALL, **CASES["ours"]})).init_weights(torch.Generator().manual_seed(0))
    tokens = torch.arange(20)[None] % 97
    nats = -torch.log_softmax(run(model, tokens), -1)[0, :-1].gather(1, tokens[0, 1:, None]).mean()
    assert nats.item() == pytest.approx(math.log(97), abs=0.02)


def test_initial_weights_follow_the_generator():
    a, b, c = (Decoder(DecoderTraits(**SMALL)).init_weights(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)


def test_counts_add_up():
    model = build(**CASES["ours"])
    counts = model.params()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["total"] == counts["embedding"] + counts["head"] + counts["matrices"] + counts["other"]
    assert build().params()["head"] == 0


def test_flops_equal_a_count_by_hand():
    """One layer, 2 heads of 8, width 16, mlp 32 gated, vocabulary 10, context 4."""
    traits = DecoderTraits(vocab_size=10, width=16, layers=1, heads=2, mlp_width=32, max_positions=8)
    matrices = 4 * 16 * 16 + 3 * 16 * 32
    looked_at = (1 + 2 + 3 + 4) / 4
    forward = 2 * (matrices + 10 * 16) + 4 * 2 * 8 * looked_at
    assert Decoder(traits).flops(4, training=False) == pytest.approx(forward)
    assert Decoder(traits).flops(4) == pytest.approx(3 * forward)


def test_a_window_costs_less():
    wide = Decoder(DecoderTraits(**SMALL)).flops(64)
    narrow = Decoder(DecoderTraits(**SMALL, window=8, window_pattern="S")).flops(64)
    assert narrow < wide


def test_cache_spec_says_what_each_layer_keeps():
    spec = Decoder(DecoderTraits(**{**SMALL, "kv_heads": 2}, window=8, window_pattern="SLL")).cache_spec()
    assert [layer.kind for layer in spec] == ["window", "paged", "paged"]
    assert spec[0].window == 8 and spec[0].kv_heads == 2 and spec[0].bytes_per_token(4) == 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("traits", "field"),
    [
        ({"heads": 5}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_width": 7}, "head_width"),
        ({"layers": 0}, "layers"),
        ({"activation": "swish"}, "activation"),
        ({"window_pattern": "SXL"}, "window_pattern"),
        ({"window_pattern": "SL"}, "window"),
        ({"ngram_rows": 0}, "ngram_rows"),
        ({"ngram_rows": 8, "ngram_longest": 5}, "ngram_longest"),
        ({"rope_theta": 0.0}, "rope_theta"),
    ],
)
def test_traits_that_cannot_be_built_name_field_value_and_remedy(traits, field):
    with pytest.raises(UsageError) as caught:
        DecoderTraits(**{**SMALL, **traits}).validate()
    assert caught.value.field == field
    assert caught.value.remedy


def test_an_unknown_trait_is_refused():
    with pytest.raises(UsageError, match="unknown trait"):
        DecoderTraits.from_dict({"vocab_size": 10, "colour": "red"})
    traits = DecoderTraits(**SMALL)
    assert DecoderTraits.from_dict(traits.to_dict()) == traits
