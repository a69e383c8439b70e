import argparse
import ast
import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_ngram import START, SlowNGram

from dacheng.errors import UsageError
from dacheng.evaluate import ngram_counts
from dacheng.evaluate.ngram import ByteNGram, NGram, TokenNGram

ALPHABET = 5
TEXT = [b"the cat sat on the mat.", b"the dog sat on the log.", b"", b"a cat is not a dog", b"the the the"]


def draw_documents(seed, count=6, alphabet=ALPHABET):
    """Markov-like documents, so that counts of 1, 2, 3, 4 and more all occur."""
    generator = random.Random(seed)
    documents = []
    for _ in range(count):
        symbol, document = 0, []
        for _ in range(generator.randrange(40)):
            symbol = (symbol + generator.choice([0, 1, 1, 1, 2])) % alphabet if generator.random() < 0.9 else 4
            document.append(symbol)
        documents.append(document)
    return [*documents, [0], []]


@pytest.mark.parametrize("smoothing", ["kneser-ney", "witten-bell"])
@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_equals_the_dictionary_reference(order, smoothing):
    train, held_out = draw_documents(1), draw_documents(2)
    fast = NGram(order, ALPHABET, smoothing).fit(train)
    slow = SlowNGram(train, order, ALPHABET, smoothing)
    bits, lengths = fast.document_bits(held_out)
    for document, found, length in zip(held_out, bits, lengths):
        history, expected = [START], 0.0
        for symbol in document:
            expected -= math.log2(slow.probability(symbol, history))
            history.append(symbol)
        assert found == pytest.approx(expected, abs=1e-9)
        assert length == len(document)
    history = [START]
    for symbol in held_out[0]:
        expected = [slow.probability(s, history) for s in range(ALPHABET)]
        assert fast.probabilities(history[1:]) == pytest.approx(expected, abs=1e-12)
        history.append(symbol)
    excerpt = [2, 3, 4]
    expected = [slow.probability(s, excerpt) for s in range(ALPHABET)]
    assert fast.probabilities(excerpt, from_start=False) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6).filter(any),
    context=st.lists(st.integers(0, 3), max_size=8),
    order=st.integers(1, 6),
    smoothing=st.sampled_from(["kneser-ney", "witten-bell"]),
    from_start=st.booleans(),
)
def test_any_text_and_context_gives_a_distribution(documents, context, order, smoothing, from_start):
    model = NGram(order, 4, smoothing).fit(documents)
    p = model.probabilities(context, from_start=from_start)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()
    slow = SlowNGram(documents, order, 4, smoothing)
    history = [START, *context] if from_start else context
    assert p == pytest.approx([slow.probability(s, history) for s in range(4)], abs=1e-12)


@pytest.mark.parametrize("order", [1, 3, 7])
def test_bytes_sum_to_one_for_random_contexts(order):
    model = ByteNGram(order).fit(TEXT)
    generator = random.Random(0)
    source = b"".join(TEXT)
    for _ in range(50):
        at = generator.randrange(len(source) - 8)
        context = source[at : at + generator.randrange(8)] if generator.random() < 0.7 else generator.randbytes(5)
        for from_start in (True, False):
            assert model.probabilities(context, from_start=from_start).sum() == pytest.approx(1.0, abs=1e-12)


def test_bits_follow_from_the_probabilities():
    model = ByteNGram(4).fit(TEXT)
    document = b"the cat is on the log"
    expected = sum(-math.log2(model.probabilities(document[:i])[byte]) for i, byte in enumerate(document))
    assert model.document_bits([document])[0][0] == pytest.approx(expected, abs=1e-9)
    assert model.bits_per_byte([document]) == pytest.approx(expected / len(document), abs=1e-12)


def test_documents_are_separate():
    model = ByteNGram(5).fit([b"ab", b"cd"] * 3)
    assert model.probabilities(b"ab")[ord("c")] < model.probabilities(b"")[ord("c")]
    joined = model.document_bits([b"abcd"])[0].sum()
    apart = model.document_bits([b"ab", b"cd"])[0].sum()
    assert apart < joined
    # neither the other documents nor their order change a document's bits
    alone = [model.document_bits([text])[0][0] for text in TEXT]
    assert model.document_bits(TEXT)[0] == pytest.approx(alone, abs=1e-12)


