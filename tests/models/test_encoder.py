"""The encoder beside transformers' BERT (goldens/encoders, make_encoder_parity.py), and what its contexts promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dacheng.errors import UsageError
from dacheng.formats.encoders import load_encoder
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.decoder import Decoder
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import AttentionLayer, Bidirectional, DenseCausal

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "encoders"
CASES = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
TRAITS = EncoderTraits(vocab_size=50, width=24, layers=2, heads=3, mlp_width=40, max_positions=32)


def made(**changes) -> Encoder:
    return Encoder(replace(TRAITS, **changes)).init_weights(torch.Generator().manual_seed(1)).eval()


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_states_and_vectors_equal_those_of_transformers(case):
    expected = read_tensors(GOLDENS / case / "expected.safetensors")
    model = load_encoder(GOLDENS / case).model
    ids, lengths = expected["ids"], expected["lengths"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = model(ids, positions, Bidirectional(lengths), expected["types"])
    real = (torch.arange(ids.shape[1]) < lengths[:, None])[..., None]
    assert expected["hidden"].std() > 0.4  # the comparison means something
    assert (hidden * real - expected["hidden"]).abs().max() < 1e-5
    assert (model.embed_texts(ids, lengths) - expected["mean"]).abs().max() < 1e-5
    model.traits = replace(model.traits, pooling="cls")
    assert (model.embed_texts(ids, lengths) - expected["cls"]).abs().max() < 1e-5
    assert (model.pooler is not None) == ("pooler" in expected)
    if "pooler" in expected:
        assert (model.pooled_output(hidden) - expected["pooler"]).abs().max() < 1e-5


@torch.no_grad()
def test_a_text_has_the_same_vector_alone_and_in_a_padded_batch():
    model, generator = made(initializer_range=0.3), torch.Generator().manual_seed(0)
    texts = [torch.randint(50, (length,), generator=generator) for length in (1, 5, 17, 32)]
    together = model.embed_texts(
        torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=49),
        torch.tensor([len(t) for t in texts]),
    )
    for text, vector in zip(texts, together):
        alone = model.embed_texts(text[None], torch.tensor([len(text)]))[0]
        torch.testing.assert_close(alone, vector, atol=2e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_every_token_sees_later_ones_and_none_sees_padding():
    tokens = torch.tensor([[1, 2, 3, 4, 5]], dtype=torch.long)
    positions, lengths = torch.arange(5)[None], torch.tensor([4])
    model = made(initializer_range=0.3)
    with torch.no_grad():
        before = model(tokens, positions, Bidirectional(lengths))
        later, padding = tokens.clone(), tokens.clone()
        later[0, 3], padding[0, 4] = 9, 9
        changed = model(later, positions, Bidirectional(lengths))
        same = model(padding, positions, Bidirectional(lengths))
    assert (changed[0, 0] - before[0, 0]).abs().max() > 1e-3
    assert torch.equal(same[0, :4], before[0, :4])


def test_an_empty_row_and_a_vector_that_is_not_normalised():
    model = made(normalized=False)
    hidden = torch.randn(2, 3, 24)
    pooled = model.pool(hidden, torch.tensor([0, 2]))
    assert torch.equal(pooled[0], torch.zeros(24))
    torch.testing.assert_close(pooled[1], hidden[1, :2].mean(0))
    vectors = model.embed_texts(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    assert abs(vectors.norm().item() - 1) > 1e-3


def test_gradients_reach_every_weight():
    model = made(pooler=True)
    tokens = torch.arange(10).view(2, 5)
    hidden = model(tokens, torch.arange(5).expand(2, 5), Bidirectional(torch.tensor([5, 3])), torch.zeros_like(tokens))
    (model.pool(hidden, torch.tensor([5, 3])).square().sum() + model.pooled_output(hidden).sum()).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    # the mean square of a layer norm's output hardly depends on what only shifts all keys alike
    assert {name for name in still if not name.endswith("attention.k.bias")} == set()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"heads": 5}, "heads"),
        ({"pooling": "max"}, "pooling"),
        ({"longest": 33}, "longest"),
        ({"token_types": 0}, "token_types"),
        ({"activation": "tanh"}, "activation"),
        ({"layers": 0}, "layers"),
    ],
)
def test_traits_that_cannot_be_built_are_refused_by_name(changes, field):
    with pytest.raises(UsageError) as error:
        Encoder(replace(TRAITS, **changes))
    assert error.value.field == field


def test_traits_survive_a_dict_and_refuse_an_unknown_key():
    assert EncoderTraits.from_dict(TRAITS.to_dict()) == TRAITS
    with pytest.raises(UsageError, match="unknown trait"):
        EncoderTraits.from_dict(TRAITS.to_dict() | {"windows": 3})
    with pytest.raises(UsageError, match="pooler"):
        made().pooled_output(torch.zeros(1, 1, 24))


def test_the_block_with_norms_of_the_sum_serves_a_decoder_too():
    traits = DecoderTraits(
        vocab_size=30, width=16, layers=2, heads=2, norm="layer", norm_placement="sum", mlp_bias=True
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0)).eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        whole = model(tokens, torch.arange(6)[None], DenseCausal())
        part = model(tokens[:, :4], torch.arange(4)[None], DenseCausal())
    torch.testing.assert_close(whole[:, :4], part)
    state = whole[0] / 1.0
    torch.testing.assert_close(state.mean(-1), torch.zeros(6), atol=1e-5, rtol=0)  # normalised twice is normalised


def test_a_window_is_refused_where_all_is_seen():
    with pytest.raises(ValueError, match="windows"):
        q = torch.zeros(1, 1, 2, 4)
        Bidirectional(torch.tensor([2])).attend(AttentionLayer(0, window=1), q, q, q)
