import math
import random

import numpy as np
import pytest
import torch

from dacheng.errors import UsageError
from dacheng.evaluate import perplexity
from dacheng.evaluate.perplexity import evaluate_source, evaluate_text
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal

VOCAB = 258
EOS = 256


class Bytes:
    """One token a byte."""

    vocab_size, eos_id, bos_id, pad_id = VOCAB, EOS, None, 257

    def encode(self, text):
        return list(text.encode("utf-8"))

    def byte_lengths(self):
        return np.array([1] * 256 + [0, 0])


class Uniform(torch.nn.Module):
    def forward(self, tokens, positions, context):
        return torch.zeros(*tokens.shape, 1)

    def head(self, hidden):
        return torch.zeros(*hidden.shape[:-1], VOCAB)


class Batch:
    def __init__(self, tokens, targets, positions, document_ids=None):
        self.tokens, self.targets, self.positions, self.document_ids = tokens, targets, positions, document_ids

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def model():
    traits = DecoderTraits(vocab_size=VOCAB, width=32, layers=2, heads=2, max_positions=64)
    return Decoder(traits).init_weights(torch.Generator().manual_seed(0))


def texts(seed=0, count=7):
    generator = random.Random(seed)
    lengths = [0, 1, 15, 16, 17, 50, 130][:count]
    return ["".join(generator.choice("abc de\né中") for _ in range(length)) for length in lengths]