def test_scoring_in_batches_changes_nothing(monkeypatch):
    model = ByteNGram(4).fit(TEXT)
    whole = model.document_bits(TEXT)
    monkeypatch.setattr("dacheng.evaluate.ngram._CHUNK", 10)
    for ours, theirs in zip(model.document_bits(iter(TEXT)), whole):
        assert np.array_equal(ours, theirs)


def test_both_ways_of_grouping_agree():
    values = np.random.default_rng(0).integers(0, 50, 1000)
    packed = ngram_counts._group(values.copy(), 50)
    argsorted = ngram_counts._group(values.copy(), 1 << 60)
    for ours, theirs in zip(packed[:3], argsorted[:3]):
        assert np.array_equal(ours, theirs)
    keys, counts, group, example = packed
    assert np.array_equal(keys[group], values)
    assert np.array_equal(values[example], keys)
    assert counts.sum() == 1000


def test_longer_contexts_help_on_source_code_and_witten_bell_is_close():
    train = [Path(module.__file__).read_bytes() for module in (argparse, ast, dataclasses)]
    held_out = [Path(json.decoder.__file__).read_bytes()]
    orders = {order: ByteNGram(order).fit(train).bits_per_byte(held_out) for order in (1, 2, 4, 6)}
    assert 4.0 < orders[1] < 5.0
    assert orders[6] < orders[4] < orders[2] < orders[1]
    assert orders[6] < 2.7
    witten_bell = ByteNGram(4, "witten-bell").fit(train).bits_per_byte(held_out)
    assert orders[4] < witten_bell < 1.2 * orders[4]


def test_tokens_are_scored_per_byte_they_stand_for():
    lengths = [1, 2, 3, 0]
    model = TokenNGram(3, lengths).fit([[0, 1, 2, 0, 1, 2], [2, 1, 0]])
    document = [0, 1, 2]
    bits = model.document_bits([document])[0][0]
    assert model.bits_per_byte([document]) == pytest.approx(bits / 6)
    assert model.bits_per_symbol([document]) == pytest.approx(bits / 3)
    assert model.document_bytes([document, []]).tolist() == [6, 0]
    assert model.alphabet == 4


def test_samples_are_seeded_and_follow_the_distribution():
    model = ByteNGram(3).fit([b"abababababab" * 5])
    assert model.sample(b"ab", 8, temperature=0) == b"abababab"
    assert model.sample(b"a", 50, seed=1) == model.sample(b"a", 50, seed=1)
    assert model.sample(b"a", 50, seed=1, temperature=3.0) != model.sample(b"a", 50, seed=2, temperature=3.0)
    unigram = TokenNGram(1, [1, 1, 1]).fit([[0] * 60 + [1] * 30 + [2] * 10])
    drawn = np.bincount(unigram.sample([], 4000, seed=3), minlength=3) / 4000
    assert drawn == pytest.approx(unigram.probabilities([]), abs=0.03)
    cold = np.bincount(unigram.sample([], 4000, seed=3, temperature=0.5), minlength=3) / 4000
    squared = unigram.probabilities([]) ** 2
    assert cold == pytest.approx(squared / squared.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ByteNGram(0), "order"),
        (lambda: ByteNGram(2, "none"), "smoothing"),
        (lambda: ByteNGram(2).fit([]), "no text"),
        (lambda: ByteNGram(2).fit([b"", b""]), "no text"),
        (lambda: ByteNGram(2).fit(["text"]), "bytes or token ids"),
        (lambda: ByteNGram(2).bits_per_byte([b"x"]), "call fit"),
        (lambda: ByteNGram(2).fit([b"x"]).bits_per_byte([]), "no text to score"),
        (lambda: ByteNGram(2).fit([b"x"]).bits_per_byte([b""]), "no text to score"),
        (lambda: ByteNGram(2).fit([b"x"]).sample(b"", 1, temperature=-1), "temperature"),
        (lambda: TokenNGram(2, []), "alphabet"),
        (lambda: TokenNGram(2, [1, 1]).fit([[0, 1], [0, 2]]), "document 1"),
        (lambda: TokenNGram(2, [1, 1]).fit([[0, -1]]), "outside the vocabulary"),
        (lambda: TokenNGram(2, [1, 1]).fit([[0.5, 1.0]]), "integers"),
    ],
)
def test_wrong_use_is_refused(make, match):
    with pytest.raises(UsageError, match=match):
        make()
