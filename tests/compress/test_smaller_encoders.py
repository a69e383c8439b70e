"""Encoders with fewer layers, neurons and words, and in eight bits: equal where they should be, really smaller."""

from __future__ import annotations

import classifier_toys as toys
import pytest
import torch

from dacheng.compress.distil.classifier import cut_words
from dacheng.compress.distil.student import pick_layers, spread
from dacheng.compress.encoders import (
    pack_classifier,
    prune_neurons,
    shrink_classifier,
    shrink_encoder,
)
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.vocabulary import words_to_keep
from dacheng.data.text_rows import token_rows
from dacheng.errors import UsageError
from dacheng.evaluate.classification import predict
from dacheng.formats.classifiers import load_classifier, save_classifier
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

TEXTS = ["the cat", "my big ball", "please see the moon now", "zebras run", "a dog's goal?"]


@pytest.fixture
def words(tmp_path):
    return toys.tokenizer(tmp_path / "words")


def test_the_layers_that_distilbert_takes():
    assert spread(12, 6) == (0, 2, 4, 7, 9, 11) and spread(6, 3) == (0, 2, 5)
    assert spread(4, 4) == (0, 1, 2, 3) and spread(5, 1) == (4,)
    for count in (0, 7):
        with pytest.raises(UsageError, match="some of its teacher's layers"):
            spread(6, count)


@torch.no_grad()
def test_all_layers_are_the_teacher_and_some_are_its_own_weights(words):
    model = toys.classifier(words.vocab_size, layers=4).eval()
    assert torch.equal(predict(pick_layers(model, 4), words, TEXTS), predict(model, words, TEXTS))
    student = pick_layers(model, 2)
    assert len(student.encoder.blocks) == 2 and student.traits.encoder.layers == 2
    assert [block.attention.layer.index for block in student.encoder.blocks] == [0, 1]
    last = model.encoder.blocks[3].mlp.up.weight
    assert torch.equal(student.encoder.blocks[1].mlp.up.weight, last)
    student.encoder.blocks[1].mlp.up.weight.zero_()
    assert last.abs().sum() > 0  # a copy
    skipped = pick_layers(model, (1, 2))
    model.encoder.blocks = torch.nn.ModuleList(model.encoder.blocks[1:3])
    assert torch.equal(predict(model, words, TEXTS), predict(skipped, words, TEXTS))


def test_a_decoder_loses_layers_too():
    traits = DecoderTraits(vocab_size=11, width=16, layers=4, heads=2)
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    assert pick_layers(model, 2).traits.layers == 2


@torch.no_grad()
def test_neurons_that_say_nothing_can_go(words):
    model = toys.classifier(words.vocab_size).eval()
    for block in model.encoder.blocks:
        block.mlp.down.weight[:, ::2] = 0
    kept = tuple(range(1, 64, 2))
    smaller = shrink_classifier(model, Keep(neurons=(kept, kept)))
    torch.testing.assert_close(predict(smaller, words, TEXTS), predict(model, words, TEXTS))
    assert smaller.traits.encoder.mlp_width == 32 and smaller.params()["total"] < model.params()["total"]


@torch.no_grad()
def test_neurons_that_never_vary_go_without_a_trace_and_the_rest_by_what_they_add(words):
    model = toys.classifier(words.vocab_size).eval()
    for block in model.encoder.blocks:
        block.mlp.up.weight[:40] = 0
        block.mlp.up.bias[:40] = torch.linspace(0.5, 3, 40)  # they say the same of every token
    rows, _ = token_rows(words, TEXTS, 24)
    smaller = prune_neurons(model, rows, words.pad_id, 24)
    assert smaller.traits.encoder.mlp_width == 24
    torch.testing.assert_close(predict(smaller, words, TEXTS), predict(model, words, TEXTS), atol=1e-5, rtol=1e-5)
    fewer = prune_neurons(model, rows, words.pad_id, 4)
    assert (predict(fewer, words, TEXTS) - predict(model, words, TEXTS)).abs().max() > 1e-3
    for count, texts in ((0, rows), (65, rows), (3, [])):
        with pytest.raises(UsageError):
            prune_neurons(model, texts, words.pad_id, count)


def test_words_that_no_text_needs_can_go_without_a_change(words, tmp_path):
    model = toys.classifier(words.vocab_size).eval()
    smaller, fewer = cut_words(model, words, TEXTS[:3])
    assert fewer.vocab_size < words.vocab_size and smaller.traits.encoder.vocab_size == fewer.vocab_size
    torch.testing.assert_close(predict(smaller, fewer, TEXTS[:3]), predict(model, words, TEXTS[:3]), atol=0, rtol=0)
    assert fewer.pad_id == 0 and set(fewer.special_tokens) == set(words.special_tokens)
    row = [fewer.id_to_token(i) for i in fewer.encode("zebra")]
    assert row == ["z", "##e", "##b", "##r", "##a"]  # spelt, where it was one token
    assert words.encode("zebra") == [words.token_to_id("zebra")]
    save_classifier(tmp_path / "m", smaller, fewer)
    again = load_classifier(tmp_path / "m")
    assert torch.equal(predict(again.model, again.tokenizer, TEXTS), predict(smaller, fewer, TEXTS))


def test_a_size_is_filled_up_and_too_small_a_one_refused(words):
    least = words_to_keep(words, TEXTS[:1])
    more = words_to_keep(words, TEXTS[:1], len(least) + 3)
    assert len(more) == len(least) + 3 and set(least) < set(more)
    with pytest.raises(UsageError, match=f"need {len(least)} tokens"):
        words_to_keep(words, TEXTS[:1], 10)


def test_eight_bits_are_a_quarter_and_nearly_the_same_and_are_read_back_packed(words, tmp_path):
    model = toys.classifier(words.vocab_size, width=64, mlp_width=256).eval()
    floats, before = predict(model, words, TEXTS), save_classifier(tmp_path / "floats", model, words)
    packed = pack_classifier(model)
    assert (predict(packed, words, TEXTS) - floats).norm() < 0.05 * floats.norm()
    after = save_classifier(tmp_path / "packed", packed, words)
    big, small = ((path / "model.safetensors").stat().st_size for path in (before, after))
    assert small < 0.36 * big
    again = load_classifier(after)
    assert torch.equal(predict(again.model, again.tokenizer, TEXTS), predict(packed, words, TEXTS))
    assert again.model.params() == load_classifier(before).model.params()
    cast = load_classifier(save_classifier(tmp_path / "cast", packed, words, dtype="bfloat16")).model.state_dict()
    for name, value in packed.state_dict().items():
        assert torch.equal(cast[name], value) or not name.endswith("packed"), name
    with pytest.raises(UsageError, match="packed already"):
        pack_classifier(again.model)
    with pytest.raises(UsageError, match="cannot be cut"):
        shrink_encoder(again.model.encoder, Keep(layers=(0,)))


def test_what_an_encoder_cannot_lose_is_refused_by_name(words):
    encoder = toys.encoder(words.vocab_size)
    for keep in (Keep(heads=((0,), (0,))), Keep(width=(0, 1))):
        with pytest.raises(UsageError, match="layers, neurons and words"):
            shrink_encoder(encoder, keep)
    with pytest.raises(UsageError) as error:
        shrink_encoder(encoder, Keep(layers=(0, 5)))
    assert error.value.field == "layers"