def naive(model, text, context_length, stride):
    """The definition: token by token, each with the tokens that its window gives it."""
    ids = [EOS, *text.encode()]
    total = 0.0
    for target in range(1, len(ids)):
        if target <= context_length:
            start = 0
        else:
            block = -(-(target - context_length) // stride)
            start = min(context_length + block * stride, len(ids) - 1) - context_length
        window = torch.tensor([ids[start:target]])
        with torch.no_grad():
            hidden = model(window, torch.arange(target - start)[None], DenseCausal())
            total -= float(torch.log_softmax(model.head(hidden[:, -1]), dim=-1)[0, ids[target]])
    return total


@pytest.mark.parametrize(("stride", "batch"), [(1, 3), (5, 1), (8, 4), (16, 8), (None, 2)])
def test_equals_the_naive_loop_and_scores_each_token_once(model, stride, batch):
    data = texts()
    result = evaluate_text(model, Bytes(), data, context_length=16, stride=stride, batch=batch)
    expected = sum(naive(model, text, 16, stride or 8) for text in data)
    assert result["nats"] == pytest.approx(expected, rel=1e-5)
    assert result["tokens"] == result["bytes"] == sum(len(text.encode()) for text in data)
    assert result["documents"] == len(data)
    assert result["bits_per_byte"] == pytest.approx(expected / math.log(2) / result["bytes"], rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(expected / result["tokens"]), rel=1e-5)
    assert result["bits_per_byte_low"] <= result["bits_per_byte"] <= result["bits_per_byte_high"]


def test_every_token_has_as_much_context_as_fits():
    for count in (1, 7, 16, 17, 18, 40, 41):
        for stride in (1, 3, 16):
            windows = list(perplexity._windows(0, list(range(count + 1)), 16, stride))
            assert [t for w in windows for t in w.targets[-w.scored :]] == list(range(1, count + 1))
            for window in windows:
                assert len(window.inputs) == min(16, count)
                assert window.scored <= (16 if window.inputs[0] == 0 else stride)
                assert window.targets == [i + 1 for i in window.inputs]


def test_uniform_model_gives_exactly_log2_of_the_vocabulary():
    result = evaluate_text(Uniform(), Bytes(), texts(), context_length=16)
    assert result["nats"] / result["tokens"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(math.log2(VOCAB), rel=1e-6)
    assert result["perplexity"] == pytest.approx(VOCAB, rel=1e-5)


def test_every_stride_scores_the_same_number_of_tokens(model):
    counts = {s: evaluate_text(model, Bytes(), texts(), context_length=16, stride=s)["tokens"] for s in (1, 4, 7, 16)}
    assert len(set(counts.values())) == 1


def test_logits_in_small_pieces_change_nothing(model, monkeypatch):
    whole = evaluate_text(model, Bytes(), texts(), context_length=16)
    monkeypatch.setattr(perplexity, "_LOGITS", 3 * VOCAB)
    assert evaluate_text(model, Bytes(), texts(), context_length=16)["nats"] == pytest.approx(whole["nats"], rel=1e-6)


def test_the_model_is_left_as_it_was(model):
    for training in (True, False):
        model.train(training)
        evaluate_text(model, Bytes(), ["abc"], context_length=8)
        assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_up_to_all_tokens(model):
    seen = []
    result = evaluate_text(model, Bytes(), texts(), context_length=16, batch=2, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == result["tokens"]


def test_a_lossy_tokenizer_is_told():
    class Lossy(Bytes):
        def encode(self, text):
            return list(text.lower().encode().replace(b" ", b""))

    result = evaluate_text(Uniform(), Lossy(), ["ab", "a b", "A"], context_length=8)
    assert result["altered_documents"] == 1
    assert (result["tokens"], result["bytes"]) == (5, 6)


def test_packed_batches_equal_the_texts_one_by_one(model):
    data = ["hello", "中文 text", "x", "a longer one"]
    rows, ids, positions, targets = [[], []], [[], []], [[], []], [[], []]
    for index, text in enumerate(data):
        row, encoded = index % 2, list(text.encode())
        rows[row] += [EOS, *encoded]
        targets[row] += [*encoded, EOS]  # the end is predicted in training, and not scored here
        positions[row] += range(len(encoded) + 1)
        ids[row] += [index // 2] * (len(encoded) + 1)
    width = max(map(len, rows))
    for row in range(2):
        padding = width - len(rows[row])
        rows[row] += [257] * padding
        targets[row] += [-100] * padding
        positions[row] += range(padding)
        ids[row] += [-1] * padding
    batch = Batch(*(torch.tensor(part) for part in (rows, targets, positions, ids)))
    packed = evaluate_source(model, [batch], Bytes().byte_lengths())
    single = evaluate_text(model, Bytes(), data, context_length=32)
    assert packed["nats"] == pytest.approx(single["nats"], rel=1e-5)
    for key in ("tokens", "bytes", "documents"):
        assert packed[key] == single[key]
    assert packed["bits_per_byte"] == pytest.approx(single["bits_per_byte"], rel=1e-5)
    assert packed["bits_per_byte_low"] == pytest.approx(
        evaluate_text(model, Bytes(), [data[i] for i in (0, 2, 1, 3)], context_length=32)["bits_per_byte_low"], rel=1e-5
    )
    assert packed["skipped_tokens"] == 4
    assert set(single) - {"altered_documents"} == set(packed) - {"skipped_tokens"}


def test_rows_without_document_ids_are_documents(model):
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:].clone(), torch.arange(11).expand(3, 11))
    result = evaluate_source(model, [batch, batch], Bytes().byte_lengths())
    assert (result["documents"], result["tokens"]) == (6, 66)
    batch.targets[:] = -100
    with pytest.raises(UsageError, match="no text"):
        evaluate_source(model, [batch], Bytes().byte_lengths())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context_length": 16, "stride": 17}, "stride"),
        ({"context_length": 16, "stride": 0}, "stride"),
        ({"context_length": 65}, "at most 64"),
        ({"context_length": 16, "batch": 0}, "batch"),
    ],
)
def test_wrong_options_are_refused(model, options, match):
    with pytest.raises(UsageError, match=match):
        evaluate_text(model, Bytes(), ["text"], **options)


def test_nothing_to_score_is_refused(model):
    for data in ([], [""]):
        with pytest.raises(UsageError, match="no text"):
            evaluate_text(model, Bytes(), data, context_length=16)


def test_one_document_has_no_interval(model):
    assert "bits_per_byte_low" not in evaluate_text(model, Bytes(), ["one"], context_length=16)
